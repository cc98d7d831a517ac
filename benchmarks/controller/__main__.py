"""Compare controllers of mu on tiny problems, in parallel processes, resumable; tables and plots at the end.

    python -m benchmarks.controller [--suites constants amft heuristics] [--variants "amft,controller.meta.horizon=one"]
        [--problems few_clean ...] [--seeds 30 31 ... 49] [--no-warm-up] [--jobs 2] [--out runs/controller]

Runs that have a record are not repeated: delete OUT/records to start over after a change of the code.
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.controller import report
from benchmarks.controller.runner import measure_all, record_path
from benchmarks.controller.tasks import PROBLEMS
from benchmarks.controller.variants import SUITES, config_of

EVALUATION_SEEDS = range(30, 50)  # 0 to 9 are for development, 10 to 29 have been looked at between two choices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="*", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--variants", nargs="*", default=[])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(EVALUATION_SEEDS))
    parser.add_argument("--no-warm-up", action="store_true", help="start every variant from the base model")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/controller"))
    arguments = parser.parse_args()
    variants = {name: variant for suite in arguments.suites for name, variant in SUITES[suite].items()}
    variants |= {variant: variant for variant in arguments.variants}
    if arguments.no_warm_up:
        variants = {name: f"{variant},warm_up.steps=0" for name, variant in variants.items()}
    for variant in variants.values():
        for problem in arguments.problems:
            config_of(variant, PROBLEMS[problem])  # a typing error costs no run
    measure_all(list(variants.values()), arguments.problems, arguments.seeds, arguments.out, arguments.jobs)
    records = {
        (problem, name, seed): json.loads(record_path(arguments.out, problem, variant, seed).read_text())
        for problem in arguments.problems
        for name, variant in variants.items()
        for seed in arguments.seeds
    }
    print(report.write(records, arguments.out))


if __name__ == "__main__":
    main()
