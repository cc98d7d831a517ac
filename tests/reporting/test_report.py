"""Reports: recorded outputs of a recorded run, agreement of all formats, and pages that need nothing else."""

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.amft import report
from recipe.amft.reporting import tables
from recipe.amft.reporting.estimates import over_seeds
from recipe.amft.reporting.papers import decimals, printed
from recipe.amft.reporting.tables import (
    MEASURED,
    NOT_AVAILABLE,
    NOT_REACHED,
    NOT_RUN,
    PARTIAL,
    Entry,
    Table,
    as_csv,
    latex,
    markdown,
    read_table,
)
from recipe.amft.sweeps.points import load, names

GOLDEN = Path(__file__).parent / "data" / "golden"

# ---- recorded outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["amft_table4", "amft_table12", "dft_table8", "amft_figure2"])
def test_the_recorded_run_gives_the_recorded_reports(name, runs, tmp_path):
    """Markdown, CSV and LaTeX to the letter. UPDATE_GOLDEN in this file rewrites them, for a change that is meant."""
    out = tmp_path / "out"
    report.main([name, "--runs", str(runs), "--out", str(out)])
    for suffix in (".md", ".csv", ".tex"):
        written = (out / f"{name}{suffix}").read_text().replace(str(runs), "RUNS")
        golden = GOLDEN / f"{name}{suffix}"
        if UPDATE_GOLDEN:
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(written)
        assert written == golden.read_text(), golden
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        assert (out / f"{name}{suffix}").read_bytes().startswith(magic)


UPDATE_GOLDEN = False


def test_the_same_runs_make_the_same_files(runs, tmp_path):
    """Twice: equal bytes, pictures and pages included."""
    for out in ("first", "second"):
        report.main(["amft_table4", "amft_figure3", "--runs", str(runs), "--out", str(tmp_path / out)])
        report.main(["sweep", "amft_table4", "--runs", str(runs), "--out", str(tmp_path / out)])
    folders = (tmp_path / "first", tmp_path / "second")
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second
    assert len(first) == 11


def test_every_report_can_be_written_without_a_single_run(tmp_path):
    """All names: no number of ours anywhere, and each cell says that it was not run or is not available."""
    for name in names():
        sweep = load(name, "micro")
        if sweep.is_figure:
            continue
        table = read_table(sweep, printed(name), tmp_path)
        assert {entry.status for entry in table.entries} <= {NOT_RUN, NOT_AVAILABLE}
        assert all(ours == "" for ours in column(as_csv(table), "ours"))
    report.main(["amft_figure2", "dft_figure2", "scale=micro", "--runs", str(tmp_path), "--out", str(tmp_path)])
    assert (tmp_path / "amft_figure2.csv").read_text().count("\n") == 1
    assert "not run" in (tmp_path / "amft_figure2.md").read_text()


def test_a_partial_row_says_so(runs):
    """One of three seeds: the number stands without an interval, and the cell says how many there are."""
    table = read_table(load("amft_table4", "micro"), printed("amft_table4"), runs)
    entry = table.entry("AMFT (Full)", "Math ID Avg.")
    assert (entry.status, entry.ours.half, entry.reason) == (PARTIAL, None, "1 of 3 seeds")
    assert entry.difference == pytest.approx(entry.ours.mean - 61.3)
    assert "[1 of 3 seeds]" in markdown(table, "")
    assert len(table.dates) == 2


# ---- agreement -------------------------------------------------------------------------------------------------------


def column(text: str, name: str) -> list[str]:
    return [line[name] for line in csv.DictReader(io.StringIO(text))]


@st.composite
def filled_tables(draw) -> Table:
    """A real sweep with drawn numbers, gaps and missing cells."""
    name = draw(st.sampled_from(["amft_table4", "amft_table12", "amft_table5", "dft_table8"]))
    sweep, paper = load(name, "micro"), printed(name)
    values = st.floats(-1e5, 1e5, allow_nan=False) | st.sampled_from([0.0, -0.04, 99.95, 1234.5])
    entries = []
    for cell in sweep.cells:
        text = paper.value(cell.beside, cell.column)
        found = tuple(enumerate(draw(st.lists(values, max_size=3))))
        status = draw(st.sampled_from([MEASURED, PARTIAL, NOT_REACHED] if found else [NOT_RUN, NOT_AVAILABLE]))
        ours = over_seeds([value for _, value in found]) if found and status != NOT_REACHED else None
        entries.append(Entry(cell.row, cell.column, text, ours, found, status, "reason", decimals(text)))
    return Table(paper, sweep, tuple(entries), ())


