"""verl's training worker with the backward pass, the gradients and the optimiser step as separate calls.

Legend: a *shard list* is one local tensor (or None) per trainable parameter, in the order of `parameters()`. Under
FSDP2 it is the local shard of the DTensor gradient; under HSDP every replica group holds the same shards.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.distributed
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.engine_workers import TrainingWorker

from verl_ext.images import mend_position_ids, mend_verl

Shards = list[torch.Tensor | None]


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """The part of `tensor` that lives on this rank; shares its storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like_parameter(shard: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """`shard` as a gradient that `parameter` accepts (inverse of `local_shard`, no copy)."""
    if not isinstance(parameter, DTensor):
        return shard
    return DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


class GradientWorker(TrainingWorker):
    """`TrainingWorker` for recipes that combine several gradients before one optimiser step."""

    def __init__(self, config):
        mend_verl()
        # Gradients weighted by the probability of a whole answer are denormal numbers, on which CPUs are slow.
        torch.set_flush_denormal(True)
        super().__init__(config)
        self.reference: Shards | None = None
        self.optimizer_name = "main"
        self.optimizer_states: dict[str, Any] = {}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable parameters in a fixed order."""
        return [parameter for parameter in self.engine.module.parameters() if parameter.requires_grad]

    def freeze_vision_tower(self) -> None:
        """Train the language model alone (verl 0.9.1 has the key and reads it nowhere). ValueError without a tower."""
        towers = [module for name, module in self.engine.module.named_modules() if name.rsplit(".", 1)[-1] == "visual"]
        if not towers:
            raise ValueError(
                "actor_rollout_ref.actor.freeze_vision_tower=True, but the model has no vision tower; leave it out"
            )
        for tower in towers:
            tower.requires_grad_(False)

    def backward(self, data: TensorDict, loss_fn) -> tuple[Shards, dict[str, float]]:
        """Accumulate the gradient of `loss_fn` over the micro-batches of `data` and set it aside.

        `loss_fn(model_output=, data=, dp_group=) -> (loss, metrics)` as for verl's engines: it must divide by the
        global counts `batch_num_tokens` or `global_batch_size` and multiply by `dp_size`. Nothing is scaled or clipped,
        the parameters' own `.grad` is None afterwards and no optimiser step is taken.
        """
        mend_position_ids(data)
        self._add_engine_defaults(data)
        with self.engine.train_mode():
            self.engine.optimizer_zero_grad()
            output = self.engine.forward_backward_batch(data, loss_fn)
            shards = self._take_gradients()
        return shards, self._metrics_of(output)

    def evaluate(self, data: TensorDict, loss_fn) -> dict[str, float]:
        """The metrics of `loss_fn` by forward passes only."""
        mend_position_ids(data)
        self._add_engine_defaults(data)
        with self.engine.eval_mode():
            output = self.engine.forward_backward_batch(data, loss_fn, forward_only=True)
        return self._metrics_of(output)

    def step(self, gradients: Shards, clip_grad: float | None = None) -> float:
        """Clip `gradients` in place by the global norm and take one optimiser step; returns the norm before clipping.

        `clip_grad` is the largest norm, by default the configured one.
        A non-finite norm takes no step (verl's rule); the caller counts it. Afterwards the shards hold the clipped
        gradient that the optimiser saw.
        """
        with self.engine.train_mode():
            for parameter, shard in zip(self.parameters(), gradients, strict=True):
                parameter.grad = None if shard is None else like_parameter(shard, parameter)
            configured = self.engine.optimizer_config
            if clip_grad is not None:
                self.engine.optimizer_config = replace(configured, clip_grad=clip_grad)
            try:
                return self.engine.optimizer_step()
            finally:
                self.engine.optimizer_config = configured

    # ---- the reference policy --------------------------------------------------------------------------------------

    def keep_reference(self) -> None:
        """Remember the weights as they are: the reference policy costs one copy of this rank's shards, on the CPU."""
        self.reference = [local_shard(parameter).detach().to("cpu", copy=True) for parameter in self.parameters()]

    @contextmanager
    def reference_weights(self) -> Iterator[None]:
        """The reference policy's weights in place of the policy's, for forward passes; RuntimeError without any."""
        if self.reference is None:
            raise RuntimeError("no reference policy was kept: the method must declare that it needs one")
        with self.engine.eval_mode(), torch.no_grad():
            shards = [local_shard(parameter) for parameter in self.parameters()]
            current = [shard.detach().clone() for shard in shards]
            for shard, reference in zip(shards, self.reference, strict=True):
                shard.copy_(reference)
        try:
            yield
        finally:
            with self.engine.eval_mode(), torch.no_grad():
                for parameter, saved in zip(self.parameters(), current, strict=True):
                    local_shard(parameter).copy_(saved)

    def log_probs(self, data: TensorDict) -> torch.Tensor:
        """log p of every token of the batch's sequences, as verl's nested tensor, by forward passes only."""
        mend_position_ids(data)
        self._add_engine_defaults(data)
        with self.engine.eval_mode():
            output = self.engine.forward_backward_batch(data, None, forward_only=True)
        return output["model_output"]["log_probs"]

    # ---- weights alone ---------------------------------------------------------------------------------------------

    def save_weights(self, folder: str) -> None:
        """A checkpoint of verl's format with the weights alone, which verl's rotation of checkpoints does not know."""
        with self._weights_only() as manager:
            self.engine.save_checkpoint(folder, None, 0, None)
            manager.previous_saved_paths = [path for path in manager.previous_saved_paths if path != folder]

    def load_weights(self, folder: str) -> None:
        """The weights of a checkpoint; moments, learning-rate schedule and random state stay as they are."""
        path = os.path.join(folder, f"model_world_size_{self.world_size}_rank_{self.rank}.pt")
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{path} is missing: it was written by another number of ranks, or has been deleted. Resume with the "
                "number of ranks that wrote it, or start the run anew."
            )
        with self._weights_only():
            self.engine.load_checkpoint(folder, None, False)

    @contextmanager
    def _weights_only(self) -> Iterator[Any]:
        manager = self.engine.checkpoint_manager
        contents = manager.checkpoint_save_contents, manager.checkpoint_load_contents
        manager.checkpoint_save_contents, manager.checkpoint_load_contents = ["model"], ["model"]
        try:
            yield manager
        finally:
            manager.checkpoint_save_contents, manager.checkpoint_load_contents = contents

    # ---- further optimisers on the same weights --------------------------------------------------------------------

    def use_optimizer(self, name: str) -> None:
        """Step with the moments of optimiser `name` from now on; a new name starts with none."""
        if name != self.optimizer_name:
            self.optimizer_states[self.optimizer_name] = self.engine.optimizer.state
            self.engine.optimizer.state = self.optimizer_states.pop(name, defaultdict(dict))
            self.optimizer_name = name

    def other_optimizers(self) -> dict[str, list[dict[str, Any]]]:
        """This rank's part of the states of the optimisers not in use, by name, one entry per parameter."""
        return {
            name: [{key: local_shard(value) for key, value in state.get(p, {}).items()} for p in self.parameters()]
            for name, state in self.optimizer_states.items()
        }

    def load_other_optimizers(self, states: dict[str, list[dict[str, Any]]]) -> None:
        for name, entries in states.items():
            loaded: defaultdict = defaultdict(dict)
            for parameter, entry in zip(self.parameters(), entries, strict=True):
                loaded[parameter] = {
                    key: like_parameter(value, parameter) if value.shape == local_shard(parameter).shape else value
                    for key, value in entry.items()
                }
            self.optimizer_states[name] = loaded

    def reduce_over_shards(self, local_values: torch.Tensor) -> list[float]:
        """Sum per-rank scalars over the shard group only: over the world, HSDP would count every replica."""
        torch.distributed.all_reduce(local_values, group=self.engine.device_mesh.get_group("fsdp"))
        return local_values.tolist()

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def export_model(self, folder: str) -> None:
        """Write the full model in Hugging Face format (rank 0 writes, all ranks take part in gathering)."""
        weights = {}
        parameters, _ = self.engine.get_per_tensor_param()
        for name, tensor in parameters:
            if self.rank == 0:
                weights[name] = tensor.detach().to("cpu", copy=True)
        if self.rank == 0:
            module = getattr(self.engine.module, "_fsdp_wrapped_module", self.engine.module)
            module.config.save_pretrained(folder)
            if module.can_generate() and module.generation_config is not None:
                module.generation_config.save_pretrained(folder)
            module.save_pretrained(folder, state_dict=weights)
        torch.distributed.barrier()

    def _metrics_of(self, output: dict) -> dict[str, float]:
        output.pop("model_output", None)
        postprocessed = self._postprocess_output(
            output, global_token_num=None, delta_time=1.0, forward_only=False, images_seqlens=None
        )
        return self._reduce_metrics(tu.get(postprocessed, "metrics"))

    def _take_gradients(self) -> Shards:
        shards: Shards = []
        for parameter in self.parameters():
            shards.append(None if parameter.grad is None else local_shard(parameter.grad))
            parameter.grad = None
        return shards

    def _add_engine_defaults(self, data: TensorDict) -> None:
        """The keys that verl's own `train_batch` adds before it calls the engine."""
        rows = len(data)
        micro_batch_size = min(self.engine_config.micro_batch_size_per_gpu or rows, rows)
        while rows % micro_batch_size:  # verl wants whole micro-batches: the largest size that divides the rows
            micro_batch_size -= 1
        defaults = {
            "use_remove_padding": self.model_config.get("use_remove_padding", False),
            "use_dynamic_bsz": self.engine_config.use_dynamic_bsz,
            "max_token_len_per_gpu": self.engine_config.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": micro_batch_size,
            "use_fused_kernels": self.engine_config.use_fused_kernels,
        }
        for key, value in defaults.items():
            if key not in data:  # a TensorDict: membership of a key
                tu.assign_non_tensor(data, **{key: value})

    @staticmethod
    def _reduce_metrics(metrics: dict) -> dict[str, float]:
        """One number per metric from the values of all micro-batches and ranks (as `train_mini_batch` reduces them)."""
        reduced = {}
        for name, value in metrics.items():
            if name.startswith("perf/"):
                continue
            if isinstance(value, list) and isinstance(value[0], Metric):
                value = Metric.aggregate_dp(value)
            elif isinstance(value, list):
                flat = list(chain.from_iterable(value)) if isinstance(value[0], list) else value
                value = sum(flat) / len(flat)
            reduced[name] = float(value)
        return reduced
