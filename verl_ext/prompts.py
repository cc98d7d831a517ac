"""Prompts as verl's agent loops take them, from an endless and resumable stream."""

from typing import Any

import numpy as np
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.utils import tensordict_utils as tu

ROW_FIELDS = ("extra_info", "target", "raw_prompt", "reward_model")
NOT_NEEDED_BY_ROLLOUTS = ("prompt", "target", "dummy_tensor")


class PromptStream:
    """Endless prompts from a stateful data loader, with ids that do not depend on chance.

    Args:
        loader: yields dicts of rows as verl's `RLHFDataset` makes them.
        name: prefix of the prompts' ids, unique per stream and free of underscores.
    """

    def __init__(self, loader: StatefulDataLoader, name: str):
        self.loader = loader
        self.name = name
        self.num_batches = 0
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []  # ROW_FIELDS of the batch that `next` returned last
        self._iterator = None

    def next(self, global_step: int, rollouts_per_prompt: int) -> TensorDict:
        """The next batch of prompts, ready for the agent loops."""
        rows = self._next_rows()
        kept = {name: rows[name] for name in ROW_FIELDS if name in rows}
        self.rows = [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]
        for key in NOT_NEEDED_BY_ROLLOUTS:
            rows.pop(key, None)
        num_prompts = len(rows["raw_prompt"])
        rows["uid"] = np.array(
            [f"{self.name}-{self.num_batches:06d}-{index:05d}" for index in range(num_prompts)], dtype=object
        )
        rows["__rollout_n__"] = np.array([rollouts_per_prompt] * num_prompts, dtype=object)
        self.num_batches += 1
        batch = tu.get_tensordict(rows)
        tu.assign_non_tensor_data(batch, "global_steps", global_step)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self.num_batches, "epoch": self.epoch, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_batches, self.epoch = state["num_batches"], state["epoch"]
        self.loader.load_state_dict(state["loader"])
        self._iterator = None

    def _next_rows(self) -> dict[str, Any]:
        if self._iterator is None:
            self._iterator = iter(self.loader)
        try:
            return next(self._iterator)
        except StopIteration:
            self.epoch += 1
            self._iterator = iter(self.loader)
            return next(self._iterator)


def add_field(batch: TensorDict, name: str, values: list) -> None:
    """Add one object per row to a batch of prompts."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    tu.assign_non_tensor_stack(batch, name, column.tolist())
