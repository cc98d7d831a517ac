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

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config import AMFTConfig, from_mapping
from recipe.amft.config_checks import CONFIGURATION_CHECKS, Run, check_every_key_is_read
from recipe.amft.main import CONFIGS, compose
from recipe.amft.methods import METHODS, Choice, Groups, Measurements, Method, Mix, StepPlan, Sum, make_method
from recipe.amft.preflight import everything_asked
from recipe.amft.shape import Shape

PRESETS = sorted(path.stem for path in Path(CONFIGS, "method").glob("*.yaml"))
NUM_STEPS, NUM_PROMPTS, GROUP_SIZE, NUM_ROWS = 20, 4, 8, 10
every_preset = pytest.mark.parametrize("preset", PRESETS)


@functools.cache
def composed(*overrides: str) -> Any:
    return compose(list(overrides))


def settings_of(*overrides: str) -> AMFTConfig:
    return from_mapping(OmegaConf.to_container(composed(*overrides).amft, resolve=True))


def method_of(name: str, values: Mapping[str, Any] | None = None, **options: Any) -> Method:
    """A method with options of its own, and `values` of the rest of the `amft:` tree."""
    return make_method(from_mapping({**(values or {}), "method": {"name": name, "options": options}}))


def losses_of(method: Method) -> tuple[LossSpec, LossSpec | None]:
    """Of demonstrations and of rollouts."""
    return method.demonstration_loss, method.rollout_loss


# ---- twenty steps without a policy -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Everything a method says about one step."""

    plan: StepPlan
    choice: Choice
    combination: Mix | Sum
    metrics: Mapping[str, float]

    def plain(self) -> Any:
        """Comparable: tensors as lists."""
        lists = {
            name: value.tolist()
            if isinstance(value, torch.Tensor)
            else list(value)
            if name == "demonstrated"
            else value
            for name, value in vars(self.choice).items()
        }
        return asdict(self.plan), lists, self.combination, dict(self.metrics)


@dataclass
class World:
    """What a method is told at each step: rewards (by default of every kind of prompt) and measurements."""

    rewards: Callable[[int], torch.Tensor] | None = None  # step -> (NUM_PROMPTS, GROUP_SIZE)
    losses: Mapping[str, float] = field(default_factory=lambda: {"rl/loss": 0.3, "sft/loss": 1.7})

    def groups(self, step: int, method: Method) -> Groups:
        generator = torch.Generator().manual_seed(step)
        if self.rewards is not None:
            rewards = self.rewards(step).double().flatten()
        else:
            chances = torch.tensor([0.0, 0.1, 0.5, 1.0])[torch.randperm(NUM_PROMPTS, generator=generator)]
            drawn = torch.rand(NUM_PROMPTS, GROUP_SIZE, generator=generator)
            rewards = (drawn < chances.unsqueeze(-1)).double().flatten()
        prompts = torch.arange(NUM_PROMPTS).repeat_interleave(GROUP_SIZE)
        survives = torch.ones(len(prompts), dtype=torch.bool)
        if step % 5 == 4 and self.rewards is None:  # the environment failed for some rollouts, and for a whole prompt
            survives = (torch.rand(len(prompts), generator=generator) < 0.7) & (prompts != step % NUM_PROMPTS)
        return Groups(
            prompts=prompts[survives],
            rewards=rewards[survives],
            row_ids=[f"row-{(step * NUM_PROMPTS + index) % NUM_ROWS}" for index in range(NUM_PROMPTS)],
            demonstration_rewards=torch.tensor([1.0, 1.0, 0.0, 1.0]).double() if method.scores_demonstrations else None,
        )

    def measurements(self, step: int, plan: StepPlan, choice: Choice, num_rollouts: int) -> Measurements:
        entropy = {"demonstration": 0.5 + 0.01 * step, "rollout": 0.8 - 0.02 * step}
        num_demonstrations = len(choice.demonstrated) if plan.paired else plan.demonstrations * NUM_PROMPTS
        counts = {"demonstration": num_demonstrations, "rollout": num_rollouts}
        return Measurements(
            entropy={source: value for source, value in entropy.items() if counts[source]},
            utility={"dot": math.sin(step), "utility_norm": 2.0, "tangent_norm": 3.0} if plan.utility else None,
            learning_rate=1e-3,
            num_tokens={source: 30 * count for source, count in counts.items()},
            num_sequences=counts,
        )


def prepared(settings: AMFTConfig) -> Method:
    """A method as the driver has it before the first step."""
    method = make_method(settings)
    if method.reads_demonstrations:
        texts = {f"row-{row}": f"What is {row}?" + " 7" * (row % 3) for row in range(NUM_ROWS)}
        method.read_demonstrations(texts, {row: f"First {text} Then 2. So 3." for row, text in texts.items()})
    return method


