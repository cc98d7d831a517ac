"""The controller laboratory: its worlds, its batched passes, its tangent, its records and its statistics."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks.controller import diagnose, report
from benchmarks.controller.model import initial_parameters
from benchmarks.controller.run import BETAS, EPS, MAX_NORM, WEIGHT_DECAY, Run, normalised, shape_of
from benchmarks.controller.runner import measure, record_path
from benchmarks.controller.tasks import PROBLEMS, SPLITS, Sorting, generator_of
from benchmarks.controller.trainer import successes, train, train_step, warm_up
from benchmarks.controller.variants import SUITES, config_of, fixed

SHORT = dataclasses.replace(PROBLEMS["few_clean"], warm_up_steps=3, num_steps=6)


def untrained(problem=SHORT) -> torch.Tensor:
    return initial_parameters(shape_of(problem.world), generator_of(0, "base", 0))


@pytest.mark.parametrize("name", PROBLEMS)
def test_demonstrations_are_rewarded_and_misleading_ones_are_not(name: str) -> None:
    """Reward 1 for every correct answer; for a misleading one only where both orders are the same (equal digits)."""
    problem = PROBLEMS[name]
    prompts, answers, _ = problem.draw(64, generator_of(0, "test", 0))
    assert problem.world.rewards(prompts, answers).tolist() == [1.0] * 64
    assert answers.shape == (64, problem.world.response_length)
    if max(problem.share_misleading):
        assert problem.world.rewards(prompts, problem.world.misleading_answers(prompts)).mean() < 0.05


@pytest.mark.parametrize("name", ["sparse", "general_points"])
def test_splits_share_no_prompt(name: str) -> None:
    """What the controller or the evaluation sees is never trained on."""
    world = PROBLEMS[name].world
    seen = {s: {tuple(row) for row in world.prompts(400, s, generator_of(0, s, 0)).tolist()} for s in SPLITS}
    assert not seen["test"] & seen["train"]
    assert not seen["validation"] & seen["train"]
    assert not seen["validation"] & seen["test"]


def test_general_points_is_judged_by_the_recipe() -> None:
    """8 and 4 make 12 by 8+4, not by 8*4; what stands after the end is not read."""
    world = PROBLEMS["general_points"].world
    prompts = torch.tensor([[8, 4, 1, 2]] * 3)
    texts = ["8+4.", "8*4.", "4+8."]
    responses = torch.tensor([[world.characters.index(character) for character in text] for text in texts])
    assert world.rewards(prompts, responses).tolist() == [1.0, 0.0, 1.0]
    assert world.mask(torch.tensor([[8, 10, 14, 3]])).tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_regime_changes_in_the_middle() -> None:
    """Before the middle every demonstration is right, from there on none is."""
    problem = PROBLEMS["regime"]
    middle = problem.num_steps // 2
    before, after = (problem.demonstrations(64, 0, step) for step in (middle - 1, middle))
    assert problem.world.rewards(*before).mean() == 1.0
    assert problem.world.rewards(*after).mean() < 0.05


def test_a_run_does_not_depend_on_those_beside_it() -> None:
    """Alone or beside runs of other methods, with other batch sizes, a run ends with the same weights."""
    base = untrained().double()
    variants = ["amft", fixed(0.3), "srft", "sasr", "amft_no_warmup"]
    together = [Run(SHORT, config_of(variant, SHORT), 3, base) for variant in variants]
    train(together)
    for variant, run in zip(variants, together, strict=True):
        alone = Run(SHORT, config_of(variant, SHORT), 3, base)
        train([alone])
        torch.testing.assert_close(alone.parameters, run.parameters, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", ["none", "equal_norm"])
def test_the_tangent_is_the_derivative_of_a_step(scale: str) -> None:
    """d theta / d mu of one step, clip and AdamW included, is a central difference over mu with the same noise."""
    config = config_of(f"amft,controller.meta.horizon=window,mixture.scale={scale}", SHORT)
    run = Run(SHORT, config, 0, untrained().double())
    warm_up([run])
    above, below = run.twin(), run.twin()
    delta = 1e-5
    train_step([run, above, below], 0, [0.3, 0.3 + delta, 0.3 - delta])
    difference = (above.parameters - below.parameters) / (2 * delta)
    assert difference.norm() > 1e-3
    torch.testing.assert_close(run.tangent.parameters[0], difference, rtol=1e-4, atol=1e-6)


def test_the_optimiser_is_adamw() -> None:
    """Three steps are those of torch.optim.AdamW, clipped gradients included."""
    run = Run(SHORT, config_of(fixed(0.3), SHORT), 0, untrained().double())
    reference = torch.nn.Parameter(run.parameters.clone())
    optimizer = torch.optim.AdamW([reference], lr=0.01, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    for step in range(3):
        gradient = torch.randn(len(reference), generator=generator_of(0, "gradient", step), dtype=torch.float64)
        reference.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([reference], MAX_NORM)
        optimizer.step()
        assert run.descend(gradient, 0.01) == pytest.approx(norm.item(), rel=1e-12)
    torch.testing.assert_close(run.parameters, reference.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("source", "meta_steps"), [("validation", [2, 4]), ("rollouts", [1, 2, 3, 4, 5]), ("both", [1, 2, 3, 4, 5])]
)
def test_meta_updates_move_mu(source: str, meta_steps: list[int]) -> None:
    """Every K steps, or in every step on its rollouts, the controller gets a signal, and mu leaves its start."""
    config = config_of(f"amft,utility.every=2,utility.source={source},controller.entropy.learning_rate=0", SHORT)
    easy = dataclasses.replace(SHORT, world=Sorting(1, 0.0))  # a digit in order is itself: some samples are right
    record = train([Run(easy, config, 0, untrained(easy))])[0]
    signals = record["steps"]["meta/dot"]
    assert [index for index, signal in enumerate(signals) if signal is not None] == meta_steps
    weights, first = record["steps"]["controller/mu"], meta_steps[0]
    assert weights[first - 1] == config.controller.mu_init
    assert weights[first] != config.controller.mu_init


def test_validation_rollouts_speak_in_their_step() -> None:
    """With source=both a step's signal is that of the validation rollouts where there are any, as in the driver."""
    easy = dataclasses.replace(SHORT, world=Sorting(1, 0.0))
    keys = "amft,utility.every=3,controller.entropy.learning_rate=0,utility.source="
    runs = [Run(easy, config_of(keys + name, SHORT), 0, untrained(easy)) for name in ("both", "rollouts", "validation")]
    both, rollouts, validation = (record["steps"]["meta/utility_norm"] for record in train(runs))
    assert both[1:3] == rollouts[1:3]
    assert both[3] != rollouts[3]
    assert validation[1:3] == [None, None]
    assert validation[3] is not None


