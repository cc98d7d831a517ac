"""The preparation of a data set: read, check, remove duplicates and leaks, draw the splits, grade, report."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.amft.data import hygiene
from recipe.amft.data.records import SourceSplit, open_source
from recipe.amft.data.row_checks import Lengths, Limits, check_lengths, rejected_targets, statistics_of
from recipe.amft.data.rows import SPLITS, BadRow, RowOptions, build_row, require_target, row_id
from recipe.amft.data.sources import BENCHMARKS, SOURCES, how_to_get, is_row, read_row

NAMED_ROWS = 3  # bad rows that an error names

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Everything that a preparation depends on; the command line's options and a configuration's `amft.task.options`.

    Attributes:
        train, validation, test: rows to draw; None: what the source has. A validation or test split that the source has
            not is drawn from its training rows.
        on_bad_row: refuse | drop a row that cannot be used.
        check_targets: grade every demonstration with the reward's own grader.
        tokenizer: a model's folder, for lengths in tokens.
        hygiene_against: files whose prompts must be in neither training nor validation.
    """

    name: str
    source: str
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    on_bad_row: str = "refuse"
    check_targets: bool = True
    tokenizer: str | None = None
    hygiene_against: tuple[str, ...] = ()
    rows: RowOptions = field(default_factory=RowOptions)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_name(self.name, tuple(SOURCES))
        if self.on_bad_row not in ("refuse", "drop"):
            raise ValueError(f"on_bad_row={self.on_bad_row!r} is unknown; choose refuse or drop.")
        for split in SPLITS:
            size = getattr(self, split)
            if size is not None and size < 0:
                raise ValueError(f"{split}={size} is a number of rows; give 0 or more.")
        in_tokens = self.limits.max_prompt_tokens or self.limits.max_target_tokens
        if in_tokens and not self.tokenizer:
            raise ValueError("a limit in tokens needs tokenizer: give the folder of the model to be trained.")


def check_name(name: str, known: tuple[str, ...]) -> None:
    """ValueError for a name that is not known, with the nearest one."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"name={name!r} is unknown{hint}; choose from {', '.join(known)}.")


@dataclass
class BadRows:
    """What was left out: for each kind the rows, named by their place and what is wrong."""

    on_bad_row: str
    by_kind: dict[str, list[str]] = field(default_factory=dict)

    def add(self, place: str, reason: BadRow) -> None:
        self.by_kind.setdefault(reason.kind, []).append(f"{place}: {reason}")

    def check(self, num_rows: int) -> None:
        """ValueError names the first rows of each kind, if bad rows are refused."""
        if not self.by_kind or self.on_bad_row == "drop":
            return
        kinds = "; ".join(
            f"{kind} {len(rows)} ({', '.join(rows[:NAMED_ROWS])}{', ...' if len(rows) > NAMED_ROWS else ''})"
            for kind, rows in self.by_kind.items()
        )
        total = sum(map(len, self.by_kind.values()))
        raise ValueError(
            f"{total} of {num_rows} rows cannot be used: {kinds}. Mend them, or leave them out with on_bad_row=drop "
            "(--on-bad-row drop)."
        )


@dataclass
class Prepared:
    """Rows of each split, and the report about them."""

    splits: dict[str, list[Row]]
    report: dict[str, Any]


def prepare(options: Options) -> Prepared:
    """Read, check, remove duplicates and leaks, draw, grade: the rows and the report; ValueError says what is wrong."""
    source = SOURCES[options.name]
    opened = open_source(options.source, source.splits, source.hub, how_to_get(options.name), source.merge_folders)
    bad = BadRows(options.on_bad_row)
    reader = RowReader(options, bad)
    read = {split: list(reader.rows(split, opened[split])) for split in SPLITS if split in opened}
    bad.check(sum(reader.num_records.values()))
    against = {name: hygiene.keys_of_file(Path(name)) for name in options.hygiene_against}
    pools, duplicates, leaks = clean(read, {name: keys for name, (keys, _) in against.items()})
    splits = divide(pools, options)
    if options.check_targets:
        splits = {split: _accepted(rows, split, bad) for split, rows in splits.items()}
        bad.check(sum(map(len, splits.values())) + len(bad.by_kind.get("rejected_target", [])))
    lengths = {split: token_statistics(rows) for split, rows in splits.items()} if options.tokenizer else {}
    for split, rows in splits.items():
        _finish(split, rows)
    report = {
        "name": options.name,
        "options": dataclasses.asdict(options),
        "sources": {split: part.facts for split, part in opened.items()},
        "records": reader.num_records,
        "other_sources": reader.skipped,
        "bad_rows": {kind: {"count": len(rows), "rows": rows} for kind, rows in sorted(bad.by_kind.items())},
        "duplicates": {split: {"count": found.count, **vars(found)} for split, found in duplicates.items()},
        "hygiene_against": [facts for _, facts in against.values()],
        "leaks": {split: {"count": len(found), "rows": list(map(vars, found))} for split, found in leaks.items()},
        "tokens": lengths,
    }
    return Prepared(splits, report)


class RowReader:
    """Records to rows; bad ones are collected, rows of other sources in the same file are counted and skipped."""

    def __init__(self, options: Options, bad: BadRows):
        self.options = options
        self.bad = bad
        self.lengths = Lengths(options.tokenizer) if options.tokenizer else None
        self.num_records: dict[str, int] = {}
        self.skipped: dict[str, int] = {}

    def rows(self, split: str, records: SourceSplit) -> Iterator[Row]:
        found = 0
        self.num_records[split] = 0
        for place, values in records:
            if isinstance(values, BadRow):
                self.num_records[split] += 1
                self.bad.add(place, values)
                continue
            name = self._source_of(values)
            if name is None:
                self.skipped[str(values["data_source"])] = self.skipped.get(str(values["data_source"]), 0) + 1
                continue
            if not found:
                _check_columns(place, values, self.options.name)
            found += 1
            self.num_records[split] += 1
            try:
                yield self._row(values, name, split)
            except BadRow as reason:
                self.bad.add(place, reason)
        if not self.num_records[split]:
            there = f"; it has {', '.join(self.skipped)}" if self.skipped else ""
            raise ValueError(
                f"source={self.options.source!r} has no row of {self.options.name} for {split}{there}. "
                f"{how_to_get(self.options.name)}"
            )

    def _source_of(self, values: Mapping[str, Any]) -> str | None:
        """The name a record is kept under: this source's, or for `benchmarks` the one that the row itself gives."""
        name = self.options.name
        theirs = str(values.get("data_source", "")) if is_row(values) else ""
        if name == "benchmarks":
            return BENCHMARKS.get(theirs, theirs or name)
        aliases = SOURCES[name].aliases
        return name if not theirs or not aliases or theirs in aliases else None

    def _row(self, values: Mapping[str, Any], name: str, split: str) -> Row:
        source, options = SOURCES.get(name, SOURCES["benchmarks"]), self.options
        if is_row(values):
            problem = read_row(values, source.multiple_choice)
        else:
            assert source.read is not None  # _check_columns has refused the others
            problem = source.read(values, options.rows.style)
        row = build_row(problem, name, split, options.rows)
        if SOURCES[options.name].has_targets:
            require_target(row, options.rows.requires_think)
        tokens = self.lengths(row) if self.lengths else None
        check_lengths(row, options.limits, tokens)
        return row | {"tokens": tokens}


