"""`python -m recipe.amft.sweep NAME ... scale=SCALE [overrides]`: the runs behind the papers' tables and figures.

    python -m recipe.amft.sweep amft_table4 scale=micro                    what there is, and what is left
    python -m recipe.amft.sweep amft_table4 scale=micro --submit local     run what is left, here
    python -m recipe.amft.sweep all scale=paper --submit slurm --jobs 4    as Slurm job arrays, four tasks at a time
    python -m recipe.amft.sweep amft_table2 scale=paper --check            compose and check every run, start none

Finished points are skipped, stopped and failed ones go on. NAME is a file of configs/sweep; overrides are Hydra's, for
every run (another value makes another run; recipe.amft.report takes the same). docs/reproduce.md lists the tables.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipe.amft.sweeps.execution import LocalRunner, run_task, steps_of, submit_ray, submit_slurm, training
from recipe.amft.sweeps.points import SCALES, Point, Sweep, load, names
from recipe.amft.sweeps.states import State, state_of

SUBMIT = ("local", "slurm", "ray")
UNMADE = "made-by-amft"  # where `--check` makes neither data nor model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    given = parser.parse_intermixed_args(arguments)
    if given.task:
        return run_task(given.task[0], Path(given.task[1]))
    try:
        status = act(given)
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(status)


def act(given: argparse.Namespace) -> int:
    sweeps = read_request(given.names, given.seeds, given.rows)
    runs = given.runs.expanduser().absolute()
    points = together(sweeps)
    states = {point: state_of(point, suites, runs) for point, suites in points.items()}
    print(report(sweeps, states, runs))
    left = {point: points[point] for point, state in states.items() if not state.finished}
    if given.check:
        return check(list(points), runs)
    if given.commands:
        for point, suites in left.items():
            print("\n".join(shlex.join(command) for command in steps_of(point, suites, runs)))
        return 0
    if given.submit is None or not left:
        return 0
    if given.submit == "local":
        return LocalRunner(runs, given.jobs, given.share_workers).run(left)
    options = shlex.split(given.options)
    if given.submit == "slurm":
        submit_slurm(left, runs, given.jobs, options, print)
    else:
        seeds = ["--seeds", *map(str, given.seeds)] if given.seeds else []
        rows = ["--rows", *given.rows] if given.rows else []
        submit_ray([*given.names, "--runs", str(runs), *seeds, *rows], options, print)
    return 0


def read_request(
    words: Sequence[str], seeds: Sequence[int] | None = None, rows: Sequence[str] | None = None
) -> list[Sweep]:
    """The sweeps that `words` name (sweeps, scale=..., overrides); `seeds` and `rows` in place of all of them."""
    wanted = [word for word in words if "=" not in word]
    assigned = [word for word in words if "=" in word]
    scales = [word.removeprefix("scale=") for word in assigned if word.startswith("scale=")]
    if len(scales) != 1:
        raise ValueError(f"give the scale once: scale=..., one of {', '.join(SCALES)}.")
    overrides = [word for word in assigned if not word.startswith("scale=")]
    for word in overrides:
        if word.split("=")[0] in ("amft.run_dir", "seed"):
            raise ValueError(f"{word}: the sweep gives every run its own; see --runs and --seeds.")
    chosen = names() if wanted == ["all"] else wanted
    if not chosen:
        raise ValueError(f"name a table or figure, or all: {', '.join(names())}.")
    return [load(name, scales[0], overrides, seeds, rows) for name in chosen]


def together(sweeps: Sequence[Sweep]) -> dict[Point, tuple[str, ...]]:
    """The points of all sweeps, each once, with every suite that one of them reads."""
    merged: dict[Point, tuple[str, ...]] = {}
    for sweep in sweeps:
        for point, suites in sweep.points().items():
            merged[point] = tuple(dict.fromkeys((*merged.get(point, ()), *suites)))
    return merged


def report(sweeps: Sequence[Sweep], states: Mapping[Point, State], runs: Path) -> str:
    """A line a point, then what cannot be run and why, then the counts."""
    users: dict[Point, list[str]] = {}
    for sweep in sweeps:
        for point in sweep.points():
            users.setdefault(point, []).append(sweep.name)
    width = max((len(point.folder) for point in states), default=0)
    lines = [f"{runs}"]
    for point, state in states.items():
        lines.append(f"  {point.folder:<{width}}  {state!s:<28}  {', '.join(users[point])}")
    for sweep in sweeps:
        for reason, cells in sweep.missing().items():
            lines.append(f"  {sweep.name}: {len(cells)} of {len(sweep.cells)} cells not available: {reason}")
    finished = sum(state.finished for state in states.values())
    lines.append(f"{finished} of {len(states)} points finished, {len(states) - finished} left")
    return "\n".join(lines)


def check(points: Sequence[Point], runs: Path) -> int:
    """Compose every run and put it through preflight's checks; data and models are looked for, and made by nobody."""
    failed, lacking = 0, Counter[str]()
    for point in points:
        try:
            lacking.update(findings(point, runs))
        except ValueError as error:
            failed += 1
            print(f"{point.folder}: refused: {error}")
    for text, number in lacking.items():
        print(f"not on this machine, for {number} points: {text}")
    print(f"{len(points) - failed} of {len(points)} points pass")
    return 1 if failed else 0


def findings(point: Point, runs: Path) -> tuple[str, ...]:
    """What this machine lacks for a point; ValueError for a configuration that no machine would run.

    What an earlier run left in the point's folder is no finding: nothing is written, and its state is in the report.
    """
    from recipe.amft.main import compose
    from recipe.amft.preflight import preflight

    config = compose([*training(point, runs), "amft.overwrite=true", "dry_run=true"])
    data, model = config.data, config.actor_rollout_ref.model
    if data.train_files is None:
        data.train_files = data.val_files = UNMADE
    if model.path is None:
        model.path = UNMADE
    _, _, plan = preflight(config)
    return tuple(text for text in plan.findings if UNMADE not in text)


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for a command about the runs of tables, with `--runs`, whose help lists what there is."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"names: {', '.join(names())}, all",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeps"), metavar="DIR", help="the folder of all runs")
    return parser


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of("recipe.amft.sweep", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME|scale=SCALE|OVERRIDE")
    parser.add_argument("--submit", choices=SUBMIT, help="run what is left; without it nothing is started")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="points at a time (local, slurm)")
    parser.add_argument(
        "--share-workers", action="store_true", help="train points with the same workers on one set of them (local)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="in place of the file's")
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="only these rows of the tables")
    parser.add_argument("--commands", action="store_true", help="print the commands that are left")
    parser.add_argument("--check", action="store_true", help="compose and check every run, start none")
    parser.add_argument("--options", default="", metavar="'...'", help="further options of sbatch or `ray job submit`")
    parser.add_argument("--task", nargs=2, metavar=("KIND", "PLAN"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