def take_step(method: Method, state: Any, step: int, world: World) -> tuple[Any, Decision]:
    """One step with the four questions in the driver's order."""
    plan = method.plan(step, state)
    choice, num_rollouts = Choice(), 0
    if plan.rollouts:
        groups = world.groups(step, method)
        state, choice = method.choose(state, step, groups)
        check_choice(method, plan, groups, choice)
        num_rollouts = len(groups.rewards) if choice.keep is None else int(choice.keep.sum())
    measured = world.measurements(step, plan, choice, num_rollouts)
    state, combination, metrics = method.combine(state, step, measured)
    told = {**world.losses, "sft/norm": 2.0 / (1 + step)} if plan.demonstrations else world.losses
    return method.observe(state, step, told), Decision(plan, choice, combination, metrics)


def take_steps(method: Method, state: Any, steps: range, world: World | None = None) -> tuple[Any, list[Decision]]:
    decisions = []
    for step in steps:
        state, decision = take_step(method, state, step, world or World())
        decisions.append(decision)
    return state, decisions


def decisions_of(method: Method, world: World | None = None, num_steps: int = NUM_STEPS) -> list[Decision]:
    state = method.after_warm_up(method.initial_state(), {"entropy": 0.6, "sft_norm": 2.0})
    return take_steps(method, state, range(num_steps), world)[1]


def check_choice(method: Method, plan: StepPlan, groups: Groups, choice: Choice) -> None:
    """What the driver relies on."""
    num_rollouts = len(groups.rewards)
    if choice.keep is not None:
        assert choice.keep.shape == (num_rollouts,)
        assert choice.keep.dtype == torch.bool
    assert (choice.advantages is not None) == method.own_advantages
    if choice.advantages is not None:
        assert choice.advantages.shape == (num_rollouts,)
        assert choice.advantages.isfinite().all()
    demonstrated = list(choice.demonstrated)
    assert len(set(demonstrated)) == len(demonstrated)
    assert set(demonstrated) <= set(range(groups.num_prompts))
    assert plan.paired or not demonstrated
    if choice.demonstration_weights is not None:
        assert choice.demonstration_weights.shape == (len(demonstrated),)
    assert plan.rehearsal or not choice.rehearsed
    assert len(set(choice.rehearsed)) == len(choice.rehearsed)
    assert all(isinstance(value, float) for value in choice.metrics.values())
    if plan.paired:
        kept = num_rollouts if choice.keep is None else int(choice.keep.sum())
        assert demonstrated or kept, "a step must have something to learn from"


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


# ---- hand cases ------------------------------------------------------------------------------------------------------


def groups_of(*rewards: list[float], demonstrations: list[float] | None = None, first_row: int = 0) -> Groups:
    """One list of rewards per prompt; row ids count from `first_row`."""
    return Groups(
        prompts=torch.tensor([prompt for prompt, values in enumerate(rewards) for _ in values], dtype=torch.int64),
        rewards=torch.tensor([reward for values in rewards for reward in values], dtype=torch.float64),
        row_ids=[f"row-{first_row + index}" for index in range(len(rewards))],
        demonstration_rewards=None if demonstrations is None else torch.tensor(demonstrations).double(),
    )


def measured(num_demonstration_tokens: int = 100, num_rollout_tokens: int = 300) -> Measurements:
    return Measurements(
        entropy={"demonstration": 0.5, "rollout": 0.8},
        num_tokens={"demonstration": num_demonstration_tokens, "rollout": num_rollout_tokens},
        num_sequences={"demonstration": 1, "rollout": 7},
    )


def decided(method: Method, groups: Groups, told: Measurements | None = None) -> tuple[Choice, Any]:
    """(choice, combination) of the first step."""
    state, choice = method.choose(method.initial_state(), 0, groups)
    _, combination, _ = method.combine(state, 0, told or measured())
    return choice, combination


def test_groups_count_by_prompt() -> None:
    """Sizes and correct rollouts per prompt; a prompt whose rollouts all failed has none of either."""
    groups = groups_of([1.0, 0.0, 0.5], [], [0.4, 0.6])
    assert groups.num_prompts == 3
    assert groups.sizes.tolist() == [3, 0, 2]
    assert groups.num_correct().tolist() == [2, 0, 2]
    assert groups.num_correct(0.5).tolist() == [1, 0, 1]


