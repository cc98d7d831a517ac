"""How good is the meta-gradient? Against finite differences of validation success over mu, and against itself.

    python -m benchmarks.controller.diagnose [--problems ...] [--seeds 0 1] [--weight 0.3] [--out runs/controller]

At a few steps of a run with constant mu every estimator is computed on one large batch of validation rollouts and on
independent batches of the usual size. References: success after the same steps with mu + delta and mu - delta, the same
prompts, demonstrations and noise. "past" repeats the last H steps (what the estimators estimate), "future" takes the
next H (what the controller decides about).
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.controller.tasks import PROBLEMS, Problem
from benchmarks.controller.trainer import (
    Run,
    norm_of,
    pretrained,
    successes,
    train_step,
    utility_gradients,
    validation_rollouts,
    warm_up,
)
from benchmarks.controller.variants import config_of
from recipe.amft.algorithm.mixture import local_inner_products

ESTIMATORS = {  # a trace that forgets at once is horizon=one, but kept at every step
    "sgd, one step (Eq. 25)": "controller.meta.inner=sgd,controller.meta.trace_decay=0",
    "clipped, one step": "controller.meta.inner=clipped,controller.meta.trace_decay=0",
    "adamw, one step": "controller.meta.inner=adamw,controller.meta.trace_decay=0",
    "sgd, trace 0.98": "controller.meta.inner=sgd,controller.meta.trace_decay=0.98",
    "clipped, trace 0.98": "controller.meta.inner=clipped,controller.meta.trace_decay=0.98",
    "adamw, trace 0.9": "controller.meta.inner=adamw,controller.meta.trace_decay=0.9",
    "adamw, trace 0.98": "controller.meta.inner=adamw,controller.meta.trace_decay=0.98",
}
LOOK_AHEADS = (5, 20)
STEPS = (25, 50, 90)
DELTA = 0.15
CLEAR = 0.03  # success per unit of mu: a smaller reference has no sign to agree with
NUM_LARGE, NUM_BATCHES = 24, 8  # validation batches of the usual size: averaged into one, and looked at one by one


def measure(problem: Problem, seed: int, weight: float, base: torch.Tensor) -> list[dict]:
    """One record a step of STEPS; all estimators see one trajectory, each with its own tangent."""
    variants = [f"amft,utility.every=1000,{overrides}" for overrides in ESTIMATORS.values()]
    runs = [Run(problem, config_of(variant, problem), seed, base) for variant in variants]
    warm_up(runs)
    past: dict[int, Run] = {}
    records = []
    for step in range(STEPS[-1] + 1):
        past[step] = runs[0].twin()
        past.pop(step - LOOK_AHEADS[-1] - 1, None)
        if step in STEPS:
            records.append(probe(runs, step, weight, past) | {"problem": problem.name, "seed": seed, "step": step})
        train_step(runs, step, [weight] * len(runs))
    return records


def probe(runs: Sequence[Run], step: int, weight: float, past: dict[int, Run]) -> dict:
    large, batches = large_gradient(runs[0], step)
    tangents = [run.tangent.parameters for run in runs]
    exact = local_inner_products([([large], tangent) for tangent in tangents]).tolist()
    noisy = [local_inner_products([([batch], tangent) for batch in batches]).tolist() for tangent in tangents]
    halves = [local_inner_products([([a], [b])]).item() / (norm_of(a) * norm_of(b) or 1.0)
              for a, b in zip(batches[::2], batches[1::2], strict=True)]  # fmt: skip
    references = {}
    for length in LOOK_AHEADS:
        references[f"past {length}"] = finite_difference(past[step - length], step - length, length, weight)
        references[f"future {length}"] = finite_difference(runs[0], step, length, weight)
    return {
        "references": references,
        "cosine_of_batches": statistics.mean(halves),
        "success": successes([runs[0]], split="validation")[0],
        "estimators": {
            name: {"large": value, "batches": values}
            for name, value, values in zip(ESTIMATORS, exact, noisy, strict=True)
        },
    }


def large_gradient(run: Run, step: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """grad U from NUM_LARGE batches together, and NUM_BATCHES other batches one by one."""
    streams = [f"probe {index}" for index in range(NUM_LARGE + NUM_BATCHES)]
    gradients = [utility_gradients([run], validation_rollouts([run], step, stream))[0] for stream in streams]
    return torch.stack(gradients[:NUM_LARGE]).mean(0), gradients[NUM_LARGE:]


def finite_difference(run: Run, step: int, length: int, weight: float) -> float:
    """(U(mu + delta) - U(mu - delta)) / (2 delta) after `length` steps from `run`, on the validation split."""
    twins = [run.twin(), run.twin()]
    for offset in range(length):
        train_step(twins, step + offset, [weight + DELTA, weight - DELTA])
    above, below = successes(twins, 1024, "validation")
    return (above - below) / (2 * DELTA)


def table(records: Sequence[dict]) -> str:
    """By estimator: sign agreement and correlation with each reference, and the signal-to-noise ratio of one batch."""
    references = list(records[0]["references"])
    lines = [f"| estimator | {' | '.join(f'sign, {name}' for name in references)} "
             f"| {' | '.join(f'corr, {name}' for name in references)} | SNR | sign of one batch |"]  # fmt: skip
    lines.append("|---|" + "---|" * (2 * len(references) + 2))
    for name in ESTIMATORS:
        rows = [record["estimators"][name] for record in records]
        values = [row["large"] for row in rows]
        signs, correlations = [], []
        for reference in references:
            truth = [record["references"][reference] for record in records]
            clear = [(v, r) for v, r in zip(values, truth, strict=True) if abs(r) > CLEAR]
            share = f"{statistics.mean(float(v * r > 0) for v, r in clear):.2f}" if clear else "-"
            signs.append(f"{share} ({len(clear)})")
            varies = len(set(values)) > 1 and len(set(truth)) > 1
            correlations.append(f"{statistics.correlation(values, truth):+.2f}" if varies else "-")
        snr = statistics.median(abs(row["large"]) / (statistics.stdev(row["batches"]) or 1.0) for row in rows)
        agree = statistics.mean(float(b * row["large"] > 0) for row in rows for b in row["batches"])
        lines.append(f"| {name} | {' | '.join(signs)} | {' | '.join(correlations)} | {snr:.2f} | {agree:.2f} |")
    cosine = statistics.mean(record["cosine_of_batches"] for record in records)
    return "\n".join([*lines, "", f"Mean cosine of two validation gradients of the usual size: {cosine:.2f}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--weight", type=float, default=0.3)
    parser.add_argument("--out", type=Path, default=Path("runs/controller"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / "diagnosis.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(record["problem"], record["seed"]) for record in records}
    for name in arguments.problems:
        base = pretrained(PROBLEMS[name].world, arguments.out / "bases")
        for seed in arguments.seeds:
            if (name, seed) not in done:
                found = measure(PROBLEMS[name], seed, arguments.weight, base)
                records += found
                with path.open("a") as file:
                    file.writelines(json.dumps(record) + "\n" for record in found)
                print(f"{name}, seed {seed}: done", flush=True)
    text = table([record for record in records if record["problem"] in arguments.problems])
    (arguments.out / "diagnosis.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
