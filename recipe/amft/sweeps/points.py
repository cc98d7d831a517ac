"""A sweep file and a scale -> cells, and the points (runs) behind each.

A file of configs/sweep lists the rows and columns (or panels) of one table or figure. A row holds the Hydra overrides
of its runs, a column the domain and where its number is read. configs/scale/settings.yaml says which configuration a
domain is at a scale. The overrides of a cell are those of `hydra.sweeper.params`: commas sweep, and the product is
taken as `--multirun` takes it. Equal overrides are one point, whichever table asks for it, so its run is shared.
"""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[3] / "configs"
SCALES = ("paper", "single_node", "micro")
ROW_KEYS = ("base", "at", "missing", "beside")  # the other keys of a row are overrides
READ_KEYS = ("suite", "benchmark", "average", "metric", "at", "target", "count", "percent", "against", "log")
COLUMN_KEYS = ("domain", "missing", "overrides", "rows", *READ_KEYS)
# Overrides that say where and how fast a run goes, and not what it computes: they do not make another point.
INDIFFERENT = ("ray_kwargs.", "amft.cache_dir", "amft.gpu_memory_gib", "amft.limits.", "trainer.logger")


@dataclass(frozen=True)
class Point:
    """One run, or with `method` None the evaluation of a base model.

    Attributes:
        overrides: of recipe.amft.main, `seed` last; without the run folder.
        method: of the run.
        seed: its number.
        folder: of the run, relative to the folder of all runs: a function of the overrides.
    """

    overrides: tuple[str, ...]
    method: str | None
    seed: int
    folder: str


@dataclass(frozen=True)
class Cell:
    """A number (or curve) of a table (or figure).

    Attributes:
        read: where it stands in a run folder (reporting/reading.py).
        points: the runs that it is the mean of, one a seed.
        missing: why it cannot be run; None when it can.
        beside: the row of the paper that it stands beside.
    """

    row: str
    column: str
    read: Mapping[str, Any]
    points: tuple[Point, ...]
    missing: str | None
    beside: str


@dataclass(frozen=True)
class Sweep:
    """One table or figure at one scale."""

    name: str
    scale: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    is_figure: bool
    stand_ins: Mapping[str, str] = field(default_factory=dict)  # domain -> what takes its place at this scale

    def points(self) -> dict[Point, tuple[str, ...]]:
        """Every point once, in the order of the rows, seed by seed; with the suites that its cells read."""
        suites: dict[Point, list[str]] = {}
        for cell in self.cells:
            for point in cell.points:
                wanted = suites.setdefault(point, [])
                if "suite" in cell.read and cell.read["suite"] not in wanted:
                    wanted.append(cell.read["suite"])
        return {point: tuple(suites[point]) for point in sorted(suites, key=lambda point: point.seed)}

    def missing(self) -> dict[str, list[str]]:
        """Reason -> the cells ("row / column") that cannot be run."""
        reasons: dict[str, list[str]] = {}
        for cell in self.cells:
            if cell.missing is not None:
                reasons.setdefault(cell.missing, []).append(f"{cell.row} / {cell.column}")
        return reasons


def names() -> list[str]:
    """Of the sweeps, in the order of the papers."""

    def order(name: str) -> tuple[str, str, int]:
        paper, place = name.split("_")
        kind = place.rstrip("0123456789")
        return paper, {"table": "0"}.get(kind, kind), int(place.removeprefix(kind))

    return sorted((path.stem for path in (CONFIGS / "sweep").glob("*.yaml")), key=order)


