"""Every method on one task with the same budget: success over seeds, time per step, peak memory.

    python -m benchmarks.methods [--seeds 0 1 2] [--methods NAME ...] [--out runs/methods] [Hydra overrides]
    python -m benchmarks.methods --speed [--rounds 5] [--out runs/methods] [Hydra overrides]

The first form trains. Each method and seed leaves an ordinary run folder OUT/METHOD-SEED; finished ones are skipped.
Methods whose workers are configured alike share one set of them and begin from the same saved weights, which saves the
start; a method gives the same numbers as in a run of its own (docs/log.md).

The second form only times: from the same warmed policy each method takes two steps, in turn, several rounds, on batches
of equal sizes (one demonstration for each prompt); a hybrid's time is compared with that of a GRPO step plus an SFT
step.

Both write tables to OUT: methods.md, speed.md.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from omegaconf import OmegaConf, open_dict

from benchmarks.compare import interval
from recipe.amft.launch import train
from recipe.amft.main import CONFIGS, compose
from recipe.amft.preflight import preflight
from recipe.amft.run_folder import RunFolder

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
MEASURED = "measured.json"
SPEED = "speed.jsonl"
# What the driver reads anew for each method; everything else is built into the workers.
DRIVERS_OWN = (
    "actor_rollout_ref.rollout.n",
    "algorithm.norm_adv_by_std_in_grpo",
    "data.seed",
    "presets",
    "trainer.default_local_dir",
    "trainer.experiment_name",
    "trainer.validation_data_dir",
)
# Their steps are those of SFT or GRPO, or have a critic.
NOT_TIMED = {"ppo", "sft_then_rl", "dft_then_rl", "rft", "dpo"}


@dataclass(frozen=True)
class Point:
    """One method with one seed."""

    method: str
    seed: int
    overrides: tuple[str, ...]
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.method}-{self.seed}"

    def compose(self):
        seeds = [f"{key}={self.seed}" for key in ("data.seed", "amft.demonstrations.seed", "amft.rollout_seed")]
        own = [f"method={self.method}", f"amft.run_dir={self.folder}", "amft.overwrite=true", *seeds]
        config = compose([*own, *stage_lengths(self.method, self.overrides), *self.overrides])
        with open_dict(config):
            config.transfer_queue.enable = True
        return config

    @property
    def workers(self) -> str:
        """What the workers are built from; points with the same one can share them."""
        config = self.compose()
        amft = OmegaConf.to_container(config.amft, resolve=True)
        with open_dict(config):
            for key in DRIVERS_OWN:  # before anything is resolved: other keys repeat some of them
                OmegaConf.update(config, key, None)
            config.amft = {key: amft[key] for key in ("task", "model", "rollout_seed")}
        return OmegaConf.to_yaml(config, resolve=True, sort_keys=True)


def stage_lengths(method: str, overrides: tuple[str, ...]) -> list[str]:
    """Stages that fit the run, half of it SFT or a fifth sampling; the presets' are those of longer runs."""
    steps = compose(list(overrides)).trainer.total_training_steps
    options = {
        "sft_then_rl": f"amft.method.options.sft_steps={steps // 2}",
        "dft_then_rl": f"amft.method.options.sft_steps={steps // 2}",
        "rft": f"amft.method.options.sample_steps={max(1, steps // 5)}",
        "dpo": f"amft.method.options.sample_steps={max(1, steps // 5)}",
        "relift": "amft.method.options.buffer_size=32",
    }
    return [options[method]] if method in options else []


# ---- the training process --------------------------------------------------------------------------------------------