def test_luffys_seven_rollouts_and_one_demonstration() -> None:
    """A = r - mean over all eight; each half weighs by its learned tokens; a wrong demonstration is pushed down."""
    groups = groups_of([1.0] + [0.0] * 6, [1.0] * 7, demonstrations=[1.0, 0.0])
    choice, combination = decided(method_of("luffy"), groups, measured(100, 300))
    assert choice.advantages is not None
    assert choice.advantages.tolist() == [0.75] + [-0.25] * 6 + [0.125] * 7
    assert choice.demonstration_weights is not None
    assert choice.demonstration_weights.tolist() == [0.75, -0.875]
    assert list(choice.demonstrated) == [0, 1]
    assert choice.keep is None
    assert combination == Sum(sft=0.25, rl=0.75)
    assert choice.metrics["luffy/demonstration_reward"] == 0.5


def test_luffys_losses() -> None:
    """f(p) = p / (p + gamma) on demonstrations; on rollouts verl's clipped loss, or the public code's bare ratio."""
    shaped = LossSpec("shaped_probability", {"gamma": 0.3}, entropy_bonus=True)
    assert losses_of(method_of("luffy", gamma=0.3)) == (shaped, None)


def test_luffys_entropy_bonus_holds_with_and_without_the_clip() -> None:
    """Demonstrations have it too, as in the public code; verl's clipped loss has its own, the bare ratio takes it."""
    assert method_of("luffy", clip_on_policy=False).rollout_loss == LossSpec("importance_ratio", entropy_bonus=True)
    assert all(method_of("luffy", clip_on_policy=clip).demonstration_loss.entropy_bonus for clip in (True, False))
    assert composed("method=luffy").actor_rollout_ref.actor.entropy_coeff == 0.001


@pytest.mark.parametrize("clip", [True, False])
def test_luffy_without_its_demonstration_is_grpo(clip: bool) -> None:
    """demonstration_rows=0: all rollouts with weight 1, the advantages that verl's GRPO has without the standard
    deviation, and verl's clipped loss unless its clip key says otherwise; nothing is scored or learned beside them."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    luffy, grpo = method_of("luffy", demonstration_rows=0, clip_on_policy=clip), method_of("grpo")
    assert not luffy.scores_demonstrations
    world = World(lambda step: torch.rand(NUM_PROMPTS, GROUP_SIZE, generator=torch.Generator().manual_seed(step)))
    for step, (left, right) in enumerate(zip(decisions_of(luffy, world), decisions_of(grpo, world), strict=True)):
        assert left.plan == right.plan
        assert learned(left) == learned(right) | {"own_advantages": True}
        groups = world.groups(step, luffy)
        expected, _ = compute_grpo_outcome_advantage(
            groups.rewards.unsqueeze(-1),
            torch.ones(len(groups.rewards), 1),
            groups.prompts.numpy(),
            norm_adv_by_std_in_grpo=False,
        )
        assert left.choice.advantages is not None
        torch.testing.assert_close(left.choice.advantages, expected.squeeze(-1).double(), rtol=0, atol=1e-6)
    assert (luffy.rollout_loss == grpo.rollout_loss) == clip


def test_luffy_with_demonstrations_at_the_mean_is_grpo_without_the_standard_deviation() -> None:
    """A demonstration that is worth what the rollouts are on average leaves r - mean, and learns nothing itself."""
    groups = groups_of([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], demonstrations=[0.5, 0.25])
    choice, _ = decided(method_of("luffy"), groups)
    assert choice.advantages is not None
    assert choice.advantages.tolist() == [0.5, -0.5, -0.5, 0.5, -0.25, -0.25, 0.75, -0.25]
    assert choice.demonstration_weights is not None
    assert choice.demonstration_weights.tolist() == [0.0, 0.0]


def test_srfts_signs() -> None:
    """+1 on correct rollouts, -1 on the others; (r - mean) / std for the demonstration, with itself in the group."""
    choice, combination = decided(method_of("srft"), groups_of([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], demonstrations=[1, 1]))
    assert choice.advantages is not None
    assert choice.advantages.tolist() == [1, -1, -1, 1, 1, 1]
    assert choice.demonstration_weights is not None
    unit = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert choice.demonstration_weights.tolist() == pytest.approx([unit, 0.0], rel=1e-14)
    assert combination == Sum(sft=1.0, rl=1.0)
    assert choice.metrics["srft/positive_share"] == pytest.approx(4 / 6)


def test_srfts_variants() -> None:
    """AMFT's description has neither the RL term on demonstrations nor the negative rollouts; `code` flips exp(-H)."""
    described, paper = method_of("srft", variant="amft_description"), method_of("srft")
    choice, _ = decided(described, groups_of([1.0, 0.0], demonstrations=[1.0]))
    assert choice.demonstration_weights is not None
    assert choice.demonstration_weights.tolist() == [0.0]
    scope = {"entropy_scope": "batch"}
    assert losses_of(paper) == (
        LossSpec("srft_demonstration", {"coefficient": 0.5, "sign": -1.0} | scope),
        LossSpec("srft_rollout", {"coefficient": 0.1, "negatives": 1.0} | scope),
    )
    assert described.rollout_loss == LossSpec("srft_rollout", {"coefficient": 0.1, "negatives": 0.0} | scope)
    assert method_of("srft", sft_sign="code").demonstration_loss.options["sign"] == 1.0