def load(
    name: str,
    scale: str,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
) -> Sweep:
    """The sweep with `overrides` on every run; `seeds` and `rows` in place of the file's. ValueError: unknown name."""
    if name not in names():
        raise ValueError(f"{name} is no sweep; choose {', '.join(names())}.")
    if scale not in SCALES:
        raise ValueError(f"scale={scale} is unknown; choose {', '.join(SCALES)}.")
    content, settings = read_yaml(CONFIGS / "sweep" / f"{name}.yaml"), read_yaml(CONFIGS / "scale" / "settings.yaml")
    is_figure = "panels" in content
    columns = content["panels" if is_figure else "columns"]
    chosen = list(content["rows"]) if rows is None else [row for row in content["rows"] if row in rows]
    if not chosen:
        raise ValueError(f"{name} has none of the rows {list(rows or ())}; it has {', '.join(content['rows'])}.")
    asked = str(content["seeds"]) if seeds is None else ",".join(map(str, seeds))
    cells = [
        _cell(row, content["rows"][row], column, columns[column], scale, settings[scale], (asked, overrides), is_figure)
        for row, column in itertools.product(chosen, columns)
        if row in columns[column].get("rows", chosen)
    ]
    domains = {column.get("domain") for column in columns.values()} - {None}
    stand_ins = {item: settings[scale][item]["stand_in"] for item in domains if "stand_in" in settings[scale][item]}
    return Sweep(name, scale, tuple(chosen), tuple(columns), tuple(cells), is_figure, stand_ins)


def _cell(
    row: str,
    row_values: Mapping[str, Any],
    column: str,
    column_values: Mapping[str, Any],
    scale: str,
    settings: Mapping[str, Any],
    asked: tuple[str, Sequence[str]],
    is_figure: bool,
) -> Cell:
    """A row's entry for a scale is laid over the row (null removes a key), a column's replaces all but its domain."""
    row_values = _without_scales(row_values) | row_values.get(scale, {})
    own = column_values.get(scale)
    column_values = _without_scales(column_values if own is None else {"domain": column_values.get("domain"), **own})
    unknown = set(column_values) - set(COLUMN_KEYS)
    if unknown:
        raise ValueError(f"column {column!r} has the unknown keys {sorted(unknown)}; known: {', '.join(COLUMN_KEYS)}.")
    domain = settings.get(column_values.get("domain") or "", {})
    missing = row_values.get("missing") or column_values.get("missing") or domain.get("missing")
    read = {key: column_values[key] for key in READ_KEYS if key in column_values}
    if "at" in row_values and "count" not in read and ("metric" in read or is_figure):
        read["at"] = row_values["at"]
    if row_values.get("base") and missing is None and "suite" not in read:
        missing = "a base model is not trained"
    beside = row_values.get("beside", row)
    if missing is not None:
        return Cell(row, column, read, (), missing, beside)
    own_overrides = {key: value for key, value in row_values.items() if key not in ROW_KEYS and value is not None}
    seeds, extra = asked
    if row_values.get("base"):
        seeds = seeds.split(",")[0]
    params = own_overrides | column_values.get("overrides", {})
    points = points_of(params, scale, column_values["domain"], extra, seeds)
    return Cell(row, column, read, tuple(points), None, beside)


def _without_scales(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in SCALES}


def points_of(params: Mapping[str, Any], scale: str, domain: str, extra: Sequence[str], seeds: str) -> Iterable[Point]:
    """The runs with overrides `params` and then `extra`, one for each of `seeds` ("0,1,2"), of a domain at a scale."""
    settings = read_yaml(CONFIGS / "scale" / "settings.yaml")[scale][domain]
    needed = settings.get("methods", {}).get(params.get("method"), {})
    given = [f"{key}={value}" for key, value in {"scale": settings["config"], **needed, **params}.items()]
    for overrides in expand((*given, *extra, f"seed={seeds}")):
        values = dict(item.split("=", 1) for item in overrides)
        yield Point(tuple(overrides), values.get("method"), int(values["seed"]), folder_of(values))


@cache
def expand(overrides: tuple[str, ...]) -> tuple[list[str], ...]:
    """The product of the sweeps among `overrides`, by Hydra's grammar; a later value of a key replaces an earlier."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if override.is_sweep_override():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
    return tuple(list(items) for items in itertools.product(*choices.values()))


def folder_of(values: Mapping[str, str]) -> str:
    """SCALE/CONFIG/METHOD-DIGEST-sSEED; the digest is that of every override that decides what a run computes."""
    decides = {
        key: value
        for key, value in values.items()
        if key not in ("scale", "method", "seed") and not key.lstrip("+~").startswith(INDIFFERENT)
    }
    digest = hashlib.sha256(repr(sorted(decides.items())).encode()).hexdigest()[:8]
    return f"{values['scale']}/{values.get('method', 'base')}-{digest}-s{values['seed']}"


@cache
def read_yaml(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values
