"""The best weights of a stage: what is kept of them, and that a checkpoint knows of every validation before it."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipe.amft.config import from_mapping
from recipe.amft.methods import Stage
from recipe.amft.trainer import BEST, STATE_FILE, AMFTTrainer, Best


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
def trainer(tmp_path):
    """A driver without workers, in a stage that keeps its best weights; its checkpoints would lie in `tmp_path`."""
    trainer = object.__new__(AMFTTrainer)
    trainer.settings = from_mapping({"warm_up": {"steps": 0}, "method": {"name": "sft_then_rl"}})
    trainer.config = SimpleNamespace(
        trainer=SimpleNamespace(default_local_dir=str(tmp_path), save_freq=1, test_freq=1, val_before_train=False)
    )
    trainer.stage, trainer.best = Stage("first", keeps_best=True), None
    trainer.folder = trainer.actor_rollout_wg = trainer.watchdog = Recorder()
    return trainer


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


def test_the_best_weights_that_a_checkpoint_remembers_stay(trainer, tmp_path):
    """Of four, the run's own and that of an older checkpoint: a run killed now goes on with one of these."""
    put(tmp_path, 4, 8, 12, 16, global_step_10=8, global_step_14=12)
    trainer.best = Best(16, 0.7)
    trainer.delete_unused_best()
    assert kept(tmp_path) == {8, 12, 16}


def test_the_last_best_weights_stay_when_the_stage_is_over(trainer, tmp_path):
    """No checkpoint remembers them any longer; they are a result of the run."""
    put(tmp_path, 12, global_step_20=None, global_step_22=None)
    trainer.delete_unused_best()
    assert kept(tmp_path) == {12}


def test_each_best_has_weights_of_its_own(trainer):
    """Written when the success rises, and not when it does not; never over those of the one before."""
    folders = []
    trainer.actor_rollout_wg = SimpleNamespace(save_weights=folders.append)
    for trainer.global_steps, success in ((2, 0.25), (4, 0.5), (6, 0.5), (8, 0.75)):
        trainer.keep_best(success)
    assert [Path(folder).parent.name for folder in folders] == [f"{BEST}2", f"{BEST}4", f"{BEST}8"]
    assert trainer.best == Best(8, 0.75)


def test_a_checkpoint_knows_the_validation_of_its_step(trainer, monkeypatch):
    """Validation, best weights, checkpoint, metrics: killed anywhere, the run goes on as if it had not been."""
    record = trainer.folder
    trainer.global_steps, trainer.num_steps = 0, 1
    monkeypatch.setattr(AMFTTrainer, "one_step", lambda self: ({}, "train"))
    monkeypatch.setattr(AMFTTrainer, "finish_warm_up", lambda self, last_step: {})
    monkeypatch.setattr(AMFTTrainer, "validate", lambda self: record.validate() or {"val/success": 0.5})
    monkeypatch.setattr(AMFTTrainer, "save_checkpoint", lambda self, keep: record.save_checkpoint(self.best))
    monkeypatch.setattr(AMFTTrainer, "export_model", lambda self: None)
    trainer.fit(None)
    assert record.calls == ["start_training", "validate", "save_weights", "save_checkpoint", "log"]
