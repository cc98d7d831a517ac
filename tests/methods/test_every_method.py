"""What the methods decide: every method on synthetic rollouts, hand cases, identities, resumption.

The identities between methods, and where each is shown:

    luffy without the demonstration = grpo, no std      test_luffy_without_its_demonstration_is_grpo
    fixed_mu at 0 = grpo, at 1 = sft                    test_the_ends_of_fixed_mu_are_grpo_and_sft; the update to the
                                                        bit: algorithm/test_mixture.py; against verl's own updates:
                                                        distributed/test_verl_parity.py
    dyme, all groups mixed = grpo                       test_dyme_on_mixed_groups_is_grpo
    hpt with gate -1 = grpo                             test_hpt_that_never_imitates_is_grpo
    superrl (and hpt), no reward anywhere = sft         test_a_switch_without_rewards_is_sft
    superrl, a reward for every prompt = grpo           test_superrl_with_rewards_everywhere_is_grpo
    relift without failures = grpo                      test_relift_without_failures_is_grpo
    chord_mu with a constant mu = fixed_mu              test_chord_mu_with_a_constant_schedule_is_fixed_mu
    dft = sft weighted by p, token by token             algorithm/test_token_losses.py
    iw_sft with tau 0, or at the reference = sft        algorithm/test_token_losses.py, distributed/test_policies.py
"""

import json
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from simulation import (
    NUM_STEPS,
    composed,
    decisions_of,
    every_preset,
    groups_of,
    losses_of,
    prepared,
    settings_of,
    take_steps,
)

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config_checks import CONFIGURATION_CHECKS, Run
from recipe.amft.methods import Mix, StepPlan, make_method
from recipe.amft.needs import everything_asked
from recipe.amft.shape import Shape


@every_preset
def test_every_preset_decides_twenty_steps(preset: str) -> None:
    """It builds, answers all questions about prompts of every kind, with failed rollouts, and asks for what it said.

    `everything_asked` is what the checks before a run look at: no later step may need more.
    """
    settings = settings_of(f"method={preset}")
    method = prepared(settings)
    decisions = decisions_of(method)
    asked = everything_asked(method, settings)
    for decision in decisions:
        for item in fields(StepPlan):
            assert getattr(asked, item.name) or not getattr(decision.plan, item.name), item.name
        if isinstance(decision.combination, Mix):
            assert 0 <= decision.combination.mu <= 1
        else:
            assert min(decision.combination.sft, decision.combination.rl) >= 0
            assert max(decision.combination.sft, decision.combination.rl) > 0
        assert all(math.isfinite(value) for value in decision.metrics.values())
    for loss in losses_of(method):
        assert loss is None or isinstance(loss, LossSpec)


@every_preset
@pytest.mark.parametrize("num_before", [0, 1, 7])
def test_a_resumed_method_decides_what_it_would_have_decided(preset: str, num_before: int) -> None:
    """state -> JSON -> a new method object: the same decisions and the same state in all later steps."""
    settings = settings_of(f"method={preset}")
    method = prepared(settings)
    state = method.after_warm_up(method.initial_state(), {"entropy": 0.6, "sft_norm": 2.0})
    state, _ = take_steps(method, state, range(num_before))
    resumed = prepared(settings)
    resumed_state = resumed.state_from_dict(json.loads(json.dumps(method.state_to_dict(state))))
    rest = range(num_before, NUM_STEPS)
    end, expected = take_steps(method, state, rest)
    resumed_end, decisions = take_steps(resumed, resumed_state, rest)
    assert [decision.plain() for decision in decisions] == [decision.plain() for decision in expected]
    assert resumed.state_to_dict(resumed_end) == method.state_to_dict(end)


@every_preset
def test_a_method_remembers_nothing_but_its_state(preset: str) -> None:
    """Asked again with the same state, the same object gives the same answers: nothing hides in it."""
    method = prepared(settings_of(f"method={preset}"))
    first, second = decisions_of(method), decisions_of(method)
    assert [decision.plain() for decision in first] == [decision.plain() for decision in second]


def test_groups_count_by_prompt() -> None:
    """Sizes and correct rollouts per prompt; a prompt whose rollouts all failed has none of either."""
    groups = groups_of([1.0, 0.0, 0.5], [], [0.4, 0.6])
    assert groups.num_prompts == 3
    assert groups.sizes.tolist() == [3, 0, 2]
    assert groups.num_correct().tolist() == [2, 0, 2]
    assert groups.num_correct(0.5).tolist() == [1, 0, 1]


PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text().partition("## Published numbers")[2]


PUBLISHED = {
    name: overrides.strip("`").split()
    for name, overrides in re.findall(r"^\| `(\w+)` \| [^|]+ \| ?([^|]*?) ?\|$", PAGE, re.MULTILINE)
}


@every_preset
def test_the_published_numbers_can_be_set(preset: str) -> None:
    """docs/methods.md has a row for every method, whose overrides compose and contradict nothing."""
    overrides = ["experiment=math_amft", f"method={preset}", *PUBLISHED[preset]]
    config = composed(*overrides)
    settings = settings_of(*overrides)
    asked = everything_asked(make_method(settings), settings)
    for check in CONFIGURATION_CHECKS:
        check(Run(config, settings, Shape.from_config(config), asked))