def clean(
    read: Mapping[str, list[Row]], against: Mapping[str, set[str]]
) -> tuple[dict[str, list[Row]], dict[str, hygiene.Duplicates], dict[str, list[hygiene.Leak]]]:
    """Splits without repeats and leaks: test first, then validation, then training."""
    pools: dict[str, list[Row]] = {}
    duplicates, leaks = {}, {}
    elsewhere: dict[str, set[str]] = dict(against)
    for split in reversed(SPLITS):
        if split not in read:
            continue
        rows, duplicates[split] = hygiene.without_duplicates(read[split])
        if split != "test":
            rows, leaks[split] = hygiene.without_leaks(rows, elsewhere)
        elsewhere[split] = {hygiene.key_of(row) for row in rows}
        pools[split] = rows
    return pools, duplicates, leaks


def divide(pools: dict[str, list[Row]], options: Options) -> dict[str, list[Row]]:
    """The splits in their sizes; what the source lacks is drawn from its training rows."""
    pools = dict(pools)
    splits: dict[str, list[Row]] = {}
    for split in reversed(SPLITS):
        size = getattr(options, split)
        pool = split if split in pools else "train"
        if split not in pools and not size:
            continue  # neither there nor asked for
        available = pools.get(pool, [])
        if size is not None and size > len(available):
            raise ValueError(f"{split}={size}, but only {len(available)} rows of {options.source!r} are left for it.")
        splits[split], rest = hygiene.draw(available, len(available) if size is None else size, options.rows.seed)
        pools[pool] = rest if pool == "train" else []
    if pools.get("train") == [] and not splits.get("train") and options.train is None and any(splits.values()):
        drawn = ", ".join(f"{split}={len(rows)}" for split, rows in splits.items() if rows)
        raise ValueError(f"{drawn} leave no row of {options.source!r} for training; ask for fewer, or give train=0.")
    splits = {split: splits[split] for split in SPLITS if splits.get(split)}
    if not splits:
        raise ValueError(f"no row of {options.source!r} is left; see the sizes and limits asked for.")
    return splits


def token_statistics(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Of the prompts, and of the targets where there are any."""
    columns = dict(zip(("prompt", "target"), zip(*(row["tokens"] for row in rows), strict=True), strict=True))
    return {what: statistics_of(lengths) for what, lengths in columns.items() if any(lengths)}


def _check_columns(place: str, values: Mapping[str, Any], name: str) -> None:
    """ValueError for a source of another form: it holds for every row, so that the first one says it."""
    source = SOURCES[name]
    if is_row(values) and (values.get("target") is not None or not source.has_targets):
        return
    missing = [names for names in source.columns if not any(_has(values, column) for column in names)]
    if missing or source.read is None:
        needed = "; ".join(" or ".join(names) for names in source.columns)
        raise ValueError(
            f"{place} has the columns {', '.join(values)}; {name} needs {needed}, or rows with prompt and reward_model"
            f"{' and target' if source.has_targets else ''}. {how_to_get(name)}"
        )


def _has(values: Mapping[str, Any], column: str) -> bool:
    return column.casefold() in (str(name).casefold() for name in values)


def _accepted(rows: list[Row], split: str, bad: BadRows) -> list[Row]:
    rejected = rejected_targets(rows, split)
    for index, reason in rejected.items():
        bad.add(row_id(rows[index]), BadRow("rejected_target", reason))
    return [row for index, row in enumerate(rows) if index not in rejected]


def _finish(split: str, rows: list[Row]) -> None:
    """Number the rows; without any demonstration the column goes."""
    ids = {row_id(row) for row in rows}
    if len(ids) < len(rows):
        raise ValueError(f"{len(rows) - len(ids)} rows of {split} share an id with another: the source's ids repeat.")
    has_targets = any(row["target"] for row in rows)
    for index, row in enumerate(rows):
        row["extra_info"] |= {"split": split, "index": index}
        del row["tokens"]
        if not has_targets:
            del row["target"]
