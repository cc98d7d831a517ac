"""A figure of a paper from our runs, as Markdown and LaTeX; charts.py draws it and writes its points as CSV."""

from collections.abc import Sequence

from recipe.amft.reporting.charts import Curve
from recipe.amft.reporting.papers import Printed
from recipe.amft.reporting.tables import escape, fixed
from recipe.amft.sweeps.points import Sweep


def axes_of(sweep: Sweep) -> dict[str, str]:
    """Panel -> the metric on its x axis, where that is not the step."""
    return {cell.column: cell.read["against"] for cell in sweep.cells if "against" in cell.read}


def logarithmic(sweep: Sweep) -> list[str]:
    """Panels with a logarithmic y axis."""
    return [cell.column for cell in sweep.cells if cell.read.get("log")]


def last_as_text(curve: Curve | None, axis: str) -> str:
    """The curve's last value with its interval, or why there is none; `axis` is what stands on the x axis."""
    if curve is None:
        return ""
    if not curve.points:
        return "n/a" if curve.missing else "not run"
    step, x, value = curve.points[-1]
    place = f"step {step}" if axis == "step" else f"{axis} {x:.3g}"
    spread = "" if value.half is None else f" ± {fixed(value.half, 2)}"
    seeds = f" [{curve.num_runs} of {curve.num_asked} seeds]" if curve.num_runs < curve.num_asked else ""
    return f"{fixed(value.mean, 2)}{spread} ({place}){seeds}"


def notes(sweep: Sweep, paper: Printed, command: str) -> list[str]:
    lines = [
        f"Source: {paper.source}, {paper.place}. The paper prints these curves without numbers, so ours stand alone.",
        "Bands and ±: 95% interval over seeds (Student's t); the table has the last point of every curve.",
        f"Scale `{sweep.scale}`. Command: `{command}`",
    ]
    for domain, what in sweep.stand_ins.items():
        lines.append(f"At this scale {what} stand in for the paper's task and model ({domain}).")
    lines += [f"n/a, {reason}: {len(cells)} curves." for reason, cells in sweep.missing().items()]
    return lines


def markdown(sweep: Sweep, paper: Printed, curves: Sequence[Curve], command: str) -> str:
    by_place = {(curve.row, curve.panel): curve for curve in curves}
    rows = [["", *sweep.columns]]
    for row in sweep.rows:
        axes = {panel: axes_of(sweep).get(panel, "step") for panel in sweep.columns}
        rows.append([row, *(last_as_text(by_place.get((row, panel)), axis) for panel, axis in axes.items())])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    head = [f"# {sweep.name}: {paper.title}", "", f"![{sweep.name}]({sweep.name}.png)", ""]
    return "\n".join([*head, *lines, "", *(f"- {line}" for line in notes(sweep, paper, command))]) + "\n"


def latex(sweep: Sweep, paper: Printed) -> str:
    return (
        "\\begin{figure}\n\\centering\n"
        f"\\includegraphics[width=\\linewidth]{{{sweep.name}.pdf}}\n"
        f"\\caption{{{escape(paper.title)}.}}\n\\label{{fig:{sweep.name}}}\n\\end{{figure}}\n"
    )
