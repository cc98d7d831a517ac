"""How good is the meta-gradient? Against finite differences of validation success over mu, and against itself.

    python -m benchmarks.controller.diagnose [--problems ...] [--seeds 0 1] [--weight 0.3] [--out runs/controller]

At a few steps of a run with constant mu every estimator is computed on one large batch of validation rollouts and on
independent small ones of several sizes, the rollouts of a training step among them (with L_RL's gradient, that is with
GRPO's advantages). References: success after the same steps with mu + delta and mu - delta, the same
prompts, demonstrations and noise. "past" repeats the last H steps (what the estimators estimate), "future" takes the
next H (what the controller decides about).
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.controller.passes import gradients, sample, utility_gradients
from benchmarks.controller.run import Run, Sample, norm_of, pretrained
from benchmarks.controller.tasks import PROBLEMS, Problem
from benchmarks.controller.trainer import successes, train_step, validation_rollouts, warm_up
from benchmarks.controller.variants import config_of
from recipe.amft.algorithm.mixture import local_inner_products
from recipe.amft.algorithm.token_losses import LossSpec

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
NUM_LARGE, NUM_BATCHES = 24, 8  # batches of the usual size averaged into one; batches of each size looked at one by one
NUM_PROMPTS = (4, 16, 64)  # of a small batch, 8 rollouts each; 16 is the usual size
OF_A_STEP = "a training step"


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
    large = torch.stack([utility_gradient(runs[0], step, f"large {index}", 16) for index in range(NUM_LARGE)]).mean(0)
    small = {
        f"{8 * num}": [utility_gradient(runs[0], step, f"{num} prompts {index}", num) for index in range(NUM_BATCHES)]
        for num in NUM_PROMPTS
    }
    small[OF_A_STEP] = [rollout_gradient(runs[0], step, index) for index in range(NUM_BATCHES)]
    tangents = [run.tangent.parameters for run in runs]
    exact = local_inner_products([([large], tangent) for tangent in tangents]).tolist()
    noisy = [
        {
            size: local_inner_products([([batch], tangent) for batch in batches]).tolist()
            for size, batches in small.items()
        }
        for tangent in tangents
    ]
    batches = small["128"]
    sft = -gradients([runs[0]], [runs[0].demonstrations(step)], [LossSpec()])[0][0]
    halves = [cosine(a, b) for a, b in zip(batches[::2], batches[1::2], strict=True)]
    references = {}
    for length in LOOK_AHEADS:
        references[f"past {length}"] = finite_difference(past[step - length], step - length, length, weight)
        references[f"future {length}"] = finite_difference(runs[0], step, length, weight)
    return {
        "references": references,
        "cosine_of_batches": statistics.mean(halves),
        "rl": statistics.mean(cosine(gradient, large) for gradient in small[OF_A_STEP]),
        "sft": cosine(sft, large),
        "success": successes([runs[0]], split="validation")[0],
        "estimators": {
            name: {"large": value, "batches": values}
            for name, value, values in zip(ESTIMATORS, exact, noisy, strict=True)
        },
    }


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return local_inner_products([([left], [right])]).item() / (norm_of(left) * norm_of(right) or 1.0)


def utility_gradient(run: Run, step: int, stream: str, num_prompts: int) -> torch.Tensor:
    """grad U from the rollouts of `num_prompts` validation prompts that only `stream` has."""
    utility = dataclasses.replace(run.config.utility, num_prompts=num_prompts)
    twin = run.twin()
    twin.config = dataclasses.replace(run.config, utility=utility)
    return utility_gradients([twin], validation_rollouts([twin], step, f"probe {stream}"))[0]


def rollout_gradient(run: Run, step: int, index: int) -> torch.Tensor:
    """Minus the gradient of L_RL on what a training step generates, from prompts that only (step, index) has."""
    other = 10_000 + 100 * step + index
    rollouts = sample([run], [run.prompts(other)], run.sizes.rollouts_per_prompt, "rollouts", other)[0]
    choice, _ = run.choose(step, rollouts, None)
    weighted = Sample(rollouts.prompts, rollouts.responses, choice.advantages, rollouts.groups)
    return -gradients([run], [weighted], [LossSpec("policy_gradient")])[0][0]


def finite_difference(run: Run, step: int, length: int, weight: float) -> float:
    """(U(mu + delta) - U(mu - delta)) / (2 delta) after `length` steps from `run`, on the validation split."""
    twins = [run.twin(), run.twin()]
    for offset in range(length):
        train_step(twins, step + offset, [weight + DELTA, weight - DELTA])
    above, below = successes(twins, 1024, "validation")
    return (above - below) / (2 * DELTA)


def table(records: Sequence[dict]) -> str:
    """By estimator: agreement of the large batch with the references, and how noisy a small one is, by its size.

    Sign: share of probes with the reference's sign, of those where it is clear. SNR: median over probes of the mean of
    the small batches over their standard deviation, and after the slash the share with the large batch's sign.
    """
    references = list(records[0]["references"])
    lines = [f"| estimator | {' | '.join(f'sign, {name}' for name in references)} "
             f"| {' | '.join(f'corr, {name}' for name in references)} |"]  # fmt: skip
    lines.append("|---|" + "---|" * (2 * len(references)))
    sizes = list(records[0]["estimators"][next(iter(ESTIMATORS))]["batches"])
    noise = [f"| estimator | {' | '.join(f'rollouts: {size}' for size in sizes)} |", "|---|" + "---|" * len(sizes)]
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
        lines.append(f"| {name} | {' | '.join(signs)} | {' | '.join(correlations)} |")
        cells = [_noise([(row["large"], row["batches"][size]) for row in rows]) for size in sizes]
        noise.append(f"| {name} | {' | '.join(cells)} |")
    similarity = statistics.mean(record["cosine_of_batches"] for record in records)
    return "\n".join(
        [*lines, "", *noise, "", f"Mean cosine of two validation gradients of the usual size: {similarity:.2f}."]
    )


def alignment(records: Sequence[dict]) -> str:
    """By problem and step, means over seeds: cosines a and b of the RL and SFT gradient with grad U, and b / (a + b).

    That is the mu at which a mixture of equal length and orthogonal parts is aligned best (docs/controller.md).
    """
    lines = ["| problem | step | success | a | b | mu\\* |", "|---|---|---|---|---|---|"]
    for problem in dict.fromkeys(record["problem"] for record in records):
        for step in sorted({record["step"] for record in records}):
            rows = [record for record in records if (record["problem"], record["step"]) == (problem, step)]
            success, a, b = (statistics.mean(row[name] for row in rows) for name in ("success", "rl", "sft"))
            best = f"{max(b, 0) / (max(a, 0) + max(b, 0)):.2f}" if max(a, b) > 0 else "-"
            lines.append(f"| {problem} | {step} | {success:.2f} | {a:+.2f} | {b:+.2f} | {best} |")
    return "\n".join(lines)


def _noise(rows: Sequence[tuple[float, list[float]]]) -> str:
    ratios = [abs(statistics.mean(batches)) / (statistics.stdev(batches) or 1.0) for _, batches in rows]
    agree = statistics.mean(float(value * large > 0) for large, batches in rows for value in batches)
    return f"{statistics.median(ratios):.2f} / {agree:.2f}"


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
    chosen = [record for record in records if record["problem"] in arguments.problems]
    text = f"{table(chosen)}\n\n{alignment(chosen)}"
    (arguments.out / "diagnosis.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
