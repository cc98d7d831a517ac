"""Tasks with images train through verl, Ray and vLLM on a tiny vision model: demonstrations, rollouts, both backward
passes, a meta-update, a validation, a checkpoint, the exported model, and its evaluation."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SECONDS = 900
REPOSITORY = Path(__file__).parents[2]
OWN = ("amft.task.", "amft.model.options.", "data.max_response_length", "trainer.test_freq", "trainer.save_freq")
# What each run has of its own. One has the other family of models, with a vision tower that stays as it is.
OPTIONS = {
    "gp_vl_small": [f"amft.task.options.{split}=8" for split in ("train", "validation", "test")],
    "virl_vl_small": [
        *(f"amft.task.options.{split}={size}" for split, size in (("train", 4), ("validation", 4), ("test", 2))),
        "amft.model.options.family=qwen3_vl",
        "actor_rollout_ref.actor.freeze_vision_tower=true",
    ],
}
SHARES = {"gp_vl_small": "recognition_accuracy", "virl_vl_small": "per_step_accuracy"}


def moved_parameters(folder: Path) -> list[str]:
    """Names of the parameters of the run's exported model that are not those of the model it began with."""
    base = OmegaConf.load(folder / "config.yaml").actor_rollout_ref.model.path
    before, after = (load_file(Path(path) / "model.safetensors") for path in (base, folder / "model"))
    return [name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))]


def check_steps(metrics: list[dict], num_steps: int) -> None:
    """No rollout fails, and both gradients are there and finite."""
    steps = [row for row in metrics if row["phase"] == "train"]
    assert len(steps) == num_steps
    for step in steps:
        assert step["data/failed_rollouts"] == 0
        assert step["sft/norm"] > 0
        assert all(math.isfinite(value) for value in step.values() if isinstance(value, float))


@pytest.mark.parametrize("task", sorted(OPTIONS))
def test_a_task_with_images_trains_and_validates(run, small, task):
    """Two mixed steps, a validation with the task's own share, a checkpoint; what moved is what may move."""
    overrides = [item for item in small if not item.startswith(OWN)]
    finished = run(
        f"task={task}", "model=tiny_vl", *overrides, *OPTIONS[task], "trainer.test_freq=10", "trainer.save_freq=10",
        timeout=SECONDS, only=True,
    )  # fmt: skip
    assert finished.status == 0, finished.output
    check_steps(finished.metrics, num_steps=2)
    last = finished.metrics[-1]
    assert 0 <= last["val/success"] <= 1
    assert any(name.endswith(f"/{SHARES[task]}") for name in last)
    assert list((finished.folder / "checkpoints").glob("global_step_*/COMPLETE"))
    moved = moved_parameters(finished.folder)
    assert any("visual." in name for name in moved) == (task != "virl_vl_small")
    assert any("language_model." in name or "model.layers." in name for name in moved)


def test_a_card_is_read_from_its_picture(run, environment, cache, tmp_path):
    """SFT, then SFT and RL in one loss: over 80% of the held-out renderings are read, where a guess reads 1 of 13. The
    evaluation command, from the checkpoint's shards, says the same."""
    finished = run("task=card_reading", "model=tiny_vl", "trainer.save_freq=315", timeout=SECONDS, only=True)
    assert finished.status == 0, finished.output
    check_steps(finished.metrics, num_steps=15)
    last = finished.metrics[-1]
    assert last["val/card_reading/success"] > 0.8
    assert any("visual." in name for name in moved_parameters(finished.folder))

    out = tmp_path / "evaluated"
    command = [
        sys.executable, "-m", "recipe.amft.evaluate", f"model={finished.folder / 'checkpoints' / 'global_step_315'}",
        "suite=quickstart", "task@suite.training=card_reading", f"out={out}", f"cache_dir={cache}",
    ]  # fmt: skip
    evaluated = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=600)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    success = json.loads((out / "summary.json").read_text())["benchmarks"]["test"]["metrics"]["success"]["mean"]
    assert success == pytest.approx(last["val/success"], abs=0.02)
