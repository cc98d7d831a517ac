"""The presets of AMFT and its controls train through verl, Ray and vLLM, most of them on one set of workers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.amft.sweeps.shared_workers import workers_of

pytestmark = pytest.mark.e2e

LEARNED = ["amft", "amft_literal", "amft_no_meta", "amft_no_entropy", "amft_no_warmup"]
GIVEN = {"grpo": 0.0, "fixed_mu": 0.3, "scheduled_mu": None, "sft": 1.0}
ROLLOUTS = "amft_on_rollouts"
OPTIONS = {"amft_no_warmup": ["amft.warm_up.steps=0"], "fixed_mu": ["amft.method.weight=0.3"]}


@pytest.fixture(scope="module")
def steps_of(arguments, small, environment, tmp_path_factory) -> dict[str, list[dict]]:
    """The metrics of each preset's two training steps; their workers are the same, so that they can share them."""
    folder = tmp_path_factory.mktemp("presets")
    runs = {
        name: arguments(folder / name, f"method={name}", *OPTIONS.get(name, [])) for name in [*LEARNED, *GIVEN]
    }  # fmt: skip
    without_validation = [item for item in small if not item.startswith("amft.utility.")]
    runs[ROLLOUTS] = arguments(
        folder / ROLLOUTS, *without_validation, "method=amft", "amft.utility.source=rollouts", only=True
    )
    return train_together(folder, runs, environment)


@pytest.fixture(scope="module")
def critic_steps_of(arguments, environment, tmp_path_factory) -> dict[str, list[dict]]:
    """The same of methods with a critic, on two FSDP2 ranks with a rollout replica each."""
    folder = tmp_path_factory.mktemp("critic")
    runs = {
        name: arguments(folder / name, f"method={name}", "algorithm.adv_estimator=gae", "trainer.n_gpus_per_node=2")
        for name in ("ppo", "amft")
    }
    return train_together(folder, runs, environment)


def train_together(folder: Path, runs: dict[str, list[str]], environment: dict[str, str]) -> dict[str, list[dict]]:
    """The metrics of the training steps of each run, whose workers are the same."""
    assert len({workers_of(overrides) for overrides in runs.values()}) == 1
    plan = folder / "plan.json"
    plan.write_text(json.dumps(list(runs.values())))
    command = [sys.executable, "-m", "recipe.amft.sweeps.shared_workers", str(plan)]
    finished = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=580)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = {name: (folder / name / "metrics.jsonl").read_text().splitlines() for name in runs}
    return {name: [row for row in map(json.loads, lines) if row["phase"] == "train"] for name, lines in rows.items()}


@pytest.mark.parametrize("method", LEARNED)
def test_a_learned_mu_is_reported_and_stays_in_its_range(steps_of, method):
    """Two training steps with a meta-update at the second: mu in [0.05, 0.95], both losses and norms finite."""
    steps = steps_of[method]
    assert len(steps) == 2
    for row in steps:
        assert 0.05 <= row["controller/mu"] <= 0.95
        for name in ("rl/loss", "sft/loss", "sft/norm", "rl/norm", "rl/reward", "controller/entropy"):
            assert math.isfinite(row[name]), name
        assert row["controller/target_entropy"] > 0
    assert ("meta/gradient" in steps[1]) == (method != "amft_no_meta"), "meta-update at t = 1 with K = 1"
    assert "meta/gradient" not in steps[0], "no meta-update at t = 0: there is no step to differentiate"
    if method != "amft_no_meta":
        assert steps[1]["meta/tangent_norm"] > 0


def test_rollouts_alone_can_measure_utility(steps_of):
    """source=rollouts: a meta-update in the second step, and no validation rollout."""
    first, second = steps_of[ROLLOUTS]
    assert "meta/gradient" not in first
    assert "meta/gradient" in second
    assert second["meta/tangent_norm"] > 0
    assert not any("meta/utility" in row for row in (first, second))


def test_rollouts_measure_utility_between_validations(run):
    """source=both with rewards: a meta-update in every step after the first, on validation rollouts in every second.

    In the others it is on the step's own rollouts, with those of the mini-batches after the last decision, which a
    checkpoint carries.
    """
    overrides = [
        "method=amft", "amft.utility.source=both", "amft.utility.every=2", "trainer.total_training_steps=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2", "trainer.save_freq=4",
        "+amft.task.options.env_id=environments:Lucky",
    ]  # fmt: skip
    finished = run(*overrides)
    assert finished.status == 0, finished.output
    steps = [row for row in finished.metrics if row["phase"] == "train"]
    assert ["meta/utility" in row for row in steps] == [False, False, True, False], "validation rollouts at t = 2"
    assert ["meta/gradient" in row for row in steps] == [False, True, True, True]
    for before, row in ((steps[0], steps[1]), (steps[2], steps[3])):
        assert row["meta/dot"] != 0
        assert 0 < abs(row["meta/cosine"]) <= 1
        assert row["controller/mu"] != before["controller/mu"]
    pending = json.loads((finished.folder / "checkpoints" / "global_step_4" / "amft.json").read_text())["utility"]
    assert len(pending) == 1, "the second mini-batch of the last step waits for a decision"
    assert pending[0]["dot"] != 0


def test_supervised_training_starts_no_rollout_engine_before_a_validation(run):
    """With an option that vLLM does not know a run without validations ends well; one with a validation takes all steps
    before it and fails there."""
    unknown = "+actor_rollout_ref.rollout.engine_kwargs.vllm.no_such_option=1"
    finished = run("method=sft", unknown)
    assert finished.status == 0, finished.output
    no_warm_up = ["amft.warm_up.steps=0", "amft.warm_up.entropy_batches=8"]  # behind which is a validation too
    steps = ["trainer.total_training_steps=3", "trainer.test_freq=3"]
    failed = run("method=sft", unknown, "amft.overwrite=true", *no_warm_up, *steps)
    assert failed.status != 0
    assert "workers ready" in failed.output
    assert "no_such_option" in failed.output
    assert "sft/loss" in failed.metrics[0], failed.output
    assert [row["step"] for row in failed.metrics] == [1, 2]


def test_ppo_trains_actor_and_critic(critic_steps_of):
    """PPO: mu = 0, no demonstration is used after the warm-up, the critic's loss is reported."""
    for step in critic_steps_of["ppo"]:
        assert step["controller/mu"] == 0.0
        assert "sft/loss" not in step
        assert math.isfinite(step["critic/vf_loss"])


def test_amft_with_a_critic_on_two_ranks(critic_steps_of):
    """AMFT with GAE on two FSDP2 ranks and two rollout replicas: same loop, both gradients, a meta-update."""
    step = critic_steps_of["amft"][-1]
    assert math.isfinite(step["critic/vf_loss"])
    assert math.isfinite(step["sft/norm"])
    assert math.isfinite(step["rl/norm"])
    assert step["meta/tangent_norm"] > 0


@pytest.mark.parametrize(("method", "weight"), GIVEN.items())
def test_a_given_mu_is_what_trains(steps_of, method, weight):
    """The controls use the mu they name; SFT generates nothing, GRPO uses no demonstration."""
    steps = steps_of[method]
    if weight is None:
        assert steps[0]["controller/mu"] == pytest.approx(0.9)
        assert steps[1]["controller/mu"] < 0.9
    else:
        assert all(row["controller/mu"] == weight for row in steps)
    assert ("rl/loss" in steps[0]) == (method != "sft")
    assert ("sft/loss" in steps[0]) == (method != "grpo")
