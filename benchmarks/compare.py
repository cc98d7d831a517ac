"""SFT only, GRPO only and AMFT on the quickstart task: same warm-up, same number of steps, several seeds.

    python -m benchmarks.compare [--seeds 0 1 2] [--methods sft grpo amft] [--out runs/compare] [Hydra overrides]

Runs one after the other, skips finished ones, and prints a table (also OUT/table.md): success on held-out hands after
the warm-up and at the end with a 95% interval over seeds, wall time, and the peak memory of the process tree.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from recipe.amft.reporting.estimates import over_seeds
from recipe.amft.sweeps.measured import MEASURED, measured


@dataclass(frozen=True)
class Outcome:
    """One run: success after the warm-up and at the end, wall seconds, peak GiB."""

    warm: float
    final: float
    seconds: float
    gib: float


def measure(method: str, seed: int, folder: Path, overrides: list[str]) -> Outcome:
    """Run (or read) one point."""
    record = folder / MEASURED
    if not record.exists():
        command = [sys.executable, "-m", "recipe.amft.main", f"method={method}", f"amft.run_dir={folder}"]
        seeds = [f"data.seed={seed}", f"amft.demonstrations.seed={seed}", f"amft.rollout_seed={seed}"]
        process = subprocess.Popen([*command, "amft.overwrite=true", *seeds, *overrides])
        with measured(folder, psutil.Process(process.pid)):
            if process.wait():
                raise SystemExit(f"error: {' '.join(command)} ended with status {process.returncode}.")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "val/success" in row]
    warm = [row for row in validated if row["phase"] == "warm-up"]
    return Outcome(warm[-1]["val/success"], validated[-1]["val/success"], **json.loads(record.read_text()))


def interval(values: list[float], form: str = ".1%", unit: str = "") -> str:
    """Mean and half width of the 95% interval over seeds, each written as `form` says; one value has no interval."""
    found = over_seeds(values)
    return f"{found.mean:{form}}{unit}" if found.half is None else f"{found.mean:{form}} ± {found.half:{form}}{unit}"


def table(outcomes: dict[str, list[Outcome]]) -> str:
    lines = [
        "| method | success after warm-up | success at the end | each seed | wall time | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for method, runs in outcomes.items():
        each = ", ".join(f"{run.final:.1%}" for run in runs)
        lines.append(
            f"| {method} | {interval([run.warm for run in runs])} | {interval([run.final for run in runs])} | {each} "
            f"| {statistics.mean(run.seconds for run in runs):.0f} s | {max(run.gib for run in runs):.1f} GiB |"
        )
    return "\n".join(lines)


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and Hydra overrides (what has a "="), which may stand anywhere among them."""
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    return parser.parse_args([word for word in words if word not in overrides]), overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["sft", "grpo", "amft"])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    arguments, overrides = parse(parser, sys.argv[1:])
    outcomes: dict[str, list[Outcome]] = {method: [] for method in arguments.methods}
    for seed in arguments.seeds:
        for method in arguments.methods:
            outcomes[method].append(measure(method, seed, arguments.out / f"{method}-{seed}", overrides))
    text = table(outcomes)
    (arguments.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
