"""One HTML file for a run or a sweep: no server, no script, nothing fetched."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.amft.reporting import figures
from recipe.amft.reporting.charts import (
    PAGE_PANELS,
    Curve,
    as_svg,
    curve_figure,
    mean_curve,
    read_curves,
    table_figure,
)
from recipe.amft.reporting.papers import Printed
from recipe.amft.reporting.reading import read_config, read_metrics, series
from recipe.amft.reporting.tables import (
    Table,
    difference_as_text,
    fixed,
    notes,
    ours_as_text,
    read_table,
)
from recipe.amft.reporting.training_curves import training_figure
from recipe.amft.run_folder import FINISHED, IDENTITY
from recipe.amft.sweeps.points import Sweep
from recipe.amft.sweeps.states import EVALUATION, state_of

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; }
th { font-weight: 600; } .off { color: #999; } .paper { color: #777; }
svg { max-width: 100%; height: auto; }
details { margin: 0.4rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: 0.6rem; margin: 0.3rem 0; }
.right { border-left: 4px solid #2a9d4a; padding-left: 0.6rem; } .wrong { border-left: 4px solid #c0392b; padding-left: 0.6rem; }
"""  # noqa: E501
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def text(value: Any) -> str:
    """Escaped, and without the control characters that a model may write and HTML may not hold."""
    return html.escape(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def page(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def html_table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Cells are HTML already."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


# ---- one run ---------------------------------------------------------------------------------------------------------


def run_page(folder: Path, num_samples: int = 4) -> str:
    """The page of a run folder, finished or not."""
    rows = read_metrics(folder)
    parts = [run_facts(folder, rows)]
    if rows:
        parts += ["<h2>Curves</h2>", as_svg(training_figure(rows), "run")]
    parts += [evaluations(folder), "<h2>Samples</h2>", samples(folder, num_samples)]
    return page(f"Run {folder.name}", parts)


def run_facts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the run is, how far it is, and its success at the start, after the warm-up and at the end."""
    config, identity = read_config(folder), {}
    if (folder / IDENTITY).exists():
        identity = json.loads((folder / IDENTITY).read_text())
    finished = (folder / FINISHED).exists()
    steps, success = series(rows, "val/success")
    measured = ", ".join(f"{fixed(100 * value, 1)}% (step {step})" for step, value in zip(steps, success, strict=True))
    facts = {
        "state": ("finished " + (folder / FINISHED).read_text().strip()) if finished else f"at step {last_step(rows)}",
        "held-out success": measured or "not measured",
        "command": " ".join(identity.get("command", [])),
        "started": identity.get("started", "unknown"),
        "commit": identity.get("git", {}).get("commit", "unknown"),
        "versions": ", ".join(f"{name} {version}" for name, version in identity.get("versions", {}).items()),
    }
    if config:
        rollout = config["actor_rollout_ref"]["rollout"]
        facts = {
            "method": config["amft"]["method"]["name"],
            "model": Path(config["actor_rollout_ref"]["model"]["path"]).name,
            "step": f"{config['data']['train_batch_size']} prompts x {rollout['n']} rollouts, "
            f"{config['amft']['demonstrations']['batch_size']} demonstrations",
            "seed": config["amft"]["rollout_seed"],
        } | facts
    return html_table([[text(name), text(value)] for name, value in facts.items()])


def last_step(rows: Sequence[Mapping[str, Any]]) -> int:
    return int(rows[-1]["step"]) if rows else 0


def evaluations(folder: Path) -> str:
    """The summaries of the run's evaluations; empty without one."""
    lines = []
    for path in sorted((folder / EVALUATION).glob("*/summary.json")):
        summary = json.loads(path.read_text())
        for benchmark, content in summary.get("benchmarks", {}).items():
            for metric, estimate in content["metrics"].items():
                numbers = [f"{100 * estimate[name]:.1f}" for name in ("mean", "low", "high")]
                lines.append([*map(text, (path.parent.name, benchmark, metric)), *numbers])
    head = ("suite", "benchmark", "metric", "mean %", "low", "high")
    return f"<h2>Evaluations (95% bootstrap intervals over prompts)</h2>{html_table(lines, head)}" if lines else ""


def samples(folder: Path, num_samples: int) -> str:
    """Answers of the first and the last validation, as many right as wrong ones where there are both."""
    files = sorted((folder / "samples").glob("*.jsonl"), key=lambda path: int(path.stem))
    if not files:
        return "<p>No validation has been kept.</p>"
    parts = []
    for path in dict.fromkeys((files[0], files[-1])):
        answers = [json.loads(line) for line in path.read_text().split("\n") if line]
        right = [answer for answer in answers if is_right(answer)]
        wrong = [answer for answer in answers if not is_right(answer)]
        half = max(num_samples // 2, num_samples - len(wrong))
        chosen = right[:half]
        chosen += wrong[: num_samples - len(chosen)]
        items = "\n".join(sample(answer) for answer in chosen)
        title = f"Step {path.stem}: {len(right)} of {len(answers)} right"
        parts.append(f"<details{' open' if path == files[-1] else ''}><summary>{title}</summary>\n{items}\n</details>")
    return "\n".join(parts)


def is_right(answer: Mapping[str, Any]) -> bool:
    return float(answer.get("acc", answer["score"])) > 0


def sample(answer: Mapping[str, Any]) -> str:
    verdict = "right" if is_right(answer) else "wrong"
    wanted = f", wanted {text(answer['gts'])}" if answer.get("gts") is not None else ""
    return (
        f'<div class="{verdict}"><p>{verdict}, reward {answer["score"]:g}{wanted}</p>\n'
        f"<pre>{text(answer['input'])}</pre>\n<pre>{text(answer['output'])}</pre></div>"
    )


# ---- a sweep ---------------------------------------------------------------------------------------------------------


def sweep_page(sweep: Sweep, paper: Printed, runs: Path, command: str) -> str:
    """The table or figure, the curves of every row, and each of its runs with a few samples."""
    parts = figure_parts(sweep, paper, runs, command) if sweep.is_figure else table_parts(sweep, paper, runs, command)
    overview = overview_curves(sweep, runs)
    if any(curve.points for curve in overview):
        parts += ["<h2>Curves, mean and 95% interval over seeds</h2>", as_svg(curve_figure(overview), "overview")]
    states = {point: state_of(point, suites, runs) for point, suites in sweep.points().items()}
    parts.append(f"<h2>Runs ({sum(state.finished for state in states.values())} of {len(states)} finished)</h2>")
    for point, state in states.items():
        folder = runs / point.folder
        if not (folder / FINISHED).exists():
            parts.append(f'<p class="off">{text(point.folder)}: {text(state)}</p>{evaluations(folder)}')
            continue
        content = [run_facts(folder, read_metrics(folder)), evaluations(folder), samples(folder, 2)]
        parts.append(f"<details><summary>{text(point.folder)}</summary>\n" + "\n".join(content) + "\n</details>")
    return page(f"{sweep.name}: {paper.title}", parts)


def table_parts(sweep: Sweep, paper: Printed, runs: Path, command: str) -> list[str]:
    table = read_table(sweep, paper, runs)
    lines = [[text(row), *(html_cell(table, row, column) for column in sweep.columns)] for row in sweep.rows]
    return [
        html_table(lines, ["", *map(text, sweep.columns)]),
        listed(notes(table, command)),
        as_svg(table_figure(table), "table"),
    ]


def figure_parts(sweep: Sweep, paper: Printed, runs: Path, command: str) -> list[str]:
    curves = read_curves(sweep, runs)
    return [
        as_svg(curve_figure(curves, figures.axes_of(sweep), figures.logarithmic(sweep)), "curves"),
        listed(figures.notes(sweep, paper, command)),
    ]


def listed(items: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{text(item)}</li>" for item in items) + "\n</ul>"


def html_cell(table: Table, row: str, column: str) -> str:
    entry = table.entry(row, column)
    paper = f'<span class="paper">{text(entry.paper or "-")}</span>'
    if entry.ours is None:
        return f'{paper} / <span class="off" title="{text(entry.reason)}">{text(entry.status)}</span>'
    difference = difference_as_text(entry)
    return f"{paper} / {text(ours_as_text(entry))}" + (f" ({difference})" if difference else "")


def overview_curves(sweep: Sweep, runs: Path) -> list[Curve]:
    """PAGE_PANELS of every row, over its finished runs."""
    curves = []
    for row in sweep.rows:
        points = dict.fromkeys(point for cell in sweep.cells if cell.row == row for point in cell.points)
        folders = [runs / point.folder for point in points if (runs / point.folder / FINISHED).exists()]
        metrics = [read_metrics(folder) for folder in folders]
        if not metrics:
            continue
        for panel, metric in PAGE_PANELS:
            curves.append(Curve(row, panel, mean_curve(metrics, metric), len(metrics), len(points)))
    return curves
