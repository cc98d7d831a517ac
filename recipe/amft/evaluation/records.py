"""The output folder of an evaluation: every sample as it ends, so that a killed evaluation goes on where it was.

evaluation.json   what is evaluated and how (the settings that decide the samples), versions, command
parts/            samples that have ended, in files that are written whole
records.parquet   all samples, when all have ended; the parts are then removed
summary.md, summary.json
engine.log        what vLLM and its processes print
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.amft.data.general_points import write_parquet
from recipe.amft.evaluation.settings import Benchmark
from recipe.amft.run_folder import identity

IDENTITY, RECORDS, PARTS, LOCK, LOG = "evaluation.json", "records.parquet", "parts", ".lock", "engine.log"
SUMMARIES = ("summary.md", "summary.json")
FORMAT = 1  # of the records: part of the settings, so that old parts are not mixed with new ones

Record = dict[str, Any]
Key = tuple[str, str, int]  # benchmark, row_id, sample

COLUMNS: dict[str, pa.DataType] = {
    "benchmark": pa.string(),
    "row_id": pa.string(),
    "sample": pa.int32(),
    "success": pa.bool_(),
    "reward": pa.float64(),
    "verdict": pa.string(),  # of the last answer
    "stop_reason": pa.string(),  # episodes.STOP_REASONS
    "turns": pa.int32(),
    "num_tokens": pa.int32(),  # that the model wrote
    "num_timeouts": pa.int32(),  # of graders
    "error": pa.string(),
    "prompt": pa.string(),  # the first one, as the model saw it
    "texts": pa.list_(pa.string()),  # the model's answers
    "observations": pa.list_(pa.string()),  # the environment's messages between them
    "token_ids": pa.list_(pa.int32()),  # of all answers
    "turn_lengths": pa.list_(pa.int32()),  # tokens of each answer
    "info": pa.string(),  # the environment's last, JSON
}


def schema(benchmarks: Sequence[Benchmark]) -> pa.Schema:
    """The columns of the records; judges and metrics of the benchmarks add some (null where a benchmark lacks them)."""
    columns = dict(COLUMNS)
    for benchmark in benchmarks:
        for judge in benchmark.judge_again:
            columns |= {f"success_{judge}": pa.bool_(), f"verdict_{judge}": pa.string()}
        for metric, weight in benchmark.metrics.items():
            columns |= {name: pa.float64() for name in (metric, weight) if name is not None}
    return pa.schema(list(columns.items()))


class EvaluationFolder:
    """Owns one directory, alone: a second process that opens it is refused.

    Args:
        path: the directory.
        settings: everything that decides what the samples are; another folder content is refused.
        columns: of the records.
        overwrite: delete what an earlier evaluation left in it.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], columns: pa.Schema, overwrite: bool = False
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings}))
        self.columns = columns
        self.overwrite = overwrite
        self.done: set[Key] = set()
        self._pending: list[Record] = []
        self._num_parts = 0
        self._lock: Any = None

    def check(self) -> None:
        """ValueError when the folder holds something that this evaluation must not touch."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"out={self.path} is a file; give a folder.")
        names = {entry.name for entry in self.path.iterdir()} - {LOCK}
        if names and IDENTITY not in names:
            raise ValueError(
                f"out={self.path} was not made by an evaluation (it has no {IDENTITY}), so it is not touched; choose "
                "another out."
            )
        if IDENTITY in names and not self.overwrite:
            found = json.loads((self.path / IDENTITY).read_text())["settings"]
            changed = sorted(differences(found, self.settings))
            if changed:
                raise ValueError(
                    f"out={self.path} holds an evaluation with other settings ({'; '.join(changed[:5])}); choose "
                    "another out, or replace it with overwrite=true."
                )

    def open(self) -> None:
        """Take the folder and find the samples that have ended."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._take()
        self.check()
        if self.overwrite:
            for name in (RECORDS, *SUMMARIES, LOG, IDENTITY):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / PARTS, ignore_errors=True)
        if not (self.path / IDENTITY).exists():
            content = {"settings_hash": settings_hash(self.settings), "settings": self.settings, **identity()}
            write_text(self.path / IDENTITY, json.dumps(content, indent=1) + "\n")
        self._num_parts = 1 + max((int(path.stem) for path in self._parts()), default=-1)
        keys = ["benchmark", "row_id", "sample"]
        for path in self._sources():
            columns = pq.read_table(path, columns=keys).to_pydict()
            self.done |= set(zip(*(columns[key] for key in keys), strict=True))

    def add(self, record: Record) -> None:
        """Keep a sample; it is on disk after the next `flush`."""
        missing = set(self.columns.names) ^ set(record)
        assert not missing, f"columns {missing}"
        self._pending.append(record)
        self.done.add((record["benchmark"], record["row_id"], record["sample"]))

    def flush(self) -> None:
        """Write what was added since the last time as one part."""
        if self._pending:
            write_parquet(self._pending, self.path / PARTS / f"{self._num_parts:06d}.parquet")
            self._num_parts += 1
            self._pending = []

    def complete(self) -> Path:
        """Join the parts, sorted by benchmark, row and sample; returns the path of the records."""
        self.flush()
        target = self.path / RECORDS
        if not target.exists():
            # An empty list in a part has no type of its own, hence the cast.
            parts = [pq.read_table(path).select(self.columns.names).cast(self.columns) for path in self._parts()]
            table = pa.concat_tables(parts).sort_by([(name, "ascending") for name in ("benchmark", "row_id", "sample")])
            unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            pq.write_table(table, unfinished, row_group_size=4096)
            os.replace(unfinished, target)
        shutil.rmtree(self.path / PARTS, ignore_errors=True)
        return target

    def close(self) -> None:
        """Write what is pending and give the folder up."""
        if self._lock is not None:
            self.flush()
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        self._lock = (self.path / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise ValueError(f"out={self.path} is in use by another evaluation; choose another out, or wait.") from None
        except OSError:
            pass  # a file system without locks: nobody is kept out

    def _parts(self) -> list[Path]:
        return sorted((self.path / PARTS).glob("[0-9]*.parquet"))

    def _sources(self) -> Iterator[Path]:
        if (self.path / RECORDS).exists():
            yield self.path / RECORDS
        else:
            yield from self._parts()


def settings_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def differences(found: Any, asked: Any, path: str = "") -> Iterator[str]:
    """The leaves in which two trees differ, as "key: found, now asked"."""
    if isinstance(found, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*found, *asked}):
            yield from differences(found.get(key), asked.get(key), f"{path}.{key}" if path else str(key))
    elif found != asked:
        yield f"{path}: {_short(found)}, now {_short(asked)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_text(path: Path, text: str) -> None:
    """Writes `text` so that `path` never holds half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
