"""What a finished run leaves, and that it is not overwritten by accident."""

import json
import subprocess
import sys

import matplotlib.image
import pytest

pytestmark = pytest.mark.e2e


def test_a_finished_run_is_complete_and_protected(uninterrupted, arguments, environment):
    """Config, identity, metrics, curves, samples, a model that transformers loads; a second run is refused at once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    finished = uninterrupted
    assert finished.status == 0, finished.output
    folder = finished.folder
    rows = finished.metrics
    assert [row["step"] for row in rows] == list(range(7))
    assert all("val/success" in row for row in rows)
    required = {"controller/mu", "controller/entropy", "rl/loss", "sft/loss", "rl/reward"}
    assert all(required <= row.keys() for row in rows if row["phase"] == "train")
    assert "meta/gradient" in rows[-2]

    identity = json.loads((folder / "run.json").read_text())
    assert identity["versions"]["verl"] == "0.9.1"
    assert identity["command"]
    assert "run_dir" in (folder / "config.yaml").read_text()
    assert matplotlib.image.imread(folder / "training.png").std() > 0.01, "an empty picture"
    assert (folder / "samples" / "6.jsonl").stat().st_size > 0
    assert list((folder / "tensorboard").rglob("events*"))
    assert (folder / "tracking.jsonl").exists()
    assert list((folder / "wandb").rglob("*.wandb")), "wandb's offline record"

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Cards: 3 5 7 Target: 12"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model.generate(**prompt, max_new_tokens=4).shape[1] > prompt["input_ids"].shape[1]
    saved = torch.load(folder / "checkpoints/global_step_6/actor/model_world_size_1_rank_0.pt", weights_only=False)
    for name, weight in model.state_dict().items():
        if name in saved:
            full = saved[name].full_tensor() if hasattr(saved[name], "full_tensor") else saved[name]
            assert torch.equal(full.float(), weight.float()), f"{name} is not the trained weight"

    command = [sys.executable, "-m", "recipe.amft.main", *arguments(folder)]
    again = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    output = again.stdout + again.stderr
    assert again.returncode != 0
    assert "amft.overwrite=true" in output
    assert "Traceback" not in output
