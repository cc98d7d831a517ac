"""The numbers of a step, from what workers and verl's validation return; docs/metrics.md explains each."""

from collections.abc import Mapping, Sequence

from tensordict import TensorDict
from torch import Tensor

STEP_SHARES = ("per_step_accuracy", "recognition_accuracy")  # beside success, where the environment gives them


def metrics_of(output: TensorDict) -> dict[str, float]:
    """The scalars that a worker call returned."""
    return output["metrics"]


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over the mini-batches that have it, name by name."""
    names = dict.fromkeys(name for row in rows for name in row)
    having = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}


def validation_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Ours from those of verl's validation; `val/success` is the mean over data sources of mean accuracy."""
    by_source, extras = {}, {}
    for name, value in metrics.items():
        if name.startswith("val-core/") and "/acc/mean@" in name:
            by_source[name.split("/")[1]] = value
        if name.startswith("val-aux/") and name.split("/")[2] in STEP_SHARES and "/mean@" in name:
            extras[f"val/{name.split('/')[1]}/{name.split('/')[2]}"] = value
    return {
        "val/success": sum(by_source.values()) / len(by_source),
        **{f"val/{source}/success": value for source, value in by_source.items()},
        **extras,
        "val/num_turns": float(metrics["val-aux/num_turns/mean"]),
    }


def grader_warning(step: int, rewards: Tensor, metrics: Mapping[str, float]) -> str | None:
    """What to say of rewards (N,) that are all 0 while graders had trouble: it looks like a policy that fails."""
    timeouts, crashes = metrics.get("data/grader_timeouts", 0.0), metrics.get("data/grader_crashes", 0.0)
    if timeouts + crashes == 0 or bool(rewards.any()):
        return None
    return (
        f"warning: step {step}: all {len(rewards)} rollouts have reward 0, and graders ran out of time on "
        f"{timeouts:.0f} answers and crashed on {crashes:.0f}; the grader may be at fault, not the policy "
        "(docs/graders.md)"
    )
