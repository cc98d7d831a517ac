"""Tables and plots of the laboratory: pure functions of the records.

`Records` maps (problem, name of the variant, seed) to the record of a run. The best constant in hindsight of a problem
is the constant with the highest mean over the seeds.
"""

import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Records = Mapping[tuple[str, str, int], Mapping[str, Any]]
CONSTANT = "mu = "  # how the names of constants begin


def names(records: Records, position: int) -> list[Any]:
    """Problems, variants or seeds, in the order of the records."""
    return list(dict.fromkeys(key[position] for key in records))


def finals(records: Records, problem: str, name: str) -> list[float]:
    """Success at the end, one number a seed."""
    return [record["final"] for key, record in records.items() if key[:2] == (problem, name)]


def area(record: Mapping[str, Any]) -> float:
    """Mean success over the run (trapezoids)."""
    curve = record["curve"]
    parts = [(right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in itertools.pairwise(curve)]
    return sum(parts) / curve[-1][0]


def best_constant(records: Records, problem: str) -> str | None:
    constants = [name for name in names(records, 1) if name.startswith(CONSTANT)]
    return max(constants, key=lambda name: statistics.mean(finals(records, problem, name)), default=None)


def sign_flip_test(differences: Sequence[float], num_draws: int = 20_000) -> float:
    """Two-sided p-value of a mean of 0 under random signs of the paired differences."""
    rng = random.Random(0)
    observed = abs(sum(differences)) - 1e-12
    hits = sum(abs(sum(rng.choice((-1, 1)) * d for d in differences)) >= observed for _ in range(num_draws))
    return (hits + 1) / (num_draws + 1)


def success_table(records: Records) -> str:
    """Mean success at the end by problem with its standard error, and the mean over problems (final and area)."""
    problems = names(records, 0)
    lines = [f"| controller | {' | '.join(problems)} | mean | area |", "|---|" + "---|" * (len(problems) + 2)]
    for name in names(records, 1):
        values = [finals(records, problem, name) for problem in problems]
        areas = [area(record) for key, record in records.items() if key[1] == name]
        cells = [f"{statistics.mean(v):.3f}{_error(v)}" for v in values]
        mean = statistics.mean(statistics.mean(v) for v in values)
        lines.append(f"| {name} | {' | '.join(cells)} | {mean:.3f} | {statistics.mean(areas):.3f} |")
    return "\n".join(lines)


def ratio_table(records: Records) -> str:
    """Final success over that of the best constant in hindsight; only what is not a constant itself."""
    problems = names(records, 0)
    best = {problem: best_constant(records, problem) for problem in problems}
    lines = [f"| over the best constant | {' | '.join(f'{p} ({best[p]})' for p in problems)} | least |"]
    lines.append("|---|" + "---|" * (len(problems) + 1))
    for name in [name for name in names(records, 1) if not name.startswith(CONSTANT)]:
        ratios = [
            statistics.mean(finals(records, problem, name))
            / max(1e-9, statistics.mean(finals(records, problem, best[problem] or name)))
            for problem in problems
        ]
        lines.append(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {min(ratios):.2f} |")
    return "\n".join(lines)


def paired_table(records: Records, reference: str) -> str:
    """Differences `reference` - other, paired by problem and seed, with the sign-flip test over all pairs."""
    lines = [f"| {reference} minus | mean difference | pairs won | p |", "|---|---|---|---|"]
    for name in names(records, 1):
        if name == reference:
            continue
        pairs = [
            records[problem, reference, seed]["final"] - records[problem, name, seed]["final"]
            for problem in names(records, 0)
            for seed in names(records, 2)
        ]
        won = sum(d > 0 for d in pairs)
        lines.append(f"| {name} | {statistics.mean(pairs):+.3f} | {won}/{len(pairs)} | {sign_flip_test(pairs):.4f} |")
    return "\n".join(lines)


def _error(values: Sequence[float]) -> str:
    """Standard error of the mean over seeds."""
    return f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""


def mu_table(records: Records) -> str:
    """Mean mu of the first, the middle and the last tenth of the run, for what is not a constant."""
    problems = names(records, 0)
    lines = [f"| mu: start, middle, end | {' | '.join(problems)} | CPU s |", "|---|" + "---|" * (len(problems) + 1)]
    for name in [name for name in names(records, 1) if not name.startswith(CONSTANT)]:
        cells = []
        for problem in problems:
            runs = [record["steps"] for key, record in records.items() if key[:2] == (problem, name)]
            cells.append(" ".join(_mean_mu(runs, part) for part in (0.0, 0.45, 0.9)))
        seconds = statistics.mean(record["seconds"] for key, record in records.items() if key[1] == name)
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


def _mean_mu(runs: Sequence[Mapping[str, Any]], start: float) -> str:
    values = []
    for run in runs:
        mus = run.get("controller/mu", [])  # a method that adds gradients up has none
        first = int(start * len(mus))
        values += [mu for mu in mus[first : first + len(mus) // 10] if mu is not None]
    return f"{statistics.mean(values):.2f}" if values else "-"


def write(records: Records, out: Path, reference: str = "AMFT") -> str:
    """OUT/table.md, OUT/runs.png; returns the tables."""
    tables = [success_table(records), ratio_table(records), mu_table(records)]
    if reference in names(records, 1):
        tables.append(paired_table(records, reference))
    text = "\n\n".join(tables)
    (out / "table.md").write_text(text + "\n")
    plot(records, out)
    return text


def plot(records: Records, out: Path) -> None:
    """Success and mu over steps, mean over seeds, one panel a problem; constants in grey, the best one in black."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    problems = names(records, 0)
    figure, axes = pyplot.subplots(2, len(problems), figsize=(4 * len(problems), 7), sharex="col", squeeze=False)
    variants = [name for name in names(records, 1) if not name.startswith(CONSTANT)]
    for column, problem in enumerate(problems):
        best = best_constant(records, problem)
        success, weight = axes[0][column], axes[1][column]
        for name in names(records, 1):
            runs = [record for key, record in records.items() if key[:2] == (problem, name)]
            if name == best:
                style: dict[str, Any] = {"color": "black", "linestyle": "--", "label": "best constant"}
            elif name.startswith(CONSTANT):
                style = {"color": "0.8", "zorder": 0}
            else:  # ten colours, then the same ten dotted
                number = variants.index(name)
                style = {"label": name, "color": f"C{number % 10}", "linestyle": "-" if number < 10 else ":"}
                style["linewidth"] = 2.5 if number == 0 else 1.2
            curves = [record["curve"] for record in runs]
            values = [statistics.mean(curve[i][1] for curve in curves) for i in range(len(curves[0]))]
            success.plot([point[0] for point in curves[0]], values, **style)
            mus = [record["steps"].get("controller/mu", [None]) for record in runs]
            if not name.startswith(CONSTANT) and not any(mu is None for run in mus for mu in run) and name != "SASR":
                means = [statistics.mean(run[i] for run in mus) for i in range(len(mus[0]))]
                weight.plot(means, **style)
        success.set_title(problem)
        success.set_ylim(0, 1)
        weight.set_ylim(0, 1)
        weight.set_xlabel("step after the warm-up")
    axes[0][0].set_ylabel("success on held-out prompts")
    axes[1][0].set_ylabel("mu")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=7, frameon=False)
    figure.savefig(out / "runs.png", dpi=110)
    pyplot.close(figure)
