"""Pictures of tables and figures: matplotlib figures, and what the curves of a sweep are."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from recipe.amft.reporting.estimates import Interval, over_seeds
from recipe.amft.reporting.papers import number
from recipe.amft.reporting.reading import factor, read_metrics, series
from recipe.amft.reporting.tables import NOT_AVAILABLE, Table
from recipe.amft.run_folder import FINISHED
from recipe.amft.sweeps.execution import TOKEN_PROBABILITIES
from recipe.amft.sweeps.points import Cell, Sweep
from recipe.amft.sweeps.states import EVALUATION

COLOURS = [f"C{index}" for index in range(10)]  # of matplotlib's own cycle
# A sweep's page shows these of every row, whatever its table reads.
PAGE_PANELS = (
    ("Held-out success (%)", "val/success"),
    ("Weight of imitation mu", "controller/mu"),
    ("Entropy H (nats per token)", "controller/entropy"),
    ("cos(g_SFT, g_RL)", "rl/cosine"),
)


@dataclass(frozen=True)
class Curve:
    """One row in one panel: (x, mean and interval over the seeds that measured it there) by step.

    Attributes:
        points: (step, x, y): x is the step, or the mean of the panel's `against`.
        num_runs, num_asked: runs that are in it, and that the sweep lists.
        missing: why it cannot be drawn.
    """

    row: str
    panel: str
    points: tuple[tuple[int, float, Interval], ...]
    num_runs: int
    num_asked: int
    missing: str | None = None


def read_curves(sweep: Sweep, runs: Path) -> tuple[Curve, ...]:
    """The curves of a figure from its finished runs."""
    return tuple(curve_of(cell, runs) for cell in sweep.cells)


def curve_of(cell: Cell, runs: Path) -> Curve:
    if cell.missing is not None:
        return Curve(cell.row, cell.column, (), 0, 0, cell.missing)
    folders = [runs / point.folder for point in cell.points]
    if cell.read.get("suite") == TOKEN_PROBABILITIES:
        found = [share for share in (shares(folder, cell.read.get("at", "last")) for folder in folders) if share]
        points = tuple(
            (index, (index + 0.5) / len(found[0]), over_seeds(values))
            for index, values in enumerate(zip(*found, strict=True))
        )
        return Curve(cell.row, cell.column, points, len(found), len(folders))
    finished = [read_metrics(folder) for folder in folders if (folder / FINISHED).exists()]
    metric, against = cell.read["metric"], cell.read.get("against")
    return Curve(cell.row, cell.column, mean_curve(finished, metric, against), len(finished), len(folders))


def shares(folder: Path, at: str) -> list[float]:
    """Percent of the demonstrations' tokens in each bin of probability, `at` the start or the end; empty: not there."""
    path = folder / EVALUATION / TOKEN_PROBABILITIES / "summary.json"
    if not path.exists():
        return []
    counts = json.loads(path.read_text())["counts"][at]
    return [100.0 * count / sum(counts) for count in counts]


def mean_curve(
    runs: Sequence[Sequence[Mapping[str, Any]]], metric: str, against: str | None = None
) -> tuple[tuple[int, float, Interval], ...]:
    """(step, x, interval of the metric) at every step that some run measured, in the order of steps."""
    values: dict[int, list[float]] = {}
    others: dict[int, list[float]] = {}
    for rows in runs:
        for step, value in zip(*series(rows, metric), strict=True):
            values.setdefault(step, []).append(value * factor(metric))
        for step, value in zip(*series(rows, against), strict=True) if against else ():
            others.setdefault(step, []).append(value)
    steps = sorted(step for step in values if against is None or step in others)
    return tuple(
        (step, float(step) if against is None else over_seeds(others[step]).mean, over_seeds(values[step]))
        for step in steps
    )


def curves_csv(curves: Sequence[Curve]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "panel", "step", "x", "mean", "low", "high", "num_runs"))
    for curve in curves:
        for step, x, value in curve.points:
            bounds = ["" if bound is None else f"{bound:.6g}" for bound in (value.low, value.high)]
            line = (curve.row, curve.panel, step, f"{x:.6g}", f"{value.mean:.6g}", *bounds, value.num_values)
            writer.writerow(line)
    return out.getvalue()


def curve_figure(
    curves: Sequence[Curve], against: Mapping[str, str] | None = None, logarithmic: Sequence[str] = ()
) -> Figure:
    """One panel a title, one line a row with its interval over seeds; a panel without a curve says so.

    `against` names what is on the x axis of a panel that has no steps there; `logarithmic` panels have such a y axis.
    """
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    rows = list(dict.fromkeys(curve.row for curve in curves))
    figure, axes = _grid(len(panels), width=5.0, height=3.6)
    for axis, panel in zip(axes, panels, strict=True):
        shown = [curve for curve in curves if curve.panel == panel]
        for curve in shown:
            if not curve.points:
                continue
            colour = COLOURS[rows.index(curve.row) % len(COLOURS)]
            x = [point[1] for point in curve.points]
            y = [point[2].mean for point in curve.points]
            marker = "o" if len(x) <= 40 else None
            axis.plot(x, y, label=curve.row, color=colour, marker=marker, markersize=3, linewidth=1.4)
            band = [point for point in curve.points if point[2].half is not None]
            if band and not (against or {}).get(panel):
                lows, highs = [point[2].low for point in band], [point[2].high for point in band]
                axis.fill_between([point[1] for point in band], lows, highs, color=colour, alpha=0.12, linewidth=0)
        if not any(curve.points for curve in shown):
            reason = next((curve.missing for curve in shown if curve.missing), "not run")
            axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes, fontsize=8, wrap=True)
        if panel in logarithmic and any(curve.points for curve in shown):
            axis.set_yscale("log")
        axis.set_title(panel, fontsize=10)
        if not (against or {}).get(panel):
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel((against or {}).get(panel) or "step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), fontsize=8
        )
    return figure


def table_figure(table: Table) -> Figure:
    """One panel a column that can be run: the paper's value as a ring, ours as a dot with its interval."""
    columns = [
        column
        for column in table.sweep.columns
        if any(table.entry(row, column).status != NOT_AVAILABLE for row in table.sweep.rows)
    ] or list(table.sweep.columns)
    rows = list(table.sweep.rows)
    figure, axes = _grid(len(columns), width=4.2, height=1.0 + 0.26 * len(rows), sharey=True)
    for axis, column in zip(axes, columns, strict=True):
        for index, row in enumerate(rows):
            entry = table.entry(row, column)
            paper = number(entry.paper)
            if paper is not None:
                axis.plot(paper, index, "o", color="grey", fillstyle="none", label="paper")
            if entry.ours is not None:
                axis.errorbar(
                    entry.ours.mean, index, xerr=entry.ours.half, fmt="o", color=COLOURS[0], capsize=2, label="ours"
                )
            else:
                place = ((1.02, index), ("axes fraction", "data"))
                axis.annotate(entry.status, place[0], xycoords=place[1], va="center", fontsize=7, color="grey")
        axis.set_title(column, fontsize=10)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _grid(count: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, list[Any]]:
    """`count` axes, up to four (two rows: three) in a line."""
    across = count if count <= 4 else 4 if count > 6 else 3
    down = -(-count // across)
    size = (width * across, height * down + 0.4)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained", sharey=sharey)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF, without the date: the same runs make the same files."""
    figure.savefig(path.with_suffix(".png"), dpi=120)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    plt.close(figure)


def as_svg(figure: Figure, salt: str) -> str:
    """The <svg> element, to stand in an HTML page; `salt` keeps the ids of two figures of one page apart."""
    out = io.StringIO()
    with plt.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
