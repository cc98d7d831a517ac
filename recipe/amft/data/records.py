"""Records of a source, as it lies on disk or on the Hugging Face hub: one dict per line or row, with its place."""

import csv
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.amft.data.rows import BadRow

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".csv")
HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<config>[\w.-]+))?")
LONGEST_FIELD = 10**7

Record = tuple[str, dict[str, Any] | BadRow]  # (where it stands, values)


@dataclass
class SourceSplit:
    """One split of a source; iterate for its records. `facts` (name, sha256) go into the report."""

    files: tuple[Path, ...] = ()
    dataset: Any = None  # of the `datasets` package, for a hub id
    hub: str = ""
    facts: list[dict[str, Any]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Record]:
        if self.dataset is not None:
            for index, values in enumerate(self.dataset):
                yield f"{self.hub}:{index}", dict(values)
        for file in self.files:
            yield from read_records(file)


def open_source(
    source: str, splits: Mapping[str, str], hub_default: str, download: str, merge_folders: bool = False
) -> dict[str, SourceSplit]:
    """Our splits of `source`: a file, a folder, `hub` (for `hub_default`), its id, or `hub:owner/name[:config]`.

    `splits` maps our name of a split to the source's. A file, or a folder with one data file, is its first split. With
    `merge_folders` the files of a split may lie in several sub-folders (one per subject).
    ValueError says what was looked for, and how to get it (`download`).
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {next(iter(splits)): local_split((path,))}
    if path.is_dir():
        return _open_folder(path, splits, merge_folders)
    hub = _hub_id(source, hub_default)
    if hub is None:
        raise ValueError(
            f"source={source!r} does not exist (looked for {path.absolute()}); a data set of the hub is written "
            f"hub:owner/name{f', or hub for {hub_default}' if hub_default else ''}. {download}"
        )
    match = HUB.fullmatch(hub)
    assert match is not None
    return _open_hub(match["name"], match["config"], splits, download)


def local_split(files: tuple[Path, ...]) -> SourceSplit:
    for file in files:
        if suffix_of(file) not in SUFFIXES:
            raise ValueError(f"{file} is of an unknown kind; give a file that ends in {', '.join(SUFFIXES)}.")
    return SourceSplit(files, facts=[{"file": file.name, "sha256": sha256_of(file)} for file in files])


def suffix_of(file: Path) -> str:
    """What tells the kind of a file: one of SUFFIXES, else whatever it ends in."""
    return next((suffix for suffix in SUFFIXES if file.name.endswith(suffix)), file.suffix)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_records(file: Path) -> Iterator[Record]:
    """(place, values) per row; an unreadable line is a BadRow, an unreadable file a ValueError."""
    suffix = suffix_of(file)
    if suffix == ".parquet":
        rows: Iterator[Any] = _read_parquet(file)
    elif suffix in (".jsonl", ".jsonl.gz"):
        yield from _read_lines(file)
        return
    elif suffix == ".csv":
        csv.field_size_limit(LONGEST_FIELD)
        try:
            rows = csv.DictReader(file.read_text("utf-8-sig").splitlines(keepends=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not in UTF-8 ({error}); write it again in UTF-8.") from None
    else:
        rows = iter(_read_json(file))
    for index, values in enumerate(rows):
        yield f"{file.name}:{index}", _as_dict(values)


def _read_lines(file: Path) -> Iterator[Record]:
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file.name}:{number}", _read_line(line)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read ({error}); fetch or write the file again.") from None


def _read_line(line: str) -> dict[str, Any] | BadRow:
    try:
        return _as_dict(json.loads(line))
    except (ValueError, RecursionError) as error:
        return BadRow("unreadable", f"it is not JSON ({error})")


def _read_json(file: Path) -> list[Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); write it again, or give a jsonl or parquet file.") from None
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds a JSON {type(rows).__name__}; a list of objects is needed.")
    return rows


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{file} cannot be read as parquet ({reason}); fetch or write the file again.") from None


def _as_dict(values: Any) -> dict[str, Any] | BadRow:
    if isinstance(values, dict):
        return values
    return BadRow("unreadable", f"it is a JSON {type(values).__name__}, not an object")


def _open_folder(folder: Path, splits: Mapping[str, str], merge_folders: bool) -> dict[str, SourceSplit]:
    """Files whose name starts with the split's (train.jsonl, train-00000-of-00002.parquet), in the folder or below."""
    data = [path for path in sorted(folder.rglob("*")) if _is_data(path.relative_to(folder))]
    found = {}
    for split, name in splits.items():
        starts = re.compile(rf"{re.escape(name)}(?![a-z])", re.IGNORECASE)
        files = tuple(path for path in data if starts.match(path.name))
        folders = sorted({path.parent.relative_to(folder).as_posix() for path in files})
        if len(folders) > 1 and not merge_folders:
            raise ValueError(
                f"source={str(folder)!r} has {name} files in several folders ({', '.join(folders)}), which may be "
                "versions of one data set; give one of them."
            )
        if files:
            found[split] = local_split(files)
    if not found and len(data) == 1:
        return {next(iter(splits)): local_split((data[0],))}
    if not found:
        names = ", ".join(path.relative_to(folder).as_posix() for path in data[:8]) or "none"
        wanted = ", ".join(f"{name}.jsonl or {name}*.parquet" for name in splits.values())
        raise ValueError(f"source={str(folder)!r} holds no {wanted}; its data files: {names}. Give one file's path.")
    return found


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return suffix_of(path) in SUFFIXES and path.name != "report.json" and not hidden


def _hub_id(source: str, default: str) -> str | None:
    """`owner/name[:config]`; without `hub:` only the known id is one: any other may be a path that is missing."""
    if default and source in ("hub", default, default.partition(":")[0]):
        return default
    explicit = source.removeprefix("hub:")
    return explicit if explicit != source and HUB.fullmatch(explicit) else None


def _open_hub(name: str, config: str | None, splits: Mapping[str, str], download: str) -> dict[str, SourceSplit]:
    import datasets

    print(f"fetching {name} from the hub", file=sys.stderr)
    try:
        available = datasets.get_dataset_split_names(name, config)
        opened = {
            split: datasets.load_dataset(name, config, split=theirs)
            for split, theirs in splits.items()
            if theirs in available
        }
    except Exception as error:  # whatever the network, the hub's permissions or the data set's script raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} is no file or folder here and cannot be fetched from the hub ({reason}). {download}"
        ) from None
    if not opened:
        raise ValueError(f"{name} has the splits {', '.join(available)}, none of {', '.join(splits.values())}.")
    return {
        split: SourceSplit(dataset=dataset, hub=f"{name}/{split}", facts=[_hub_facts(name, config, dataset)])
        for split, dataset in opened.items()
    }


def _hub_facts(name: str, config: str | None, dataset: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    for values in dataset:
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    return {"hub": name, "config": config, "sha256": digest.hexdigest()}
