"""The papers' numbers (papers.yaml), as printed and as numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("papers.yaml")
NUMBER = re.compile(r"[~>]?(\d[\d,]*(?:\.\d+)?)(?: \(.*\))?")


@dataclass(frozen=True)
class Printed:
    """A table or figure of a paper; a figure has no rows: its curves are not printed as numbers.

    Attributes:
        source: the paper, in words; `place` is the table or figure in it.
        rows: label -> values as printed, one a column.
    """

    name: str
    source: str
    place: str
    title: str
    unit: str = ""
    columns: Sequence[str] = ()
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def value(self, row: str, column: str) -> str | None:
        """As printed; None where the paper has no such row or column, or a dash."""
        if row not in self.rows or column not in self.columns:
            return None
        text = self.rows[row][list(self.columns).index(column)]
        return None if text == "—" else text


@cache
def printed(name: str) -> Printed:
    values = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    entry = values[name]
    return Printed(name, **{**entry, "source": values["sources"][entry["source"]]})


def number(text: str | None) -> float | None:
    """The number in a printed value: "~310", ">90,000" and "48.2 (DNC)" have one, as far as they go."""
    match = NUMBER.fullmatch(text) if text is not None else None
    return float(match.group(1).replace(",", "")) if match else None


def decimals(text: str | None) -> int:
    """Digits behind the point of a printed value."""
    match = NUMBER.fullmatch(text) if text is not None else None
    return len(match.group(1).partition(".")[2]) if match else 1
