"""The papers' numbers: each stands in the papers' text, in the row and table that papers.yaml says."""

import os
import re
from pathlib import Path

import pytest
import yaml

from recipe.amft.reporting.papers import FILE, decimals, number, printed
from recipe.amft.sweeps.points import names

DATA = Path(os.environ.get("AMFT_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TABLES = [name for name in names() if "table" in name]


def text_of(name: str) -> list[str]:
    path = DATA.parent / "papers" / f"{name.split('_')[0]}.txt"
    if not path.exists():
        pytest.skip(f"the paper's text is not at hand ({path}): set AMFT_SHARED_DATA to the data beside papers/")
    return path.read_text(encoding="utf-8").splitlines()


def cells_of(line: str) -> list[str]:
    """The cells of a line, without what marks emphasis, citations and subscripts."""
    plain = re.sub(r"</?[a-z]+>|\*\*|\[[\d*]+\]|[{}]", "", line)
    return [re.sub(r"\s*_\s*", "_", cell).replace("( ", "(").replace(" )", ")").strip() for cell in plain.split("\t")]


def lines_of_table(lines: list[str], place: str) -> list[list[str]]:
    """The cells of the lines from the caption of a table to the next caption."""
    captions = [index for index, line in enumerate(lines) if re.match(r"(Table|Figure) \d+:", line)]
    start = next(index for index in captions if lines[index].startswith(f"{place}:"))
    end = next((index for index in captions if index > start), len(lines))
    return [cells_of(line) for line in lines[start + 1 : end]]


@pytest.mark.parametrize("name", TABLES)
def test_every_number_stands_in_its_row_of_the_papers_table(name):
    """A row of papers.yaml is a line of the table: its label, then all of its values in this order."""
    paper = printed(name)
    table = lines_of_table(text_of(name), paper.place)
    for label, values in paper.rows.items():
        assert len(values) == len(paper.columns), label
        found = [cells for cells in table if is_labelled(cells, label) and in_order(list(values), cells)]
        assert len(found) == 1, (label, values, found)


def is_labelled(cells: list[str], label: str) -> bool:
    """Whether the cells before the numbers say `label`: "K = 5" is "5" there, "DFT (Offline)" two cells."""
    said = " ".join(cells[:2])
    words = label.replace("K = ", "").replace("η_H = ", "").replace("(Offline)", "Offline")
    words = words.replace("(Online)", "Online").replace("w/DFT (SFT)", "w/DFT SFT")
    return said.startswith(words) or cells[1:2] == [words.replace("1e", "1×10^").replace("5e", "5×10^")]


def in_order(values: list[str], cells: list[str]) -> bool:
    return any(cells[start : start + len(values)] == values for start in range(1, len(cells)))


@pytest.mark.parametrize("name", TABLES)
def test_no_row_of_the_papers_table_is_left_out(name):
    """Lines with as many numbers as the table has columns are the rows, no more and no fewer."""
    paper = printed(name)
    lines = [
        cells
        for cells in lines_of_table(text_of(name), paper.place)
        if sum(number(cell) is not None or cell == "—" for cell in cells[1:]) >= len(paper.columns)
    ]
    assert len(lines) == len(paper.rows)


def test_every_sweep_has_its_entry():
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert set(entries) - {"sources"} == set(names())
    assert all(printed(name).source for name in names())


@pytest.mark.parametrize(
    ("text", "value", "digits"),
    [("36.1", 36.1, 1), ("0.00", 0.0, 2), ("~310", 310.0, 0), (">90,000", 90000.0, 0), ("48.2 (DNC)", 48.2, 1),
     ("60,000 (fixed)", 60000.0, 0), ("", None, 1), (None, None, 1)],
)  # fmt: skip
def test_printed_values_as_numbers(text, value, digits):
    assert number(text) == value
    assert decimals(text) == digits
