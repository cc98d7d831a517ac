"""The sizes of a run, read once from verl's nodes of the configuration."""

from dataclasses import dataclass

from omegaconf import OmegaConf

KEYS = {
    "num_nodes": "trainer.nnodes",
    "gpus_per_node": "trainer.n_gpus_per_node",
    "sequence_parallel": "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
    "tensor_parallel": "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "train_batch_size": "data.train_batch_size",
    "mini_batch_size": "actor_rollout_ref.actor.ppo_mini_batch_size",
    "rollouts_per_prompt": "actor_rollout_ref.rollout.n",
    "rollouts_per_validation_prompt": "actor_rollout_ref.rollout.val_kwargs.n",
    "prompt_length": "data.max_prompt_length",
    "response_length": "data.max_response_length",
}


@dataclass(frozen=True)
class Shape:
    """Positive integers: ranks, batches in prompts, lengths in tokens."""

    num_nodes: int
    gpus_per_node: int
    sequence_parallel: int
    tensor_parallel: int
    train_batch_size: int
    mini_batch_size: int
    rollouts_per_prompt: int
    rollouts_per_validation_prompt: int
    prompt_length: int
    response_length: int

    @classmethod
    def from_config(cls, config) -> "Shape":
        """ValueError for a size that is missing or no positive integer."""
        return cls(**{name: positive_integer(config, key) for name, key in KEYS.items()})

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def data_parallel(self) -> int:
        return self.num_ranks // self.sequence_parallel

    @property
    def num_mini_batches(self) -> int:
        """Optimiser steps per training step."""
        return self.train_batch_size // self.mini_batch_size

    @property
    def sequence_length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_length + self.response_length

    @property
    def rollouts_per_step(self) -> int:
        return self.train_batch_size * self.rollouts_per_prompt


def positive_integer(config, key: str) -> int:
    """The value at `key`, checked."""
    value = OmegaConf.select(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key}={value!r} is not a size; give an integer of at least 1.")
    return value


def training_steps(config, num_train_rows: int | None) -> int | None:
    """Training steps T: `trainer.total_training_steps`, else epochs times the full batches in the training data.

    None when that needs the data and `num_train_rows` is None; ValueError when neither key is set.
    """
    if config.trainer.total_training_steps is not None:
        return positive_integer(config, "trainer.total_training_steps")
    if config.trainer.total_epochs is None:
        raise ValueError(
            "trainer.total_training_steps=None and trainer.total_epochs=None leave the length of the run open; set "
            "trainer.total_training_steps to a number of steps, or trainer.total_epochs to a number of epochs."
        )
    epochs, batch = positive_integer(config, "trainer.total_epochs"), positive_integer(config, "data.train_batch_size")
    return None if num_train_rows is None else epochs * (num_train_rows // batch)
