"""Every method trains through verl, Ray and vLLM, three steps each on one set of workers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
METHODS = [
    "sft", "dft", "dft_sentence", "dft_geometric", "iw_sft", "sft_kl", "grpo", "fixed_mu", "chord_mu", "chord_phi",
    "luffy", "srft", "relift", "superrl", "sasr", "dyme", "hpt", "tapo", "rft", "dpo", "sft_then_rl", "dft_then_rl",
    "amft",
]  # fmt: skip
LEARNS_FROM_BOTH = {"amft", "fixed_mu", "chord_mu", "chord_phi", "luffy", "srft"}
HAS_A_REFERENCE = {"iw_sft", "sft_kl", "dpo"}
LEARNS_BY_PROMPT = {"superrl", "dyme", "hpt"}


@pytest.fixture(scope="module")
def results(tmp_path_factory, small, environment, cache) -> dict[str, dict]:
    """What each method's three steps gave, by name."""
    folder = tmp_path_factory.mktemp("methods")
    small = [item for item in small if not item.startswith("amft.utility.")]  # the first method, grpo, ignores it
    overrides = [*small, "+amft.task.options.env_id=environments:Lucky", f"amft.run_dir={folder / 'run'}"]
    command = [sys.executable, str(Path(__file__).with_name("many_methods.py")), *METHODS, "--", *overrides]
    # A constant rate: the schedule of so short a run would be at 0 in every other step of the methods that come later.
    schedule = ["lr_scheduler_type=constant", "lr_warmup_steps_ratio=0"]
    command += [f"actor_rollout_ref.actor.optim.{item}" for item in schedule]
    command += [f"amft.cache_dir={cache}", "method=grpo"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stderr[-3000:]
    lines = (folder / "run" / "methods.jsonl").read_text().splitlines()
    return {result["method"]: result for result in map(json.loads, lines)}


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_are_finite(results, method):
    """All metrics are finite, and something was learned in every step."""
    result = results[method]
    assert len(result["steps"]) == 3
    for step in result["steps"]:
        assert all(math.isfinite(value) for value in step.values()), step
        if "method/collected_share" in step:  # this step collects and does not learn
            continue
        assert step["data/updates"] > 0
        # The product of an untrained model's probabilities over an answer is 0 in float32.
        assert step["actor/grad_norm"] > 0 or method == "dft_sentence"


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_gives_back_what_the_method_remembers(results, method):
    """Its state, the policy and the reference as before the kill; the third step was taken from there."""
    result = results[method]
    assert result["state"]["after"] == result["state"]["before"]
    policy, reference = result["resumed"]
    assert policy == pytest.approx(result["policy"][2], rel=1e-6)
    assert (reference is not None) == (method in HAS_A_REFERENCE)
    if reference is not None:
        assert reference == pytest.approx(result["reference"][0], rel=1e-6)


@pytest.mark.parametrize("method", sorted(HAS_A_REFERENCE))
def test_the_reference_stays_while_the_policy_moves(results, method):
    """It is the policy that the method started with, after every step and after the kill."""
    result = results[method]
    assert result["reference"] == pytest.approx([result["policy"][0]] * 4, rel=1e-6)
    assert result["policy"][2] != pytest.approx(result["policy"][0], rel=1e-6)


@pytest.mark.parametrize("method", ["sft_then_rl", "dft_then_rl"])
def test_the_second_stage_starts_from_the_best_weights_of_the_first(results, method):
    """The first of two validations was the best, and the run was killed after the second: back to the first's weights.

    Not to the last ones, which the checkpoint holds.
    """
    result = results[method]
    assert result["started"][0] == pytest.approx(result["policy"][1], rel=1e-6)
    assert result["started"][0] != pytest.approx(result["policy"][2], rel=1e-6)


@pytest.mark.parametrize("method", sorted(LEARNS_FROM_BOTH))
def test_hybrids_use_both_gradients_in_every_step(results, method):
    for step in results[method]["steps"]:
        assert step["sft/norm"] > 0
        assert step["rl/norm"] > 0


@pytest.mark.parametrize("method", sorted(LEARNS_BY_PROMPT))
def test_gated_methods_imitate_exactly_when_a_prompt_failed(results, method):
    for step in results[method]["steps"]:
        assert ("sft/loss" in step) == (step["method/failed_prompts"] > 0)
        assert ("rl/loss" in step) == (step["method/failed_prompts"] < 1 or method == "dyme")


def test_supervised_methods_generate_nothing(results):
    for method in ("dft", "dft_sentence", "dft_geometric", "iw_sft", "sft_kl"):
        assert all("rl/reward" not in step for step in results[method]["steps"])


def test_two_stages_imitate_then_reinforce(results):
    """Two steps without rollouts, then one without demonstrations."""
    for method in ("sft_then_rl", "dft_then_rl"):
        assert [("sft/loss" in step, "rl/loss" in step) for step in results[method]["steps"]] == [
            (True, False),
            (True, False),
            (False, True),
        ]


def test_relift_rehearses_what_failed(results):
    """With a buffer of one prompt, a step with a failed prompt makes a supervised update of its own."""
    assert any(step["relift/rehearsed"] for step in results["relift"]["steps"])
    for step in results["relift"]["steps"]:
        assert ("rehearsal/loss" in step) == (step["relift/rehearsed"] > 0)
