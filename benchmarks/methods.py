"""Every method on one task with the same budget: success over seeds, time per step, peak memory.

    python -m benchmarks.methods [--seeds 0 1 2] [--methods NAME ...] [--runs runs/sweeps] [--jobs 1] [Hydra overrides]
    python -m benchmarks.methods --speed [--rounds 3] [--every K] [--runs runs/sweeps] [Hydra overrides]

The first form trains: the points of `python -m recipe.amft.sweep NAME scale=micro`, for every method and not only those
of a table, in the same folders, so that what one of them has run the others find. Points share workers.

The second form only times: from the same warmed policy each method takes a few steps, in turn, several rounds, on
batches of equal sizes (one demonstration for each prompt, answers of one length); a hybrid's time is compared with that
of a GRPO step plus an SFT step. A method with meta-updates takes a whole period of them, and those two as many steps.

Both write tables to RUNS: methods.md, speed.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compare import interval, parse
from recipe.amft.launch import train
from recipe.amft.main import CONFIGS
from recipe.amft.preflight import preflight
from recipe.amft.run_folder import RunFolder
from recipe.amft.sweeps.execution import LocalRunner, same_workers, training
from recipe.amft.sweeps.measured import MEASURED
from recipe.amft.sweeps.points import Point, points_of
from recipe.amft.sweeps.shared_workers import composed, restart, save
from recipe.amft.sweeps.states import state_of

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
SPEED = "speed.jsonl"
MEASURE_UTILITY = {"amft", "amft_literal", "amft_no_entropy", "amft_no_warmup"}
STEPS = 4  # of a method in a round of --speed
REFERENCES = ("grpo", "sft")
SAME_SIZES = ("amft.demonstrations.batch_size=${data.train_batch_size}", "actor_rollout_ref.rollout.ignore_eos=true")
# Their steps are those of SFT or GRPO, or have a critic.
NOT_TIMED = {"ppo", "sft_then_rl", "dft_then_rl", "rft", "dpo"}


def points_for(methods: list[str], seeds: list[int], overrides: list[str]) -> list[Point]:
    """A run of each method and seed at micro scale, as a sweep would make it."""
    return [
        point for seed in seeds for method in methods
        for point in points_of({"method": method}, "micro", "math", overrides, str(seed))
    ]  # fmt: skip


# ---- time per step ---------------------------------------------------------------------------------------------------


def time_points(points: list[Point], rounds: int, runs: Path) -> None:
    """Steps of all methods in turn, from one warmed policy, into RUNS/speed.jsonl: what disturbs one disturbs all."""
    own = runs / "speed" / points[0].method
    config = composed([*points[0].overrides, f"amft.run_dir={own / 'workers'}", "amft.overwrite=true"])
    settings, folder, _ = preflight(config)

    def body(trainer) -> None:
        for _ in range(settings.warm_up.steps):
            trainer.warm_up_step()
        warm = own / "warm"
        save(trainer, warm)
        counts = {}
        for point in points:  # not counted: the first steps on new workers are twice as slow as those that follow
            begin(trainer, training(point, own), warm)
            counts[point] = steps_in_a_round(trainer)
            list(time_steps(trainer, 2))
        counts |= {point: max(counts.values()) for point in points if point.method in REFERENCES}
        with open(runs / SPEED, "a") as lines:
            for number in range(rounds):
                for point in points:
                    begin(trainer, training(point, own), warm)
                    names = {"group": points[0].method, "method": point.method, "round": number}
                    for row in time_steps(trainer, counts[point]):
                        lines.write(json.dumps(names | row) + "\n")
                        lines.flush()

    train(config, settings, folder, body)


def begin(trainer, overrides: list[str], warm: Path) -> None:
    """The run of these overrides, on the warmed policy."""
    restart(trainer, [*overrides, "amft.overwrite=true"], warm)
    trainer.finish_warm_up({})


def steps_in_a_round(trainer) -> int:
    """STEPS, or one period of meta-updates."""
    every = trainer.settings.utility.every
    return every if trainer.method.plan(every, trainer.state.method).utility else STEPS


def time_steps(trainer, count: int) -> Iterator[dict]:
    """Seconds of the next `count` steps, weight sync included."""
    for step in range(1, count + 1):
        meta_update = trainer.method.plan(step, trainer.state.method).utility
        trainer.global_steps += 1
        trainer.timings = {}
        with trainer.timed("step"):
            trainer.train_step(step)
        every = trainer.settings.utility.every
        yield {"step": step, "meta_update": meta_update, "every": every, "seconds": trainer.timings["step"]}


# ---- tables ----------------------------------------------------------------------------------------------------------


def results_table(points: list[Point], folder: Path) -> str:
    lines = [
        "| method | success after warm-up | success at the end | each seed | time per step | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(point.method for point in points):
        runs = [point for point in points if point.method == method and state_of(point, (), folder).trained]
        if not runs:
            lines.append(f"| `{method}` | not run | | | | |")
            continue
        rows = [RunFolder(folder / point.folder).read_metrics() for point in runs]
        validated = [[row for row in run if "val/success" in row] for run in rows]
        warm = [row["val/success"] for run in validated for row in run if row["phase"] == "warm-up"]
        final = [run[-1]["val/success"] for run in validated]
        seconds = statistics.median(row["time/step"] for run in rows for row in run if row["phase"] == "train")
        measured = [folder / point.folder / MEASURED for point in runs]
        gib = [json.loads(path.read_text())["gib"] for path in measured if path.exists()]
        each = ", ".join(f"{value:.1%}" for value in final)
        lines.append(
            f"| `{method}` | {interval(warm) if warm else '-'} | {interval(final)} | {each} | {seconds:.1f} s "
            f"| {f'{max(gib):.1f} GiB' if gib else '-'} |"
        )
    return "\n".join(lines)


def speed_table(rows: list[dict]) -> str:
    """Mean seconds of a step, and its ratio to GRPO + SFT of the same workers and round, with 95% intervals."""
    by_step: dict[tuple, list[float]] = {}
    with_meta_updates = {row["method"] for row in rows if row["meta_update"]}
    for row in rows:
        method, names = row["method"], [row["method"]]
        if method in with_meta_updates:
            kind = "a meta-update" if row["meta_update"] else "a step without one"
            names = [f"{method}, mean of K = {row['every']} steps", f"{method}, {kind}"]
        for name in names:
            by_step.setdefault((row["group"], name, row["round"]), []).append(row["seconds"])
    seconds = {key: statistics.mean(values) for key, values in by_step.items()}
    lines = ["| method | time per step | ratio to GRPO + SFT |", "|---|---|---|"]
    for method in dict.fromkeys(name for _, name, _ in seconds):
        own = {(group, number): value for (group, name, number), value in seconds.items() if name == method}
        ratios = [
            value / (seconds[group, "grpo", number] + seconds[group, "sft", number])
            for (group, number), value in own.items()
        ]
        lines.append(f"| `{method}` | {interval(list(own.values()), '.2f', ' s')} | {interval(ratios, '.2f')} |")
    return "\n".join(lines)


# ---- command line ----------------------------------------------------------------------------------------------------


def in_own_process(points: list[Point], arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Time points with the same workers in a process of their own; SystemExit names what failed."""
    methods = list(dict.fromkeys(point.method for point in points))
    command = [sys.executable, "-m", "benchmarks.methods", "--speed", "--on-these-workers", "--methods", *methods]
    command += ["--seeds", str(points[0].seed), "--rounds", str(arguments.rounds), "--runs", str(arguments.runs)]
    command += ["--every", str(arguments.every)] if arguments.every else []
    status = subprocess.run([*command, *overrides]).returncode
    if status:
        raise SystemExit(f"error: {' '.join(command)} ended with status {status}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeps"))
    parser.add_argument("--jobs", type=int, default=1, help="groups of points that train at a time")
    parser.add_argument("--speed", action="store_true", help="time steps instead of training")
    parser.add_argument("--rounds", type=int, default=3, help="of --speed")
    parser.add_argument("--every", type=int, metavar="K", help="of --speed: steps from one meta-update to the next")
    parser.add_argument("--on-these-workers", action="store_true", help=argparse.SUPPRESS)
    arguments, overrides = parse(parser, sys.argv[1:])
    runs = arguments.runs = arguments.runs.absolute()
    runs.mkdir(parents=True, exist_ok=True)
    if arguments.speed:
        text = measure_speed(arguments, overrides)
    else:
        points = points_for(arguments.methods, arguments.seeds, overrides)
        left = {point: () for point in points if not state_of(point, (), runs).trained}
        status = LocalRunner(runs, arguments.jobs, share_workers=True).run(left)
        text = results_table(points, runs)
    (runs / ("speed.md" if arguments.speed else "methods.md")).write_text(text + "\n")
    print(text)
    sys.exit(0 if arguments.speed else status)


def measure_speed(arguments: argparse.Namespace, overrides: list[str]) -> str:
    """The table of what `time_points` measures, for all groups of workers; empty in the process of one group."""
    periods = {name: [f"amft.utility.every={arguments.every}"] for name in MEASURE_UTILITY if arguments.every}
    same = [*SAME_SIZES, *([f"trainer.total_training_steps={arguments.every + STEPS}"] if arguments.every else [])]
    points = [
        point for method in arguments.methods
        for point in points_for([method], arguments.seeds[:1], [*same, *overrides, *periods.get(method, [])])
    ]  # fmt: skip
    if arguments.on_these_workers:
        time_points(points, arguments.rounds, arguments.runs)
        return ""
    (arguments.runs / SPEED).unlink(missing_ok=True)
    points = [point for point in points if point.method not in NOT_TIMED]
    references = [point for point in points if point.method in REFERENCES]
    for group in same_workers(points):
        in_own_process([*group, *(point for point in references if point not in group)], arguments, overrides)
    return speed_table([json.loads(line) for line in (arguments.runs / SPEED).read_text().splitlines()])


if __name__ == "__main__":
    main()
