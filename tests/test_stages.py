"""What the driver keeps from step to step: the best weights of a stage, its state, and the signal for the next mu."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipe.amft.algorithm.mixture import MixtureState
from recipe.amft.config import from_mapping
from recipe.amft.methods import Mix, Stage, StepPlan, make_method
from recipe.amft.run_state import STATE_FILE, Best, RunState, read_state, state_text
from recipe.amft.stages import BEST, Stages
from recipe.amft.step_data import StepData
from recipe.amft.trainer import AMFTTrainer
from recipe.amft.worker import MU_NEXT, MU_NOW


class Recorder:
    """Stands for workers, run folder and watchdog: notes what it is asked, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def note(*arguments, **_):
            self.calls.append(name)

        return note

    @contextlib.contextmanager
    def phase(self, name: str):
        yield


@pytest.fixture
def stages(tmp_path) -> Stages:
    """Stages of a run whose checkpoints would lie in `tmp_path`, and which has no weights to write."""
    return Stages(tmp_path, save=lambda folder: None, load=lambda folder: None)


def keeping(best: Best | None = None) -> RunState:
    """The state of a run in a stage that keeps its best weights."""
    return RunState(method=None, learning_rate=0.1, stage=Stage("first", keeps_best=True), best=best)


def put(root: Path, *best: int, **checkpoints: int | None) -> None:
    """Folders of best weights by step, and checkpoints that remember one: global_step_8=4."""
    for step in best:
        (root / f"{BEST}{step}").mkdir()
    for name, remembered in checkpoints.items():
        (root / name).mkdir()
        state = {"best": None if remembered is None else {"step": remembered, "success": 0.5}}
        (root / name / STATE_FILE).write_text(json.dumps(state))


def kept(root: Path) -> set[int]:
    return {int(path.name.removeprefix(BEST)) for path in root.glob(f"{BEST}*")}


def test_the_best_weights_that_a_checkpoint_remembers_stay(stages, tmp_path):
    """Of four, the run's own and that of an older checkpoint: a run killed now goes on with one of these."""
    put(tmp_path, 4, 8, 12, 16, global_step_10=8, global_step_14=12)
    stages.delete_unused(Best(16, 0.7))
    assert kept(tmp_path) == {8, 12, 16}


def test_the_last_best_weights_stay_when_the_stage_is_over(stages, tmp_path):
    """No checkpoint remembers them any longer; they are a result of the run."""
    put(tmp_path, 12, global_step_20=None, global_step_22=None)
    stages.delete_unused(None)
    assert kept(tmp_path) == {12}


def test_each_best_has_weights_of_its_own(tmp_path):
    """Written when the success rises, and not when it does not; never over those of the one before."""
    folders: list[Path] = []
    stages, state = Stages(tmp_path, save=folders.append, load=folders.remove), keeping()
    for step, success in ((2, 0.25), (4, 0.5), (6, 0.5), (8, 0.75)):
        stages.keep_best(state, step, success)
    assert [folder.name for folder in folders] == [f"{BEST}2", f"{BEST}4", f"{BEST}8"]
    assert state.best == Best(8, 0.75)


def test_a_later_stage_begins_with_the_best_weights(tmp_path):
    """Once, at its first step, and not when a run is resumed within it; the stage has no best of its own yet."""
    loaded: list[Path] = []
    stages, later = Stages(tmp_path, save=loaded.append, load=loaded.append), Stage("later", from_best=True)
    state = keeping(Best(4, 0.5))
    for stage in (state.stage, later, later):
        stages.enter(state, stage)
    assert (loaded, state.stage, state.best) == ([tmp_path / f"{BEST}4"], later, None)
    resumed = RunState(method=None, learning_rate=0.1, stage=Stage("later"), best=Best(6, 0.5))
    stages.enter(resumed, later)
    assert (len(loaded), resumed.stage, resumed.best) == (1, later, Best(6, 0.5))