def test_srfts_entropy_is_the_batchs_or_each_sequences() -> None:
    """The paper's by default, which the workers have to measure beforehand; HPT's version needs no such pass."""
    for scope, needed in (("batch", True), ("sequence", False)):
        specs = losses_of(method_of("srft", entropy_scope=scope))
        assert [spec is not None and spec.needs_batch_entropy for spec in specs] == [needed, needed]
    assert method_of("srft").options.entropy_scope == "batch"


def test_superrl_switches_prompt_by_prompt() -> None:
    """Two of four prompts have no reward: their demonstrations, the others' rollouts, each half weighs one half."""
    groups = groups_of([0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    choice, combination = decided(method_of("superrl"), groups)
    assert choice.demonstrated == [0, 2]
    assert choice.keep is not None
    assert choice.keep.tolist() == [False, False, True, True, False, False, True, True]
    assert combination == Sum(sft=0.5, rl=0.5)
    assert choice.metrics["method/failed_prompts"] == 0.5


def test_superrls_uncertainty_weights_by_hand() -> None:
    """L = exp(-2 s1) L_RL + exp(-2 s2) L_SFT + s1 + s2 from s1 = 0, s2 = 1, one step of gradient descent with rate 0.1.

    s1 <- 0 - 0.1 (1 - 2 * 0.3) = -0.04 and s2 <- 1 - 0.1 (1 - 2 exp(-2) 1.5) = 0.9 + 0.3 exp(-2).
    """
    method = method_of("superrl", mode="log_sigma", learning_rate=0.1)
    choice, combination = decided(method, groups_of([0.0, 0.0], [1.0, 0.0]))
    assert choice.keep is None
    assert list(choice.demonstrated) == [0, 1]
    assert combination == Sum(sft=math.exp(-2), rl=1.0)
    state = method.observe(method.initial_state(), 0, {"rl/loss": 0.3, "sft/loss": 1.5})
    assert state.rl_log_sigma == pytest.approx(-0.04, rel=1e-14)
    assert state.sft_log_sigma == pytest.approx(0.9 + 0.3 * math.exp(-2), rel=1e-14)
    _, later, metrics = method.combine(state, 1, measured())
    assert later.rl == pytest.approx(math.exp(0.08), rel=1e-14)
    assert metrics == {"superrl/sft_weight": later.sft, "superrl/rl_weight": later.rl}


def test_superrls_uncertainties_settle_where_the_loss_is_least() -> None:
    """At constant losses s = log(2 L) / 2; without any loss s falls to `smallest` and stays there."""
    method = method_of("superrl", mode="log_sigma", learning_rate=0.05)
    state = method.initial_state()
    for step in range(2000):
        state = method.observe(state, step, {"rl/loss": 0.0, "sft/loss": 1.5})
    assert state.sft_log_sigma == pytest.approx(0.5 * math.log(3.0), rel=1e-9)
    assert state.rl_log_sigma == -2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_does_not_reach_superrls_uncertainties(bad: float) -> None:
    """The optimiser skips such a step; a weight that is not finite would skip all that follow."""
    method = method_of("superrl", mode="log_sigma")
    state = method.observe(method.initial_state(), 0, {"rl/loss": bad, "sft/loss": 1.5})
    assert state.rl_log_sigma == 0.0
    assert math.isfinite(state.sft_log_sigma)
    assert method.observe(method.initial_state(), 0, {"rl/loss": 0.3, "sft/loss": bad}).sft_log_sigma == 1.0


def test_dymes_weights() -> None:
    """One of four prompts has nothing above 0.5: its demonstration takes one slot of 4 * 4 sequences, weight 1/16."""
    groups = groups_of([0.0, 0.5, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0], [1.0] * 4, [0.0, 1.0, 1.0, 0.0])
    choice, combination = decided(method_of("dyme"), groups)
    assert choice.demonstrated == [0]
    assert choice.demonstration_weights is None
    assert combination == Sum(sft=0.25 / 4, rl=1.0)


@pytest.mark.parametrize(
    ("gate", "kept", "demonstrated"),
    [(-1, [True, True, True], []), (0, [False, True, True], [0]), (2, [False, False, True], [0, 1])],
)
def test_hpts_gate(gate: int, kept: list[bool], demonstrated: list[int]) -> None:
    """Prompts with 0, 2 and 3 correct rollouts of 3 or more: imitation up to the gate, without their rollouts."""
    groups = groups_of([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    choice, combination = decided(method_of("hpt", gate=gate, sft_weight=0.3), groups)
    assert choice.keep is not None
    assert choice.keep.tolist() == [keep for keep in kept for _ in range(4)]
    assert choice.demonstrated == demonstrated
    assert combination == Sum(sft=0.3, rl=1.0, skip_above=80.0)


def rehearsed_by(method: Method, failures: list[list[int]], num_prompts: int = 4) -> list[list[str]]:
    """What each step rehearses when exactly the given rows fail in it; other rows succeed."""
    state, found = method.initial_state(), []
    for step, rows in enumerate(failures):
        good = [f"good-{step}-{index}" for index in range(num_prompts - len(rows))]
        ids = [*(f"row-{row}" for row in rows), *good]
        rewards = torch.tensor([0.0] * len(rows) + [1.0] * len(good)).double()
        groups = Groups(torch.arange(len(ids)), rewards, ids)
        state, choice = method.choose(state, step, groups)
        assert choice.metrics["relift/buffer"] == len(state) + len(choice.rehearsed)
        assert choice.metrics["relift/rehearsed"] == len(choice.rehearsed)
        found.append([row_id.removeprefix("row-") for row_id in choice.rehearsed])
        state = method.state_from_dict(json.loads(json.dumps(method.state_to_dict(state))))
    return found


def test_relifts_buffer_is_newest_first() -> None:
    """Three in a row of two, one and three failures: the newest three are rehearsed, the older ones wait, then go."""
    method = method_of("relift", buffer_size=3)
    assert rehearsed_by(method, [[1, 2], [], [3], [4, 5, 6], [7, 8, 9]]) == [
        [],
        [],
        ["3", "1", "2"],
        ["4", "5", "6"],
        ["7", "8", "9"],
    ]


def test_relifts_older_failures_wait_for_their_turn() -> None:
    """What does not fit stays in the buffer, in order."""
    method = method_of("relift", buffer_size=3)
    assert rehearsed_by(method, [[1, 2], [3, 4, 5, 6], [], [7]]) == [[], ["3", "4", "5"], ["6", "1", "2"], []]


def test_relifts_buffer_holds_no_prompt_twice() -> None:
    """A prompt that fails again moves to the front, also when one batch holds it twice."""
    method = method_of("relift", buffer_size=3)
    assert rehearsed_by(method, [[1, 2], [1], [2, 3]]) == [[], [], ["2", "3", "1"]]
    assert rehearsed_by(method, [[1, 1], [2], [3]]) == [[], [], ["3", "2", "1"]]


def test_relifts_fixed_interval() -> None:
    """AMFT's text: every so many steps whatever failed since; nothing when nothing failed."""
    method = method_of("relift", trigger="every", every=2)
    assert rehearsed_by(method, [[1], [2, 3], [], [], [4], []]) == [[], ["2", "3", "1"], [], [], [], ["4"]]


def test_relift_is_grpo_beside_its_rehearsals() -> None:
    """All rollouts with verl's advantages; the further update has its own rate and its own moments."""
    method = method_of("relift", learning_rate=3e-6)
    choice, combination = decided(method, groups_of([0.0, 0.0], [1.0, 0.0]))
    assert choice.keep is None
    assert choice.advantages is None
    assert combination == Sum(sft=1.0, rl=1.0)
    assert method.rehearsal is not None
    assert method.rehearsal.learning_rate == 3e-6
    assert method.rehearsal.optimizer != "main"


def test_sasrs_probability() -> None:
    """The ratio of the SFT gradient's norm to that at the end of the warm-up, in [least, 1]."""
    method = method_of("sasr", least=0.1)
    state = method.after_warm_up(method.initial_state(), {"entropy": 1.0, "sft_norm": 4.0})
    assert method.probability(state) == 1.0
    for norm, expected in ((3.0, 0.75), (8.0, 1.0), (0.04, 0.1), (1.0, 0.25)):
        state = method.observe(state, 0, {"sft/norm": norm})
        assert method.probability(state) == expected
    assert method.observe(state, 1, {"rl/norm": 5.0}) == state, "a step without imitation measures nothing"


def test_sasr_without_a_warm_up_compares_with_its_first_step() -> None:
    """It imitates until it has measured a norm."""
    method = method_of("sasr")
    state = method.after_warm_up(method.initial_state(), {"entropy": 1.0})
    assert method.probability(state) == 1.0
    assert method.plan(0, state) == StepPlan(rollouts=False)
    state = method.observe(state, 0, {"sft/norm": 5.0})
    state = method.observe(state, 1, {"sft/norm": 1.0})
    assert method.probability(state) == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_not_reach_sasrs_probability(bad: float) -> None:
    """Such a step is skipped; as the first norm it would fix the probability for the rest of the run."""
    method = method_of("sasr")
    state = method.observe(method.initial_state(), 0, {"sft/norm": bad})
    assert method.probability(state) == 1.0
    state = method.observe(method.observe(state, 1, {"sft/norm": 4.0}), 2, {"sft/norm": 2.0})
    assert method.probability(method.observe(state, 3, {"sft/norm": bad})) == 0.5
    warmed = method.after_warm_up(method.initial_state(), {"entropy": 1.0, "sft_norm": bad})
    assert method.probability(method.observe(warmed, 0, {"sft/norm": 2.0})) == 1.0


def test_sasrs_coin() -> None:
    """It depends on seed and step alone, is thrown with the probability said, and decides one phase or the other."""

    def share(seed: int, norm: float) -> tuple[float, list[bool]]:
        method = method_of("sasr", seed=seed)
        state = method.after_warm_up(method.initial_state(), {"entropy": 1.0, "sft_norm": 1.0})
        state = method.observe(state, 0, {"sft/norm": norm})
        plans = [method.plan(step, state) for step in range(2000)]
        assert all(plan.rollouts != plan.demonstrations for plan in plans)
        mixes = [method.combine(state, step, measured())[1] for step in range(50)]
        assert mixes == [Mix(float(plan.demonstrations)) for plan in plans[:50]]
        return sum(plan.demonstrations for plan in plans) / len(plans), [plan.demonstrations for plan in plans]

    imitates, coins = share(0, 0.3)
    assert imitates == pytest.approx(0.3, abs=0.04)  # four standard deviations
    assert share(0, 0.3)[1] == coins
    assert share(1, 0.3)[1] != coins
    assert share(0, 1.0)[0] == 1.0


def test_dpos_reference_is_the_policy_that_sampled() -> None:
    """The warmed one, from which the samples come; losses that compare with the base model keep the given one."""
    assert method_of("dpo").reference == "warmed"
    assert {make_method(settings_of(f"method={name}")).reference for name in PRESETS if name != "dpo"} == {None}


@pytest.mark.parametrize("name", ["chord_mu", "chord_phi"])
def test_chord_mixes_unscaled_gradients(name: str) -> None:
    """Eq. 3 as it is; the controls of AMFT scale as AMFT does."""
    assert settings_of(f"method={name}").mixture.scale == "none"
    assert settings_of("method=fixed_mu").mixture == settings_of("method=amft").mixture


# ---- identities ------------------------------------------------------------------------------------------------------


def mixed(step: int) -> torch.Tensor:
    """Every prompt has correct and wrong rollouts."""
    generator = torch.Generator().manual_seed(100 + step)
    rewards = (torch.rand(NUM_PROMPTS, GROUP_SIZE, generator=generator) < 0.5).double()
    rewards[:, 0], rewards[:, 1] = 0.0, 1.0
    return rewards


def learned(decision: Decision) -> dict[str, Any]:
    """What a step comes to: the rollouts and demonstrations with their weights, whatever way they were said."""
    plan, choice, combination = decision.plan, decision.choice, decision.combination
    num_rollouts = NUM_PROMPTS * GROUP_SIZE if plan.rollouts else 0
    keep = [True] * num_rollouts if choice.keep is None else choice.keep.tolist()
    demonstrated = list(choice.demonstrated) if plan.paired else ["next"] * plan.demonstrations
    sft, rl = (
        (combination.sft, combination.rl) if isinstance(combination, Sum) else (combination.mu, 1 - combination.mu)
    )
    return {
        "rollouts": keep if any(keep) else [],
        "rl_weight": rl if any(keep) else None,
        "own_advantages": choice.advantages is not None,
        "demonstrations": demonstrated,
        "sft_weight": sft if demonstrated else None,
        "demonstration_weights": choice.demonstration_weights,
        "rehearsed": list(choice.rehearsed),
    }


def assert_same_learning(one: Method, other: Method, world: World) -> None:
    pairs = zip(decisions_of(one, world), decisions_of(other, world), strict=True)
    assert all(learned(left) == learned(right) for left, right in pairs)
    assert losses_of(one) == losses_of(other)


def test_dyme_on_mixed_groups_is_grpo() -> None:
    """No prompt fails: no demonstration, all rollouts kept, verl's advantages, weight 1."""
    assert_same_learning(method_of("dyme"), method_of("grpo"), World(mixed))


@pytest.mark.parametrize("rewards", [None, mixed], ids=["every kind", "mixed"])
def test_hpt_that_never_imitates_is_grpo(rewards: Callable | None) -> None:
    """gate -1: no prompt has fewer correct rollouts than none."""
    world = World(rewards or (lambda step: torch.tensor([[0.0], [0.1], [0.5], [1.0]]).repeat(1, GROUP_SIZE)))
    assert_same_learning(method_of("hpt", gate=-1), method_of("grpo"), world)


def test_relift_without_failures_is_grpo() -> None:
    """Nothing enters the buffer."""
    assert_same_learning(method_of("relift", buffer_size=1), method_of("grpo"), World(mixed))


@pytest.mark.parametrize("name", ["superrl", "hpt"])
def test_a_switch_without_rewards_is_sft(name: str) -> None:
    """All rewards 0: no rollout is learned, every demonstration is, with weight 1, whatever the loss."""
    nothing = World(lambda step: torch.zeros(NUM_PROMPTS, GROUP_SIZE))
    method = method_of(name, {"demonstrations": {"loss": "dft"}})
    for decision in decisions_of(method, nothing):
        result = learned(decision)
        assert result["rollouts"] == []
        assert result["demonstrations"] == list(range(NUM_PROMPTS))
        assert result["sft_weight"] == 1.0
        assert result["demonstration_weights"] is None
    assert method.demonstration_loss == method_of("sft", {"demonstrations": {"loss": "dft"}}).demonstration_loss


def test_superrl_with_rewards_everywhere_is_grpo() -> None:
    """c = 1 for every prompt."""
    assert_same_learning(method_of("superrl"), method_of("grpo"), World(mixed))


def test_chord_mu_with_a_constant_schedule_is_fixed_mu() -> None:
    """peak = valley: the same combination and the same plan at every step."""
    schedule = {"peak": 0.3, "valley": 0.3, "num_decay_steps": 7}
    scheduled = make_method(from_mapping({"method": {"name": "scheduled_mu", "schedule": schedule}}))
    fixed = make_method(from_mapping({"method": {"name": "fixed_mu", "weight": 0.3}}))
    assert losses_of(scheduled) == losses_of(fixed)
    for left, right in zip(decisions_of(scheduled), decisions_of(fixed), strict=True):
        assert left.plain() == right.plain()


@pytest.mark.parametrize(("weight", "end"), [(0.0, "grpo"), (1.0, "sft")])
def test_the_ends_of_fixed_mu_are_grpo_and_sft(weight: float, end: str) -> None:
    """Eq. 3 at mu 0 and 1 has the mixture of the pure methods; mix_ leaves the pure gradient to the bit."""
    fixed = make_method(from_mapping({"method": {"name": "fixed_mu", "weight": weight}}))
    mixes = [decision.combination for decision in decisions_of(fixed)]
    assert mixes == [decision.combination for decision in decisions_of(method_of(end))] == [Mix(weight)] * NUM_STEPS


def test_chord_mu_follows_its_schedule() -> None:
    """0.9 at step 0, halfway after 100 of 200 steps, 0.05 from there on."""
    method = make_method(settings_of("method=chord_mu"))
    at = {step: method.combine(None, step, measured())[1].mu for step in (0, 100, 200, 499)}
    assert at == pytest.approx({0: 0.9, 100: 0.475, 200: 0.05, 499: 0.05}, rel=1e-12)


def test_chord_phi_is_a_constant_mix_with_its_own_loss() -> None:
    """mu 0.1 and p (1 - p)."""
    method = make_method(settings_of("method=chord_phi"))
    assert {decision.combination for decision in decisions_of(method)} == {Mix(0.1)}
    assert losses_of(method) == (LossSpec("chord_phi"), None)


@pytest.mark.parametrize("name", ["sft", "dft", "dft_sentence", "dft_geometric", "iw_sft", "sft_kl"])
def test_the_sft_family_differs_in_its_loss_alone(name: str) -> None:
    """One method, no rollouts, mu = 1."""
    method = make_method(settings_of(f"method={name}"))
    assert losses_of(method)[0].name == name
    assert {(decision.plan, decision.combination) for decision in decisions_of(method)} == {
        (StepPlan(rollouts=False), Mix(1.0))
    }


# ---- published numbers -----------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text().partition("## Published numbers")[2]
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


# ---- keys ------------------------------------------------------------------------------------------------------------


def check_keys(*overrides: str) -> None:
    config = composed(*overrides)
    settings = settings_of(*overrides)
    needs = everything_asked(make_method(settings), settings)
    check_every_key_is_read(Run(config, settings, Shape.from_config(config), needs))


@pytest.mark.parametrize("loss", ["sft", "dft", "iw_sft"])
def test_the_sft_loss_is_one_override_of_amft(loss: str) -> None:
    """`sft_loss=dft` is AMFT with DFT; the loss reaches the method, and iw_sft's need of a reference is known."""
    overrides = ("method=amft", f"sft_loss={loss}")
    check_keys(*overrides)
    spec = make_method(settings_of(*overrides)).demonstration_loss
    assert spec == LossSpec(loss)
    assert spec.needs_reference == (loss == "iw_sft")


@pytest.mark.parametrize("name", ["luffy", "srft"])
def test_the_sft_loss_is_refused_where_the_method_has_its_own(name: str) -> None:
    """It would change the warm-up only, and nobody would notice."""
    check_keys(f"method={name}")
    with pytest.raises(ValueError, match=rf"amft\.demonstrations\.loss='dft' has no effect with method={name}"):
        check_keys(f"method={name}", "sft_loss=dft")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_unknown_options_are_refused_with_the_known_ones(name: str) -> None:
    """An option of another method, or a slip, is not ignored."""
    known = [item.name for item in fields(METHODS[name].Options)] if METHODS[name].Options is not type(None) else []
    with pytest.raises(ValueError, match=r"amft\.method\.options") as error:
        method_of(name, no_such_key=1)
    assert "no_such_key" in str(error.value)
    assert all(option in str(error.value) for option in known) if known else "no options" in str(error.value)


@pytest.mark.parametrize("name", [name for name, method in sorted(METHODS.items()) if method.Options is not type(None)])
def test_presets_spell_the_defaults_of_their_options(name: str) -> None:
    """The numbers in a preset's file are those of the dataclass, so that a method is the same with and without it."""
    assert make_method(settings_of(f"method={name}")).options == METHODS[name].Options()


def test_an_unknown_method_lists_the_known_ones_nearest_first() -> None:
    """One key, one slip, one answer."""
    with pytest.raises(ValueError, match=r"'lufy' is not a known method; choose one of luffy, ") as error:
        method_of("lufy")
    assert all(name in str(error.value) for name in METHODS)


@pytest.mark.parametrize(
    ("name", "options", "fragments"),
    [
        ("hpt", {"gate": -2}, ["gate=-2", "-1"]),
        ("hpt", {"gate": 0.5}, ["gate=0.5", "int"]),
        ("hpt", {"skip_above": 0.0}, ["skip_above=0.0"]),
        ("hpt", {"sft_weight": -1.0}, ["sft_weight=-1.0"]),
        ("relift", {"trigger": "often"}, ["'often'", "buffer, every"]),
        ("relift", {"buffer_size": 0}, ["buffer_size=0", "at least 1"]),
        ("relift", {"learning_rate": 0.0}, ["learning_rate=0.0"]),
        ("srft", {"variant": "own"}, ["'own'", "paper, amft_description"]),
        ("srft", {"sft_sign": "plus"}, ["'plus'", "paper, code"]),
        ("srft", {"sft_coefficient": -0.5}, ["sft_coefficient=-0.5"]),
        ("superrl", {"mode": "both"}, ["'both'", "switch, log_sigma"]),
        ("superrl", {"learning_rate": -0.1}, ["learning_rate=-0.1"]),
        ("superrl", {"mode": "log_sigma", "smallest": 0.5}, ["smallest=0.5", "[-10.0, 0.0]"]),
        ("superrl", {"mode": "log_sigma", "smallest": -math.inf}, ["smallest=-inf"]),
        ("superrl", {"mode": "log_sigma", "smallest": math.nan}, ["smallest=nan"]),
        ("superrl", {"smallest": -1.0}, ["smallest=-1.0 has no effect", "-2.0", "mode=log_sigma"]),
        ("superrl", {"learning_rate": 0.1}, ["learning_rate=0.1 has no effect", "mode=log_sigma"]),
        ("relift", {"every": 10}, ["every=10 has no effect", "50", "trigger=every"]),
        ("relift", {"trigger": "every", "buffer_size": 10}, ["buffer_size=10 has no effect", "trigger=buffer"]),
        ("srft", {"entropy_scope": "token"}, ["'token'", "batch, sequence"]),
        ("luffy", {"gamma": 0.0}, ["gamma=0.0"]),
        ("luffy", {"demonstration_rows": 2}, ["demonstration_rows=2", "1, or 0"]),
        ("luffy", {"demonstration_rows": 0, "gamma": 0.2}, ["gamma=0.2 has no effect", "demonstration_rows=1"]),
        ("luffy", {"clip_on_policy": 1}, ["clip_on_policy=1", "bool"]),
        ("sasr", {"least": 1.5}, ["least=1.5", "[0.0, 1.0]"]),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict, fragments: list[str]) -> None:
    """The message has the value received and what is allowed."""
    with pytest.raises(ValueError) as error:
        method_of(name, **options)
    assert all(fragment in str(error.value) for fragment in fragments), error.value
