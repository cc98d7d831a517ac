"""Numbers and curves of one run folder: metrics.jsonl, config.yaml and the summaries of its evaluations.

What a cell reads is a mapping of these keys:
    suite, benchmark, metric   a number of evaluation/SUITE/summary.json; `average` instead of the last two for the mean
    metric, at                 a metric at its last (default), first (`start`) or best measurement
    metric, target, count      what had been spent (steps, demonstrations, rollouts) when the metric reached the target
    metric, count: occurrences  how many steps have it
Success is given in percent. Only finished runs count; a number that is not there is None.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recipe.amft.run_folder import FINISHED, METRICS

Rows = Sequence[Mapping[str, Any]]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a line that a killed run has not finished is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def series(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was measured."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def read_number(folder: Path, read: Mapping[str, Any]) -> float | None:
    """The number that `read` describes; infinity for a target that a finished run did not reach."""
    if "suite" in read:
        return _evaluated(folder / "evaluation" / read["suite"] / "summary.json", read)
    if not (folder / FINISHED).exists():
        return None
    rows, metric, at = read_metrics(folder), read["metric"], read.get("at", "last")
    if at == "warmed":  # what the warm-up ended with
        rows = [row for row in rows if row["phase"] == "warm-up"]
    steps, values = series(rows, metric)
    if read.get("count") == "occurrences":
        return float(len(values))
    if not values:
        return None
    values = [value * factor(metric) for value in values]
    if "count" in read:
        reached = next((step for step, value in zip(steps, values, strict=True) if value >= read["target"]), None)
        return math.inf if reached is None else spent(folder, rows, reached, read["count"])
    choose = {"start": values[0], "warmed": values[-1], "best": max(values), "last": values[-1]}
    return float(choose[at])


def factor(metric: str) -> float:
    """100 for shares of successes, which tables and figures give in percent."""
    return 100.0 if metric.endswith("success") else 1.0


def _evaluated(path: Path, read: Mapping[str, Any]) -> float | None:
    if not path.exists():
        return None
    summary = json.loads(path.read_text())
    if "average" in read:
        estimate = summary["average"].get(read["average"])
    else:
        benchmark = summary["benchmarks"].get(read["benchmark"], {"metrics": {}})
        estimate = benchmark["metrics"].get(read["metric"])
    return None if estimate is None else 100.0 * float(estimate["mean"])


def spent(folder: Path, rows: Rows, last_step: int, what: str) -> float:
    """Steps, demonstrations or rollouts (those of meta-updates too) up to `last_step`, the warm-up's included."""
    if what == "steps":
        return float(last_step)
    config = read_config(folder)
    until = [row for row in rows if 0 < row["step"] <= last_step]
    if what == "demonstrations":
        each = config["amft"]["demonstrations"]["batch_size"]
        paired = config["data"]["train_batch_size"] if is_paired(config) else each
        return float(
            sum((each if row["phase"] == "warm-up" else paired) for row in until if row.get("sft/loss") is not None)
        )
    if what != "rollouts":
        raise ValueError(f"count={what!r} is unknown; choose steps, demonstrations, rollouts or occurrences.")
    training = config["data"]["train_batch_size"] * config["actor_rollout_ref"]["rollout"]["n"]
    utility = config["amft"]["utility"]["num_prompts"] * config["amft"]["utility"]["rollouts_per_prompt"]
    return float(
        sum(
            training * (row.get("rl/reward") is not None) + utility * (row.get("meta/utility") is not None)
            for row in until
        )
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration; empty without one."""
    path = folder / "config.yaml"
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if path.exists() else {}


def is_paired(config: Mapping[str, Any]) -> bool:
    """Whether the method learns the demonstrations of its own prompts, as many as there are."""
    from recipe.amft.config import from_mapping
    from recipe.amft.methods import make_method

    method = make_method(from_mapping(config["amft"]))
    return method.plan(0, method.initial_state()).paired
