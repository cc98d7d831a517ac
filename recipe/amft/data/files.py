"""Checks of data files before a run: readable, with the columns that their role needs, and in disjoint splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.amft.tasks.environment import IMAGE

ENVIRONMENT_FIELDS = ("env_id", "env_kwargs", "seed", "options")  # of extra_info, read by the environment agent loop
EXAMPLE_LENGTH = 80


@dataclass(frozen=True)
class Split:
    """Files with one role.

    Attributes:
        key: the configuration key that names them.
        files: their paths.
        columns: what each must have besides `prompt`.
        for_rollouts: whether agent loops run on its rows.
        at_least: rows that one batch takes, with the key that says so.
    """

    key: str
    files: tuple[str, ...]
    columns: tuple[str, ...] = ()
    for_rollouts: bool = True
    at_least: tuple[int, str] = (1, "")


def check_splits(
    splits: Mapping[str, Split], disjoint: Sequence[tuple[str, str]], rows_name_environment: bool
) -> dict[str, int]:
    """Rows per split; ValueError for a file that cannot serve its role or a prompt in both of a `disjoint` pair.

    `rows_name_environment`: whether rows must say which environment they are played in.
    """
    prompts = {name: _read_prompts(split, rows_name_environment) for name, split in splits.items()}
    for name, split in splits.items():
        least, key = split.at_least
        if len(prompts[name]) < least:
            raise ValueError(
                f"{split.key} holds {len(prompts[name])} rows, fewer than one batch of {key or 'a run'}={least}; give "
                "more data or a smaller batch."
            )
    for one, other in disjoint:
        _require_disjoint(splits[one].key, prompts[one], splits[other].key, prompts[other])
    return {name: len(texts) for name, texts in prompts.items()}


def normalised(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The text of a chat prompt without case and spacing, by which two prompts are the same."""
    return " ".join(" ".join(str(message["content"]) for message in prompt).casefold().split())


def shown(row: Mapping[str, Any]) -> str:
    """What a row poses: its normalised prompt, and for images what they are drawn from, for they say nothing by text.

    That is the row's environment options, or its seed where it has none.
    """
    text = normalised(row["prompt"])
    info = row.get("extra_info")
    if IMAGE not in text or not info:
        return text
    options = info.get("options")
    return f"{text} {options}" if options not in (None, "", "{}") else f"{text} seed {info.get('seed')}"


def _read_prompts(split: Split, rows_name_environment: bool) -> list[str]:
    """What every row poses."""
    if not split.files:
        raise ValueError(f"{split.key}=[] names no file; give one or more parquet files.")
    prompts: list[str] = []
    for name in split.files:
        file = _open(split.key, name)
        _check_columns(split, name, file.schema_arrow, rows_name_environment)
        columns = [name for name in ("prompt", "extra_info") if name in file.schema_arrow.names]
        rows = file.read(columns=columns).to_pylist()
        empty = [index for index, row in enumerate(rows) if not row["prompt"] or not row["prompt"][0]["content"]]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(rows)} rows of {name} ({split.key}) have an empty prompt (the first is row "
                f"{empty[0]}); leave them out or fill them."
            )
        prompts += [shown(row) for row in rows]
    return prompts


def _open(key: str, name: str) -> pq.ParquetFile:
    path = Path(name)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{key}={name} {what} (looked in {path.absolute().parent}); give the path of a parquet file, prepare the "
            "data first, or choose a task that makes its own (task=general_points_small)."
        )
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{key}={name} cannot be read as parquet ({reason}); write the file again.") from None


def _check_columns(split: Split, name: str, schema: pa.Schema, rows_name_environment: bool) -> None:
    where = f"{name} ({split.key})"
    missing = [column for column in ("prompt", *split.columns) if column not in schema.names]
    if missing:
        raise ValueError(
            f"{where} has no column {', '.join(missing)}, only {', '.join(schema.names)}; it needs "
            f"{', '.join(('prompt', *split.columns))}."
        )
    for column in {"prompt", "target"} & {"prompt", *split.columns}:
        if not _is_chat(schema.field(column).type):
            raise ValueError(
                f"column {column} of {where} is of type {schema.field(column).type}; it must be a list of messages "
                "{role, content}."
            )
    if split.for_rollouts and rows_name_environment and "agent_name" not in schema.names:
        fields = _struct_fields(schema.field("extra_info").type) if "extra_info" in schema.names else []
        absent = [field for field in ENVIRONMENT_FIELDS if field not in fields]
        if absent:
            raise ValueError(
                f"extra_info of {where} has no {', '.join(absent)}, which the environment agent loop reads; add them, "
                "set amft.task.environment.env_id for all rows, or name another agent loop in a column agent_name."
            )


def _is_chat(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and {"role", "content"} <= set(_struct_fields(kind.value_type))


def _struct_fields(kind: pa.DataType) -> list[str]:
    return [kind.field(index).name for index in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _require_disjoint(key: str, prompts: Sequence[str], other_key: str, other_prompts: Sequence[str]) -> None:
    one, other = set(prompts), set(other_prompts)
    shared = one & other
    if shared:
        example = min(shared)
        example = example if len(example) <= EXAMPLE_LENGTH else example[:EXAMPLE_LENGTH] + "..."
        raise ValueError(
            f"{len(shared)} prompts are both in {key} ({len(one)} distinct) and {other_key} ({len(other)} distinct), "
            f"e.g. {example!r}; training, validation for mu and evaluation must share none: remove them from one side."
        )
