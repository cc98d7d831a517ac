"""A table of a paper beside ours: entries from run folders, written as Markdown, CSV, LaTeX and a picture."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.amft.reporting.estimates import Interval, over_seeds
from recipe.amft.reporting.papers import Printed, decimals, number
from recipe.amft.reporting.reading import read_number
from recipe.amft.run_folder import IDENTITY
from recipe.amft.sweeps.points import Cell, Sweep

MEASURED, PARTIAL, NOT_RUN, NOT_REACHED, NOT_AVAILABLE = "measured", "partial", "not run", "not reached", "n/a"
CSV_COLUMNS = (
    "row", "column", "paper", "ours", "low", "high", "difference", "decimals", "status", "seeds", "values", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One cell.

    Attributes:
        paper: as printed; None where the paper has none.
        ours: over the seeds that have been run; None when there is no number.
        values: (seed, number) of each run that has one.
        status: MEASURED (all seeds), PARTIAL, NOT_RUN, NOT_REACHED (a target, by some seed) or NOT_AVAILABLE.
        reason: why it is not available, or what is partial.
        digits: decimals to print.
    """

    row: str
    column: str
    paper: str | None
    ours: Interval | None
    values: tuple[tuple[int, float], ...]
    status: str
    reason: str
    digits: int

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        paper = number(self.paper)
        return None if self.ours is None or paper is None else self.ours.mean - paper


@dataclass(frozen=True)
class Table:
    """All entries, with what a reader has to know about them."""

    printed: Printed
    sweep: Sweep
    entries: tuple[Entry, ...]
    dates: tuple[str, ...]  # first and last day on which a run of it started; empty without a run

    def entry(self, row: str, column: str) -> Entry:
        return next(entry for entry in self.entries if (entry.row, entry.column) == (row, column))

    @property
    def columns(self) -> list[str]:
        """Those of the sweep in which there can be a number of ours at this scale; all where there is none."""
        missing = {entry.column for entry in self.entries} - {
            entry.column for entry in self.entries if entry.status != NOT_AVAILABLE
        }
        return [column for column in self.sweep.columns if column not in missing] or list(self.sweep.columns)


def read_table(sweep: Sweep, paper: Printed, runs: Path) -> Table:
    """The entries of `sweep` from the run folders under `runs`."""
    entries = tuple(_entry(cell, paper, runs) for cell in sweep.cells)
    return Table(paper, sweep, entries, run_dates(sweep, runs))


def _entry(cell: Cell, paper: Printed, runs: Path) -> Entry:
    text = paper.value(cell.beside, cell.column)
    digits = decimals(text)
    if cell.missing is not None:
        return Entry(cell.row, cell.column, text, None, (), NOT_AVAILABLE, cell.missing, digits)
    found = [(point.seed, read_number(runs / point.folder, cell.read)) for point in cell.points]
    values = tuple((seed, value) for seed, value in found if value is not None)
    reached = tuple((seed, value) for seed, value in values if math.isfinite(value))
    if len(reached) < len(values):
        reason = f"{len(values) - len(reached)} of {len(values)} runs did not reach the target"
        return Entry(cell.row, cell.column, text, None, reached, NOT_REACHED, reason, digits)
    if not values:
        return Entry(cell.row, cell.column, text, None, (), NOT_RUN, "", digits)
    partial = len(values) < len(found)
    reason = f"{len(values)} of {len(found)} seeds" if partial else ""
    ours = over_seeds([value for _, value in values])
    return Entry(cell.row, cell.column, text, ours, values, PARTIAL if partial else MEASURED, reason, digits)


def run_dates(sweep: Sweep, runs: Path) -> tuple[str, ...]:
    paths = [runs / point.folder / IDENTITY for point in sweep.points()]
    days = sorted(json.loads(path.read_text())["started"][:10] for path in paths if path.exists())
    return (days[0], days[-1]) if days else ()


# ---- text ------------------------------------------------------------------------------------------------------------


def fixed(value: float, digits: int) -> str:
    """With thousands separated; never "-0.0"."""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def ours_as_text(entry: Entry, plus_minus: str = "±") -> str:
    """`34.2 ± 1.1`, `34.2` for one seed, or why there is no number (which has no digit)."""
    if entry.ours is None:
        return entry.status
    text = fixed(entry.ours.mean, entry.digits)
    return text if entry.ours.half is None else f"{text} {plus_minus} {fixed(entry.ours.half, entry.digits)}"


