"""`python -m recipe.amft.report`: the papers' tables and figures from run folders, and pages to read.

    python -m recipe.amft.report amft_table4 --runs runs/sweeps --out reports       .md, .csv, .tex, .png, .pdf
    python -m recipe.amft.report all scale=micro --runs runs/sweeps --out reports   all of them
    python -m recipe.amft.report run runs/quickstart                                one run: runs/quickstart/report.html
    python -m recipe.amft.report sweep amft_table4 --runs runs/sweeps               a table and its runs: one HTML file

The runs are those of recipe.amft.sweep with the same names, scale and overrides; without scale= the one that is there.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from recipe.amft.reporting.papers import printed
from recipe.amft.run_folder import IDENTITY
from recipe.amft.sweep import parser_of, read_request
from recipe.amft.sweeps.points import SCALES, Sweep


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    given = parser.parse_intermixed_args(arguments)
    words = list(given.words)
    try:
        if words[0] == "run":
            written = [write_run_page(Path(word), given.out) for word in words[1:]]
        else:
            as_pages = words[0] == "sweep"
            runs = given.runs.expanduser()
            words = with_scale(words[1:] if as_pages else words, runs)
            chosen = [word for word in words if "=" in word]
            write = write_sweep_page if as_pages else write_report
            written = []
            for sweep in read_request(words):
                again = [*(["sweep"] if as_pages else []), sweep.name, *chosen, "--runs", str(given.runs)]
                command = f"python -m recipe.amft.report {shlex.join(again)}"
                written += write(sweep, runs, given.out or Path("reports"), command)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print("\n".join(map(str, written)))


def with_scale(words: Sequence[str], runs: Path) -> list[str]:
    """`words` with the scale that `runs` holds, where they name none; ValueError when that is none, or several."""
    if any(word.startswith("scale=") for word in words):
        return list(words)
    there = [scale for scale in SCALES if (runs / scale).is_dir()]
    if len(there) != 1:
        raise ValueError(
            f"--runs {runs} holds the scales {there or 'none'}; say which: scale=..., one of {', '.join(SCALES)}."
        )
    return [*words, f"scale={there[0]}"]


def write_report(sweep: Sweep, runs: Path, out: Path, command: str) -> list[Path]:
    """Markdown, CSV, LaTeX, PNG and PDF of one table or figure; returns their paths."""
    from recipe.amft.reporting import charts, figures, tables

    out.mkdir(parents=True, exist_ok=True)
    paper = printed(sweep.name)
    base = out / sweep.name
    if sweep.is_figure:
        curves = charts.read_curves(sweep, runs)
        texts = {
            ".md": figures.markdown(sweep, paper, curves, command),
            ".csv": charts.curves_csv(curves),
            ".tex": figures.latex(sweep, paper),
        }
        figure = charts.curve_figure(curves, figures.axes_of(sweep), figures.logarithmic(sweep))
    else:
        table = tables.read_table(sweep, paper, runs)
        texts = {".md": tables.markdown(table, command), ".csv": tables.as_csv(table), ".tex": tables.latex(table)}
        figure = charts.table_figure(table)
    for suffix, content in texts.items():
        (out / f"{sweep.name}{suffix}").write_text(content, encoding="utf-8")
    charts.save(figure, base)
    return [out / f"{sweep.name}{suffix}" for suffix in (*texts, ".png", ".pdf")]


def write_sweep_page(sweep: Sweep, runs: Path, out: Path, command: str) -> list[Path]:
    from recipe.amft.reporting.page import sweep_page

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{sweep.name}.html"
    path.write_text(sweep_page(sweep, printed(sweep.name), runs, command), encoding="utf-8")
    return [path]


def write_run_page(folder: Path, out: Path | None) -> Path:
    """`out` is the file; without it report.html in the run folder."""
    from recipe.amft.reporting.page import run_page

    folder = folder.expanduser()
    if not (folder / IDENTITY).exists():
        raise ValueError(f"{folder} is no run folder (it has no {IDENTITY}); give the amft.run_dir of a run.")
    path = out or folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run_page(folder), encoding="utf-8")
    return path


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of("recipe.amft.report", __doc__)
    parser.add_argument("words", nargs="+", metavar="NAME|run DIR|sweep NAME|scale=SCALE|OVERRIDE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="reports; of `run` the file, else its report.html")
    return parser


if __name__ == "__main__":
    main()