def train_points(points: list[Point]) -> None:
    """Train all points, whose workers are the same, one after the other on one set of them."""
    config = points[0].compose()
    with open_dict(config):
        config.amft.run_dir = str(points[0].out / "workers" / f"{points[0].method}-{points[0].seed}")
    settings, folder, _ = preflight(config)

    def body(trainer, agent_loops) -> None:
        initial = folder.path / "initial"
        trainer.actor_rollout_wg.save_checkpoint(str(initial), None, 0, None)
        for point in points:
            started = time.monotonic()
            try:
                with peak_memory() as peak:
                    restart(trainer, point, initial)
                    trainer.fit(agent_loops)
            except (ValueError, RuntimeError) as error:  # such as no correct sample to learn from: no result
                trainer.folder.close()
                folder.say(f"{point.folder.name} failed: {error}")
                continue
            measured = {"seconds": time.monotonic() - started, "gib": peak[0]}
            (point.folder / MEASURED).write_text(json.dumps(measured))
            trainer.folder.finish()

    train(config, settings, folder, body)


def restart(trainer, point: Point, initial: Path) -> None:
    """The trainer as a new run of `point` would have it."""
    config = point.compose()
    settings, folder, _ = preflight(config)
    folder.open(config)
    OmegaConf.resolve(config)
    trainer.config, trainer.folder = config, folder
    trainer.begin(settings)
    trainer._init_dataloader()
    trainer.global_steps = 0
    trainer.actor_rollout_wg.load_checkpoint(str(initial))
    trainer.actor_rollout_wg.forget()
    trainer.weights_changed()
    trainer.before_loading()


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A list whose only item becomes the largest sum of proportional set sizes of this process tree, GiB."""
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(2):
            total = 0
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total / 2**30)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


# ---- time per step ---------------------------------------------------------------------------------------------------


def time_points(points: list[Point], rounds: int) -> None:
    """Steps of all methods in turn, from one warmed policy, into OUT/speed.jsonl: what disturbs one disturbs all."""
    out = points[0].out
    config = points[0].compose()
    with open_dict(config):
        config.amft.run_dir = str(out / "workers" / f"speed-{points[0].method}")
    settings, folder, _ = preflight(config)

    def body(trainer, agent_loops) -> None:
        trainer.agent_loop_manager = agent_loops
        for _ in range(settings.warm_up.steps):
            trainer.warm_up_step()
        warm = folder.path / "warm"
        trainer.actor_rollout_wg.save_checkpoint(str(warm), None, 0, None)
        with open(out / SPEED, "a") as lines:
            for number in range(rounds):
                for point in points:
                    restart(trainer, point, warm)
                    trainer.finish_warm_up({})
                    every = trainer.settings.utility.every
                    asks = trainer.method.plan(every, trainer.state.method).utility
                    for step in (1, 2, *([every] if asks else [])):
                        seconds = time_step(trainer, step)
                        row = {"group": points[0].method, "method": point.method, "round": number, "step": step}
                        row["meta_update"] = trainer.method.plan(step, trainer.state.method).utility
                        lines.write(json.dumps(row | {"seconds": seconds}) + "\n")
                        lines.flush()

    train(config, settings, folder, body)


def time_step(trainer, step: int) -> float:
    """Seconds of one training step with its weight sync, if it generates."""
    trainer.global_steps += 1
    trainer.timings = {}
    with trainer.timed("step"):
        trainer.train_step(step)
    return trainer.timings["step"]


# ---- tables ----------------------------------------------------------------------------------------------------------


def results_table(points: list[Point]) -> str:
    lines = [
        "| method | success after warm-up | success at the end | each seed | time per step | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(point.method for point in points):
        runs = [point for point in points if point.method == method and (point.folder / MEASURED).exists()]
        if not runs:
            lines.append(f"| `{method}` | not run | | | | |")
            continue
        rows = [RunFolder(point.folder).read_metrics() for point in runs]
        validated = [[row for row in run if "val/success" in row] for run in rows]
        warm = [row["val/success"] for run in validated for row in run if row["phase"] == "warm-up"]
        final = [run[-1]["val/success"] for run in validated]
        seconds = statistics.median(row["time/step"] for run in rows for row in run if row["phase"] == "train")
        gib = max(json.loads((point.folder / MEASURED).read_text())["gib"] for point in runs)
        each = ", ".join(f"{value:.1%}" for value in final)
        lines.append(
            f"| `{method}` | {interval(warm) if warm else '-'} | {interval(final)} | {each} | {seconds:.1f} s "
            f"| {gib:.1f} GiB |"
        )
    return "\n".join(lines)


def speed_table(rows: list[dict]) -> str:
    """Mean seconds of a step, and its ratio to GRPO + SFT of the same workers and round, with 95% intervals."""
    by_step: dict[tuple, list[float]] = {}
    for row in rows:
        name = f"{row['method']}, a meta-update" if row["meta_update"] else row["method"]
        by_step.setdefault((row["group"], name, row["round"]), []).append(row["seconds"])
    seconds = {key: statistics.mean(values) for key, values in by_step.items()}
    lines = ["| method | time per step | ratio to GRPO + SFT |", "|---|---|---|"]
    for method in dict.fromkeys(name for _, name, _ in seconds):
        own = {(group, number): value for (group, name, number), value in seconds.items() if name == method}
        ratios = [
            value / (seconds[group, "grpo", number] + seconds[group, "sft", number])
            for (group, number), value in own.items()
        ]
        lines.append(f"| `{method}` | {spread(list(own.values()), ' s')} | {spread(ratios)} |")
    return "\n".join(lines)


def spread(values: list[float], unit: str = "") -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}{unit}"
    return f"{mean:.2f} ± {1.96 * statistics.stdev(values) / math.sqrt(len(values)):.2f}{unit}"


# ---- command line ----------------------------------------------------------------------------------------------------


def in_own_process(points: list[Point], arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Train or time points with the same workers in a process of their own; SystemExit names what failed."""
    methods = list(dict.fromkeys(point.method for point in points))
    command = [sys.executable, "-m", "benchmarks.methods", "--on-these-workers"]
    command += ["--methods", *methods, "--seeds", *map(str, sorted({point.seed for point in points}))]
    command += ["--speed"] if arguments.speed else []
    command += ["--rounds", str(arguments.rounds), "--out", str(arguments.out)]  # then what is left are overrides
    status = subprocess.run([*command, *overrides]).returncode
    if status:
        raise SystemExit(f"error: {' '.join(command)} ended with status {status}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--speed", action="store_true", help="time steps instead of training")
    parser.add_argument("--rounds", type=int, default=5, help="of --speed")
    parser.add_argument("--on-these-workers", action="store_true", help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.speed:
        overrides.append("amft.demonstrations.batch_size=${data.train_batch_size}")
    seeds = arguments.seeds[:1] if arguments.speed else arguments.seeds
    points = [Point(method, seed, tuple(overrides), out) for seed in seeds for method in arguments.methods]
    if arguments.on_these_workers:
        time_points(points, arguments.rounds) if arguments.speed else train_points(points)
        return
    if arguments.speed:
        (out / SPEED).unlink(missing_ok=True)
        points = [point for point in points if point.method not in NOT_TIMED]
    for group in groups([point for point in points if arguments.speed or not (point.folder / MEASURED).exists()]):
        if arguments.speed:
            references = [point for name in ("grpo", "sft") for point in points if point.method == name]
            group = [*group, *(point for point in references if point not in group)]
        in_own_process(group, arguments, overrides)
    if arguments.speed:
        text = speed_table([json.loads(line) for line in (out / SPEED).read_text().splitlines()])
    else:
        text = results_table(points)
    (out / ("speed.md" if arguments.speed else "methods.md")).write_text(text + "\n")
    print(text)


def groups(points: list[Point]) -> list[list[Point]]:
    """Points whose workers are built alike, in order."""
    by_workers: dict[str, list[Point]] = {}
    for point in points:
        by_workers.setdefault(point.workers, []).append(point)
    return list(by_workers.values())


if __name__ == "__main__":
    main()
