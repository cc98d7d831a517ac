"""Rows of the card-reading task: each is another rendering, and training shows no card where a held-out row does."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from recipe.amft.data.general_points import write_parquet
from recipe.amft.tasks.card_reading.environment import CardPicture
from recipe.amft.tasks.environment import make_environment

ENV_ID = "card_reading"
SPLITS = ("test", "validation", "train")


def make(options: Mapping[str, Any], folder: Path) -> None:
    """Write the splits; options: numbers of rows `train`, `validation`, `test`, `seed`, and those of CardReading.

    `test` has that many rows in the colours of training, and as many in red (data_source card_reading_red). Training
    has none of their layouts, whatever its brightness, nor validation's.
    """
    options = dict(options)
    sizes = {split: options.pop(split) for split in SPLITS}
    seeds = count(1_000_000 * options.pop("seed", 0))
    environment = make_environment(ENV_ID, options)
    held_out: set[CardPicture] = set()
    for split, size in sizes.items():
        unseen = (seed for seed in seeds if split != "train" or layout(environment, seed) not in held_out)
        chosen = list(islice(unseen, size))
        rows = rows_of(options, split, chosen)
        if split == "test":
            rows += rows_of(options | {"colours": "red"}, split, chosen, f"{ENV_ID}_red")
        held_out |= {layout(environment, seed) for seed in chosen}
        write_parquet(rows, folder / f"{split}.parquet")


def layout(environment: Any, seed: int) -> CardPicture:
    """Card, place and size of the picture, at one brightness."""
    picture: CardPicture = environment.reset(seed)[0]["images"][0]
    return replace(picture, brightness=1.0)


def rows_of(env_kwargs: Mapping[str, Any], split: str, seeds: list[int], source: str = ENV_ID) -> list[dict[str, Any]]:
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