def test_advantages_are_those_of_grpo() -> None:
    """(r - mean) / std by group, std unbiased; a group that agrees has advantage 0."""
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    expected = (rewards[:3] - rewards[:3].mean()) / rewards[:3].std()
    torch.testing.assert_close(normalised(rewards, groups)[:3], expected, rtol=1e-4, atol=0)
    assert normalised(rewards, groups)[3:].tolist() == [0.0, 0.0, 0.0]


def test_every_suite_is_configured() -> None:
    """All named variants pass the recipe's own checks, and a typing error names the preset."""
    for suite in SUITES.values():
        for variant in suite.values():
            config_of(variant, SHORT)
    assert config_of("amft_no_warmup", SHORT).warm_up.steps == 0
    assert config_of("amft_literal", SHORT).controller.meta.scale == "literal"
    with pytest.raises(ValueError, match=r"'amtf' is no preset; choose one of .*amft"):
        config_of("amtf", SHORT)
    with pytest.raises(ValueError, match=r"horizont.*horizon"):
        config_of("amft,controller.meta.horizont=one", SHORT)


def test_a_record_says_how_the_run_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of a run holds its curve, its mu and its last success, and the tables are made from records alone."""
    monkeypatch.setitem(PROBLEMS, "few_clean", dataclasses.replace(SHORT, world=_without_pretraining(SHORT.world)))
    started = time.process_time()
    seconds = measure("few_clean", [(fixed(0.3), 0), ("amft", 0), ("srft", 0)], tmp_path)
    assert 0 < seconds <= time.process_time() - started
    record = json.loads(record_path(tmp_path, "few_clean", "amft", 0).read_text())
    assert [point[0] for point in record["curve"]] == [0, 6]
    assert len(record["steps"]["controller/mu"]) == 6
    constant = json.loads(record_path(tmp_path, "few_clean", fixed(0.3), 0).read_text())
    without_mu = json.loads(record_path(tmp_path, "few_clean", "srft", 0).read_text())
    named = {"mu = 0.3": constant, "AMFT": record, "SRFT": without_mu}
    records = {("few_clean", name, 0): record for name, record in named.items()}
    assert f"| AMFT | {record['final']:.3f} |" in report.write(records, tmp_path)
    assert (tmp_path / "runs.png").stat().st_size > 0


def _without_pretraining(world):
    return dataclasses.replace(world, pretraining_steps=1)


def test_success_is_that_of_the_weights() -> None:
    """The same weights have the same success whatever else is evaluated with them."""
    runs = [Run(SHORT, config_of(fixed(0.3), SHORT), seed, untrained()) for seed in (0, 1)]
    first, second = successes(runs, 64)
    assert first == second == successes(runs[:1], 64)[0]


def test_sign_flips_and_areas() -> None:
    """Four differences of one sign are all of one sign in 2 of 16 draws; no difference at all is p = 1."""
    assert report.sign_flip_test([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2 / 16, abs=0.01)
    assert report.sign_flip_test([0.0, 0.0]) == 1.0
    assert report.area({"curve": [[0, 0.0], [10, 1.0], [20, 1.0]]}) == pytest.approx(0.75)


def test_diagnosis_compares_estimators_with_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """All estimators see the same steps and the same batches; the table has a line for each of them."""
    settings = {"STEPS": (2, 4), "LOOK_AHEADS": (1, 2), "NUM_LARGE": 2, "NUM_BATCHES": 2}
    for name, value in settings.items():
        monkeypatch.setattr(diagnose, name, value)
    easy = dataclasses.replace(SHORT, world=Sorting(1, 0.0))
    records = diagnose.measure(easy, 0, 0.3, untrained(easy))
    assert [record["step"] for record in records] == [2, 4]
    assert set(records[0]["references"]) == {"past 1", "future 1", "past 2", "future 2"}
    # After a single step all horizons are one: they differ from the second step on.
    forgetful, keeping = (
        records[1]["estimators"][f"sgd, {kind}"]["large"] for kind in ("one step (Eq. 25)", "trace 0.98")
    )
    assert forgetful != keeping
    assert len(diagnose.alignment(records).splitlines()) == 2 + len(records)
    agreement, noise, _ = diagnose.table(records).split("\n\n")
    for part in (agreement, noise):
        lines = part.splitlines()[2:]
        assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(diagnose.ESTIMATORS)