def shown(text: str, row: str, name: str) -> str:
    """A cell of the Markdown table."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in cells] for cells in rows]
    cells = next(line for line in lines if line[0] == row)
    return cells[lines[0].index(name)]


CELL = re.compile(
    r"(?P<paper>.*?) / (?P<ours>-?[\d,.]+)(?: ± (?P<half>[\d,.]+))?(?: \((?P<difference>[-+][\d,.]+)\))?( \[.*\])?"
)


@settings(max_examples=25, deadline=None)
@given(filled_tables())
def test_markdown_and_csv_have_the_same_numbers(table):
    """Value, half width and difference of every cell, rounded to the digits that the CSV names."""
    text = markdown(table, "command")
    for line in csv.DictReader(io.StringIO(as_csv(table))):
        if line["ours"] == "":
            continue
        cell = shown(text, line["row"], line["column"])
        match = CELL.fullmatch(cell)
        assert match, cell
        half = "" if line["low"] == "" else str((float(line["high"]) - float(line["low"])) / 2)
        wanted = {"ours": line["ours"], "half": half, "difference": line["difference"]}
        for name, value in wanted.items():
            printed_value = (match[name] or "").replace(",", "")
            assert bool(value) == bool(printed_value), (name, line, cell)
            if value:
                size = max(abs(float(line[key] or 0)) for key in ("ours", "low", "high"))
                tolerance = 0.5 * 10.0 ** -int(line["decimals"]) + 1e-4 * max(1.0, size)  # the CSV has six digits
                assert float(printed_value) == pytest.approx(float(value), abs=tolerance)


@settings(max_examples=25, deadline=None)
@given(filled_tables())
def test_a_missing_cell_never_shows_a_number(table):
    """In Markdown, LaTeX and CSV what follows the paper's value has no digit where there is no measurement."""
    text, source = markdown(table, "command"), latex(table)
    for entry in table.entries:
        if entry.ours is not None:
            continue
        if entry.column in table.columns:
            assert not any(character.isdigit() for character in shown(text, entry.row, entry.column).split(" / ")[1])
        assert not any(character.isdigit() for character in tables.ours_as_text(entry))
    for line in csv.DictReader(io.StringIO(as_csv(table))):
        if line["status"] in (NOT_RUN, NOT_AVAILABLE, NOT_REACHED):
            assert line["ours"] == line["low"] == line["high"] == line["difference"] == ""
    assert source.count(r" \\") == len(table.sweep.rows) + 1
    assert all(line.count("&") - line.count(r"\&") == len(table.columns) for line in source.splitlines()[6:-4]
               if "&" in line)  # fmt: skip


def test_minus_zero_is_zero():
    assert tables.fixed(-0.04, 1) == "0.0"
    assert tables.fixed(1234.56, 1) == "1,234.6"


# ---- pages -----------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page would fetch, and whether its elements close."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag


def read_page(path: Path) -> tuple[str, Links]:
    text, links = path.read_text(encoding="utf-8"), Links()
    links.feed(text)
    return text, links


def test_the_page_of_a_run(recorded, tmp_path):
    """One file: curves as SVG, facts, right and wrong answers; nothing fetched, no script, every element closed."""
    report.main(["run", str(recorded), "--out", str(tmp_path / "run.html")])
    text, links = read_page(tmp_path / "run.html")
    assert links.fetched == []
    assert links.open == []
    assert "script" not in links.tags
    assert links.tags.count("svg") == 1
    for label in ("Success", "Weight of imitation", "Entropy (nats per token)", "Cosines", "held-out success"):
        assert label in text


def test_right_and_wrong_answers_are_told_apart(runs, tmp_path):
    """Half of the shown answers are right ones where there are enough, and the count is that of all."""
    (folder,) = (path.parent for path in runs.rglob("FINISHED"))
    path = max((folder / "samples").glob("*.jsonl"), key=lambda path: int(path.stem))
    answers = [
        {"input": f"question {index}", "output": f"answer {index}", "gts": None, "score": float(index % 3 == 0)}
        for index in range(9)
    ]
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    report.main(["run", str(folder), "--out", str(tmp_path / "run.html")])
    shown = (tmp_path / "run.html").read_text().split(f"Step {path.stem}: 3 of 9 right")[1]
    assert (shown.count('class="right"'), shown.count('class="wrong"')) == (2, 2)
    assert [f"answer {index}<" in shown for index in range(5)] == [True, True, True, True, False]


def test_the_page_of_a_sweep(runs, tmp_path):
    report.main(["sweep", "amft_table4", "--runs", str(runs), "--out", str(tmp_path / "out")])
    text, links = read_page(tmp_path / "out" / "amft_table4.html")
    assert links.fetched == []
    assert links.open == []
    assert links.tags.count("svg") == 2
    assert "Runs (1 of 15 finished)" in text
    assert text.count("not started</p>") == 14


def test_what_a_model_writes_cannot_break_a_page(runs, tmp_path):
    """Markup is escaped, control characters are replaced."""
    (folder,) = (path.parent for path in runs.rglob("FINISHED"))
    path = max((folder / "samples").glob("*.jsonl"), key=lambda path: int(path.stem))
    path.write_text('{"input": "<script>alert(1)</script>", "output": "\\u0000</pre>&", "gts": "<b>", "score": 0.0}\n')
    report.main(["run", str(folder), "--out", str(tmp_path / "run.html")])
    text, links = read_page(tmp_path / "run.html")
    assert "script" not in links.tags
    assert links.open == []
    assert "\x00" not in text


@pytest.mark.parametrize(
    ("words", "fragment"),
    [(["amft_table4"], "scale=..."), (["run", "."], "run.json"), (["amft_tabel4", "scale=micro"], "amft_table4")],
)
def test_a_wrong_request_is_one_line(words, fragment, tmp_path):
    with pytest.raises(SystemExit) as ended:
        report.main([*words, "--runs", str(tmp_path)])
    assert fragment in str(ended.value)
    assert "\n" not in str(ended.value)


def test_infinity_is_no_number(monkeypatch, tmp_path):
    """A target that one of the runs did not reach: no mean of the others."""
    monkeypatch.setattr(tables, "read_number", lambda folder, read: math.inf if folder.name.endswith("s1") else 40.0)
    sweep = load("amft_table4", "micro")
    entry = read_table(sweep, printed("amft_table4"), tmp_path).entry("AMFT (Full)", "Math ID Avg.")
    assert (entry.status, entry.ours, len(entry.values)) == (NOT_REACHED, None, 2)
