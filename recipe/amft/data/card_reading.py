"""Rows of the card-reading task: every row is another rendering, and no two splits share a seed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.amft.data.general_points import write_parquet
from recipe.amft.tasks.environment import make_environment

ENV_ID = "card_reading"
SPLITS = ("train", "validation", "test")


def make(options: Mapping[str, Any], folder: Path) -> None:
    """Write the splits; options: numbers of rows `train`, `validation`, `test`, `seed`, and those of CardReading.

    `test` has that many rows in the colours of training, and as many in red (data_source card_reading_red).
    """
    options = dict(options)
    sizes = {split: options.pop(split) for split in SPLITS}
    seed = options.pop("seed", 0)
    first = 1_000_000 * seed
    for split, size in sizes.items():
        rows = rows_of(options, split, range(first, first + size))
        if split == "test":
            rows += rows_of(options | {"colours": "red"}, split, range(first, first + size), f"{ENV_ID}_red")
        write_parquet(rows, folder / f"{split}.parquet")
        first += size


def rows_of(env_kwargs: Mapping[str, Any], split: str, seeds: range, source: str = ENV_ID) -> list[dict[str, Any]]:
    """One row for each seed."""
    environment = make_environment(ENV_ID, dict(env_kwargs))
    rows = []
    for index, seed in enumerate(seeds):
        observation, info = environment.reset(seed)
        rows.append(
            {
                "data_source": source,
                "prompt": [{"role": "user", "content": observation["text"]}],
                "target": [{"role": "assistant", "content": environment.expert_action()}],
                "ability": "recognition",
                "reward_model": {"style": "rule", "ground_truth": info["rank"]},
                "extra_info": {
                    "id": f"{source}/seed={seed}",
                    "env_id": ENV_ID,
                    "env_kwargs": json.dumps(dict(env_kwargs), sort_keys=True),
                    "seed": seed,
                    "options": "{}",
                    "split": split,
                    "index": index,
                },
            }
        )
    return rows
