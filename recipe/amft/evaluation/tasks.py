"""The rows of a benchmark: which environment poses each, checked before anything is started."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.amft.evaluation.settings import Benchmark
from recipe.amft.prepare import make_once

COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")


@dataclass(frozen=True)
class Task:
    """One row: what `make_environment` and `reset` get."""

    benchmark: str
    row_id: str
    env_id: str
    env_kwargs: Mapping[str, Any]
    seed: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class BenchmarkTasks:
    """The tasks of a benchmark, and digests of the files that they were read from."""

    benchmark: Benchmark
    tasks: tuple[Task, ...]
    digests: Mapping[str, str]


def read_benchmark(benchmark: Benchmark, data_dir: str, cache_dir: str) -> BenchmarkTasks:
    """Reads the files (makes them first where the benchmark says how); ValueError names a file or row and the fix."""
    folder = _folder(benchmark, data_dir, cache_dir)
    paths = [folder / name for name in benchmark.files]
    digests, tasks = {}, []
    for path in paths:
        rows = _read(path, benchmark)
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        if benchmark.data_source is not None:
            sources = {str(row.get("data_source")) for row in rows}
            rows = [row for row in rows if row.get("data_source") == benchmark.data_source]
            if not rows:
                raise ValueError(
                    f"{path} has no row of data_source {benchmark.data_source!r}, only of "
                    f"{', '.join(sorted(sources))}; {_advice(benchmark)}"
                )
        tasks += [_task(row, benchmark, f"row {index} of {path}") for index, row in enumerate(rows)]
    tasks = tasks[: benchmark.limit]
    _check_unique(tasks, benchmark)
    return BenchmarkTasks(benchmark, tuple(tasks), digests)


def _folder(benchmark: Benchmark, data_dir: str, cache_dir: str) -> Path:
    if benchmark.make is None:
        return Path(data_dir).expanduser()
    recipe = {"make": benchmark.make, "options": dict(benchmark.options)}
    try:
        return make_once(recipe, Path(cache_dir))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the data of suite.benchmarks.{benchmark.name} cannot be made ({type(error).__name__}: {error}); change "
            "its options."
        ) from None


def _advice(benchmark: Benchmark) -> str:
    how = f"prepare it: {benchmark.prepare}" if benchmark.prepare else "docs/data.md says how to prepare it"
    key = f"suite.benchmarks.{benchmark.name}"
    return f"{how}; or name other files ('++{key}.files=[...]', data_dir=DIR), or leave it out ('~{key}')."


def _read(path: Path, benchmark: Benchmark) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(
            f"{path} of suite.benchmarks.{benchmark.name} does not exist (looked for {path.absolute()}); "
            f"{_advice(benchmark)}"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} cannot be read as parquet ({reason}); write the file again.") from None
    if "extra_info" not in table.column_names:
        raise ValueError(f"{path} has no column extra_info, only {', '.join(table.column_names)}; see docs/data.md.")
    rows: list[dict[str, Any]] = table.select([name for name in COLUMNS if name in table.column_names]).to_pylist()
    if not rows:
        raise ValueError(f"{path} has no rows; {_advice(benchmark)}")
    return rows


def _task(row: Mapping[str, Any], benchmark: Benchmark, place: str) -> Task:
    """The task of one row; a row without env_id (a plain OpenR1 file) is posed by the benchmark's environment."""
    info = row.get("extra_info") or {}
    row_id = str(info.get("id") or f"{info.get('split', '?')}/{info.get('index', '?')}")
    env_id = info.get("env_id") or benchmark.env_id
    if not env_id:
        raise ValueError(
            f"{place} names no environment (extra_info.env_id); prepare the file (docs/data.md), or say which one "
            f"poses it: ++suite.benchmarks.{benchmark.name}.env_id=math."
        )
    kwargs = {**_json(info.get("env_kwargs"), place, "env_kwargs"), **benchmark.env_kwargs}
    if info.get("env_id"):
        return Task(benchmark.name, row_id, env_id, kwargs, int(info["seed"]), _json(info["options"], place, "options"))
    truth = (row.get("reward_model") or {}).get("ground_truth")
    if truth is None or not row.get("prompt"):
        raise ValueError(f"{place} has no prompt or no reward_model.ground_truth; prepare the file (docs/data.md).")
    options = {"prompt": [dict(message) for message in row["prompt"]], "ground_truth": str(truth)}
    return Task(benchmark.name, row_id, env_id, kwargs, 0, options)


def _json(text: str | None, place: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"extra_info.{name} of {place} is not JSON ({error}); write the file again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"extra_info.{name} of {place} is a JSON {type(value).__name__}; an object is needed.")
    return value


def _check_unique(tasks: Sequence[Task], benchmark: Benchmark) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.row_id in seen:
            raise ValueError(
                f"suite.benchmarks.{benchmark.name} has two rows with the id {task.row_id!r}; each prompt must stand "
                "once (samples=k asks for k samples of it): prepare the file (docs/data.md), which removes repeats."
            )
        seen.add(task.row_id)