def difference_as_text(entry: Entry) -> str:
    if entry.difference is None:
        return ""
    text = fixed(entry.difference, entry.digits)
    return text if text.startswith("-") else f"+{text}"


def cell_as_text(entry: Entry) -> str:
    """`paper / ours ± half (difference)`."""
    difference = difference_as_text(entry)
    note = f" [{entry.reason}]" if entry.status == PARTIAL else ""
    return f"{entry.paper or '-'} / {ours_as_text(entry)}" + (f" ({difference})" if difference else "") + note


def notes(table: Table, command: str) -> list[str]:
    """What the numbers are, and what is missing and why."""
    seeds = sorted({seed for entry in table.entries for seed, _ in entry.values})
    lines = [
        f"Source: {table.printed.source}, {table.printed.place} ({table.printed.unit}).",
        "Each cell: the paper's value / ours ± half of the 95% interval over seeds (Student's t), then ours minus the "
        "paper's. A single seed has no interval.",
        f"Scale `{table.sweep.scale}`, seeds {', '.join(map(str, seeds)) or 'none yet'}"
        + (f", runs started {' to '.join(dict.fromkeys(table.dates))}" if table.dates else "")
        + f". Command: `{command}`",
    ]
    for domain, what in table.sweep.stand_ins.items():
        lines.append(
            f"At this scale {what} stand in for the paper's task and model ({domain}): compare the order of the rows, "
            "not the levels; the differences say nothing else."
        )
    lines += sorted({f"{entry.row} / {entry.column}: {entry.reason}." for entry in table.entries
                     if entry.status == NOT_REACHED})  # fmt: skip
    lines += [f"n/a, {reason}: {summary(cells)}." for reason, cells in table.sweep.missing().items()]
    return lines


def summary(cells: Sequence[str]) -> str:
    """The columns, or the rows, that the cells "row / column" have in common; else how many they are."""
    for part in (1, 0):
        labels = list(dict.fromkeys(cell.split(" / ")[part] for cell in cells))
        if len(labels) <= 4:
            return ", ".join(labels)
    return f"{len(cells)} cells"


def markdown(table: Table, command: str) -> str:
    rows = [["", *table.columns]]
    for row in table.sweep.rows:
        rows.append([row, *(cell_as_text(table.entry(row, column)) for column in table.columns)])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    head = f"# {table.sweep.name}: {table.printed.title}"
    return "\n".join([head, "", *lines, "", *(f"- {line}" for line in notes(table, command))]) + "\n"


def as_csv(table: Table) -> str:
    """One line a cell, numbers unrounded to 6 decimals; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry in table.entries:
        ours = entry.ours
        numbers = (None, None, None) if ours is None else (ours.mean, ours.low, ours.high)
        shown = ["" if value is None else f"{value:.6g}" for value in (*numbers, entry.difference)]
        seeds, values = [str(seed) for seed, _ in entry.values], [f"{value:.6g}" for _, value in entry.values]
        writer.writerow([
            entry.row, entry.column, entry.paper or "", *shown, entry.digits, entry.status,
            ";".join(seeds), ";".join(values), entry.reason,
        ])  # fmt: skip
    return out.getvalue()


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"$\sim$", ">": r"$>$", "<": r"$<$", "^": r"\^{}", "→": r"$\rightarrow$", "±": r"$\pm$", "—": "---",
    "η": r"$\eta$", "μ": r"$\mu$",
}  # fmt: skip


def escape(text: str) -> str:
    """For LaTeX, with the Greek letters and signs that the tables use."""
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A booktabs table: paper / ours ± half."""
    lines = [
        r"\begin{table}", r"\centering", f"\\caption{{{escape(table.printed.title)}: paper / ours.}}",
        f"\\label{{tab:{table.sweep.name}}}", r"\begin{tabular}{l" + "c" * len(table.columns) + "}", r"\toprule",
        " & ".join(["", *map(escape, table.columns)]) + r" \\", r"\midrule",
    ]  # fmt: skip
    for row in table.sweep.rows:
        cells = [table.entry(row, column) for column in table.columns]
        shown = [f"{entry.paper or '-'} / {ours_as_text(entry)}" for entry in cells]
        lines.append(" & ".join(map(escape, [row, *shown])) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"
