"""Splits that share no prompt: duplicates within a split, leaks from one into another, and how rows are drawn.

All by `prompt_key`. Evaluation goes before training: a prompt of the test split leaves validation and training, one of
the validation split leaves training.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.amft.data.normalise import prompt_key
from recipe.amft.data.records import read_records, sha256_of
from recipe.amft.data.rows import BadRow, row_id
from recipe.amft.data.sources import QUESTION, first_value

Row = dict[str, Any]


@dataclass
class Duplicates:
    """Rows of a split that repeat an earlier prompt: how many per data source, and those with another answer."""

    by_source: dict[str, int] = field(default_factory=dict)
    other_answer: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.by_source.values())


@dataclass(frozen=True)
class Leak:
    """A row that was dropped because its prompt is also elsewhere."""

    row_id: str
    also_in: str


def key_of(row: Row) -> str:
    return prompt_key(row["prompt"])


def without_duplicates(rows: Iterable[Row]) -> tuple[list[Row], Duplicates]:
    """The first row of each prompt (of each data source), and what was left out.

    Repeats that a file holds for avg@k (the benchmark files have 32 of each AIME and AMC problem) go too: evaluation
    samples a prompt k times instead.
    """
    kept: dict[tuple[str, str], Row] = {}
    duplicates = Duplicates()
    for row in rows:
        source = row["data_source"]
        first = kept.setdefault((source, key_of(row)), row)
        if first is row:
            continue
        duplicates.by_source[source] = duplicates.by_source.get(source, 0) + 1
        if first["reward_model"]["ground_truth"] != row["reward_model"]["ground_truth"]:
            duplicates.other_answer.append(row_id(first))
    return list(kept.values()), duplicates


def without_leaks(rows: Iterable[Row], elsewhere: Mapping[str, Collection[str]]) -> tuple[list[Row], list[Leak]]:
    """The rows whose prompt is in none of the sets of keys `elsewhere` (by name of where they come from)."""
    kept, leaks = [], []
    for row in rows:
        key = key_of(row)
        places = [name for name, keys in elsewhere.items() if key in keys]
        if places:
            leaks.append(Leak(row_id(row), ", ".join(places)))
        else:
            kept.append(row)
    return kept, leaks


def draw(rows: list[Row], size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """`size` rows and the rest, both in their order; which ones, each row's id and the seed say, not its neighbours."""
    ranked = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}/{row_id(row)}".encode()).digest())
    chosen = {row_id(row) for row in ranked[:size]}
    return [row for row in rows if row_id(row) in chosen], [row for row in rows if row_id(row) not in chosen]


def keys_of_file(path: Path) -> tuple[set[str], dict[str, Any]]:
    """The prompts of a file (rows with `prompt`, or records with `problem` or `question`), and its facts."""
    keys: set[str] = set()
    if not path.is_file():
        raise ValueError(f"hygiene_against={path} does not exist (looked for {path.absolute()}); give a data file.")
    for place, values in read_records(path):
        if isinstance(values, BadRow):
            raise ValueError(f"{path}: row {place} cannot be compared with: {values}; mend the file.")
        prompt = first_value(values, *QUESTION)
        if not prompt:
            raise ValueError(
                f"{path}: row {place} has no {', '.join(QUESTION)} to compare with (columns: {', '.join(values)})."
            )
        keys.add(prompt_key(prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]))
    return keys, {"file": path.name, "sha256": sha256_of(path), "prompts": len(keys)}