@pytest.mark.parametrize("best", [None, Best(4, 0.5)])
def test_the_state_comes_back_from_a_checkpoint(tmp_path, best):
    """All of it, of the stage the name; and another method is refused by name."""
    method = make_method(from_mapping({"method": {"name": "amft"}}))
    known = method.after_warm_up(method.initial_state(), {"entropy": 0.25})
    pending = [{"dot": 0.5, "utility_norm": 2.0, "tangent_norm": 0.25}]
    state = RunState(known, 0.125, pending, MixtureState(1.5, 0.5, 7), Stage("later", from_best=True), best)
    (tmp_path / STATE_FILE).write_text(state_text(state, method))
    assert read_state(tmp_path, method) == replace(state, stage=Stage("later"))
    other = make_method(from_mapping({"method": {"name": "grpo"}}))
    with pytest.raises(ValueError, match="was written by method=amft, this run is method=grpo"):
        read_state(tmp_path, other)


def test_a_checkpoint_knows_the_validation_of_its_step(tmp_path, monkeypatch):
    """Validation, best weights, checkpoint, metrics: killed anywhere, the run goes on as if it had not been."""
    trainer = object.__new__(AMFTTrainer)
    trainer.settings = from_mapping({"warm_up": {"steps": 0}, "method": {"name": "sft_then_rl"}})
    trainer.config = SimpleNamespace(
        trainer=SimpleNamespace(default_local_dir=str(tmp_path), save_freq=1, test_freq=1, val_before_train=False)
    )
    trainer.folder = trainer.actor_rollout_wg = trainer.watchdog = record = Recorder()
    trainer.state, trainer.stages = keeping(), Stages(tmp_path, trainer.save_weights, trainer.load_weights)
    trainer.global_steps, trainer.num_steps = 0, 1
    monkeypatch.setattr(AMFTTrainer, "one_step", lambda self: ({}, "train"))
    monkeypatch.setattr(AMFTTrainer, "finish_warm_up", lambda self, last_step: {})
    monkeypatch.setattr(AMFTTrainer, "validate", lambda self: record.validate() or {"val/success": 0.5})
    monkeypatch.setattr(AMFTTrainer, "save_checkpoint", lambda self, keep: record.save_checkpoint())
    monkeypatch.setattr(AMFTTrainer, "export_model", lambda self, folder: None)
    trainer.fit()
    assert record.calls == ["start_training", "validate", "save_weights", "save_checkpoint", "log", "model_path"]


def test_mu_is_decided_with_every_mini_batch_since_the_last_decision(monkeypatch):
    """The first one's product with those of the step before; a validation batch speaks alone, and they are dropped."""
    asked: list[str | None] = []
    decided: list[dict | None] = []
    trainer = object.__new__(AMFTTrainer)
    trainer.state, trainer.timings = RunState(method=None, learning_rate=0.1), {}

    def backward_rollouts(self, rollouts, data, measures):
        asked.append(measures)
        measured = {"rl/dot": float(len(asked)), "rl/utility_norm": 1.0, "rl/tangent_norm": 1.0} if measures else {}
        return {"rl/norm": 1.0} | measured

    def combine(self, step, data, sft, utility):
        decided.append(utility)
        return Mix(0.5), {}

    monkeypatch.setattr(AMFTTrainer, "mini_batches_of", lambda self, data: [(None, "rollouts")] * 3)
    monkeypatch.setattr(AMFTTrainer, "backward_rollouts", backward_rollouts)
    monkeypatch.setattr(AMFTTrainer, "combine", combine)
    monkeypatch.setattr(AMFTTrainer, "mixture_plan", lambda *arguments: None)
    monkeypatch.setattr(AMFTTrainer, "apply_mixture", lambda self, plan: {})
    plan, validation = StepPlan(rollout_utility=True), {"dot": -1.0, "utility_norm": 1.0, "tangent_norm": 1.0}
    for utility in (None, None, validation, None):
        metrics = trainer.update(1, plan, StepData(None, []), utility)
        assert set(metrics) == {"rl/norm", "data/updates"}
    assert asked == [MU_NOW, MU_NEXT, MU_NEXT] * 2 + [None, MU_NEXT, MU_NEXT] + [MU_NOW, MU_NEXT, MU_NEXT]
    assert [measured["dot"] for measured in decided] == [1.0, 2.0 + 3.0 + 4.0, -1.0, 8.0 + 9.0 + 10.0]
    assert [measured["dot"] for measured in trainer.state.utility] == [11.0, 12.0]
