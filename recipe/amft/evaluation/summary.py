"""The summary of an evaluation: a pure function of its records and settings; as a table, Markdown and JSON."""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from recipe.amft.evaluation.settings import Benchmark
from recipe.amft.evaluation.statistics import (
    Estimate,
    average_at_k,
    bootstrap_means,
    estimate,
    pass_at_k,
    with_interval,
)

WIDE = ("prompt", "texts", "observations", "token_ids", "turn_lengths", "info")  # columns that no number needs
HEADINGS = (
    "benchmark",
    "metric",
    "prompts",
    "k",
    "mean %",
    "95% interval",
    "tokens",
    "turns",
    "cut",
    "time-outs",
    "failed",
)


@dataclass(frozen=True)
class Line:
    """One number of one benchmark.

    Attributes:
        metric: success, success_JUDGE, pass@k, or a key of the environment's info.
        num_prompts, samples: how many prompts, and samples of each (0 for a mean over benchmarks).
        value: mean over prompts, in [0, 1] for success and pass@k.
    """

    benchmark: str
    metric: str
    num_prompts: int
    samples: int
    value: Estimate


@dataclass(frozen=True)
class Counts:
    """What the samples of one benchmark were: means per sample and numbers of samples."""

    tokens: float
    turns: float
    reward: float
    cut: int  # the last answer reached the token limit, or no room was left
    timeouts: int  # of graders
    failed: int  # the environment raised
    stop_reasons: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """All lines, the counts of each benchmark, and the mean over the benchmarks where the suite wants one."""

    lines: tuple[Line, ...]
    counts: dict[str, Counts]
    average: tuple[Line, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        names = dict.fromkeys(line.benchmark for line in self.lines)
        benchmarks = {name: self._benchmark(name) for name in names}
        return {"benchmarks": benchmarks, "average": {line.metric: asdict(line.value) for line in self.average}}

    def _benchmark(self, name: str) -> dict[str, Any]:
        lines = [line for line in self.lines if line.benchmark == name]
        return {
            "prompts": lines[0].num_prompts,
            "samples_per_prompt": lines[0].samples,
            "metrics": {line.metric: asdict(line.value) for line in lines},
            "counts": asdict(self.counts[name]),
        }

    def table(self) -> str:
        """A Markdown table whose columns are aligned, so that it reads as text as well."""
        rows = [list(HEADINGS), *(self._row(line) for line in self.lines), *(self._row(line) for line in self.average)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        rows.insert(1, ["-" * width for width in widths])
        return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)

    def _row(self, line: Line) -> list[str]:
        counts = self.counts.get(line.benchmark)
        value = line.value
        numbers = [f"{value.mean * 100:.1f}", f"{value.low * 100:.1f} to {value.high * 100:.1f}"]
        shown = [line.benchmark, label(line), str(line.num_prompts), str(line.samples or ""), *numbers]
        if counts is None or line.metric != "success":
            return [*shown, "", "", "", "", ""]
        means = [f"{counts.tokens:.0f}", f"{counts.turns:.1f}"]
        return [*shown, *means, str(counts.cut), str(counts.timeouts), str(counts.failed)]


def label(line: Line) -> str:
    """The metric as papers write it: avg@k, with the judge where it is not the training one."""
    if not line.metric.startswith("success"):
        return line.metric
    judge = line.metric.removeprefix("success").lstrip("_")
    return f"avg@{line.samples}" + (f" ({judge})" if judge else "")


def summarise(
    records: Path, benchmarks: Sequence[Benchmark], num_resamples: int, seed: int, average: bool = False
) -> Summary:
    """Numbers of every benchmark; `seed` is that of the bootstrap."""
    names = [name for name in pq.read_schema(records).names if name not in WIDE]
    table = pq.read_table(records, columns=names).to_pandas()
    lines: list[Line] = []
    counts: dict[str, Counts] = {}
    for benchmark in benchmarks:
        rows = table[table["benchmark"] == benchmark.name]
        counts[benchmark.name] = count(rows)
        lines += _lines(rows, benchmark, num_resamples, seed)
    means: tuple[Line, ...] = ()
    if average and len(benchmarks) > 1:
        judges = ["success", *(f"success_{name}" for name in _common_judges(benchmarks))]
        means = tuple(_average(table, benchmarks, metric, num_resamples, seed) for metric in judges)
    return Summary(tuple(lines), counts, means)


def count(rows: pd.DataFrame) -> Counts:
    """The counts over the samples of one benchmark."""
    reasons = {str(name): int(number) for name, number in rows["stop_reason"].value_counts().sort_index().items()}
    return Counts(
        tokens=float(rows["num_tokens"].mean()),
        turns=float(rows["turns"].mean()),
        reward=float(rows["reward"].mean()),
        cut=reasons.get("length", 0) + reasons.get("context", 0),
        timeouts=int(rows["num_timeouts"].sum()),
        failed=reasons.get("error", 0),
        stop_reasons=reasons,
    )


def _lines(rows: pd.DataFrame, benchmark: Benchmark, num_resamples: int, seed: int) -> list[Line]:
    def line(metric: str, values: Any, weights: Any = None) -> Line:
        value = estimate(values, num_resamples, bootstrap_seed(seed, benchmark.name, metric), weights)
        return Line(benchmark.name, metric, rows["row_id"].nunique(), benchmark.samples, value)

    lines = []
    for judge in ("", *benchmark.judge_again):
        metric = f"success_{judge}" if judge else "success"
        successes = matrix(rows, metric, benchmark.samples)
        lines.append(line(metric, average_at_k(successes)))
        for k in benchmark.pass_at:
            lines.append(line(f"pass@{k}" + (f" ({judge})" if judge else ""), pass_at_k(successes, k)))
    for metric, weight in benchmark.metrics.items():
        values = matrix(rows, metric, benchmark.samples)
        weights = np.ones_like(values) if weight is None else matrix(rows, weight, benchmark.samples)
        total = weights.sum(axis=1)  # of a prompt's samples, which stay together
        means = np.divide((values * weights).sum(axis=1), total, out=np.zeros_like(total), where=total > 0)
        lines.append(line(metric, means, total))
    return lines


def matrix(rows: pd.DataFrame, column: str, samples: int) -> np.ndarray:
    """(P, K) values of one column, prompts sorted by id; what a failed sample lacks is 0."""
    ordered = rows.sort_values(["row_id", "sample"])
    values = ordered[column].astype("float64").fillna(0.0).to_numpy()
    return values.reshape(-1, samples)


def _common_judges(benchmarks: Sequence[Benchmark]) -> list[str]:
    return [name for name in benchmarks[0].judge_again if all(name in other.judge_again for other in benchmarks)]


def _average(table: pd.DataFrame, benchmarks: Sequence[Benchmark], metric: str, num_resamples: int, seed: int) -> Line:
    """The unweighted mean over benchmarks; its interval resamples the prompts of each benchmark on their own."""
    means, resampled, prompts = [], np.zeros(num_resamples), 0
    for benchmark in benchmarks:
        rows = table[table["benchmark"] == benchmark.name]
        values = average_at_k(matrix(rows, metric, benchmark.samples))
        means.append(float(values.mean()))
        resampled += bootstrap_means(values, num_resamples, bootstrap_seed(seed, benchmark.name, metric))
        prompts += len(values)
    value = with_interval(float(np.mean(means)), resampled / len(benchmarks))
    judge = metric.removeprefix("success").lstrip("_")
    return Line("average", "average" + (f" ({judge})" if judge else ""), prompts, 0, value)


def bootstrap_seed(seed: int, benchmark: str, metric: str) -> int:
    """Each number has resamples of its own, whatever else is in the suite."""
    return zlib.crc32(f"{seed}/{benchmark}/{metric}".encode())
