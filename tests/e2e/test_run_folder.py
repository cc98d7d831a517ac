"""What a finished run leaves, and that it is not overwritten by accident."""

import json

import matplotlib.image
import pytest

pytestmark = pytest.mark.e2e


def test_a_finished_run_is_complete_and_protected(run):
    """Config, identity, metrics, curves, samples, a model that transformers loads; a second run is refused at once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    finished = run(
        "trainer.val_before_train=true",
        "trainer.test_freq=1",
        "trainer.save_freq=2",
        "trainer.logger=[file,tensorboard,wandb]",
    )
    assert finished.status == 0, finished.output
    folder = finished.folder
    rows = finished.metrics
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all("val/success" in row for row in rows)
    required = {"controller/mu", "controller/entropy", "rl/loss", "sft/loss", "rl/reward"}
    assert all(required <= row.keys() for row in rows if row["phase"] == "train")
    assert "meta/gradient" in rows[-1]

    identity = json.loads((folder / "run.json").read_text())
    assert identity["versions"]["verl"] == "0.9.1"
    assert identity["command"]
    assert "run_dir" in (folder / "config.yaml").read_text()
    assert matplotlib.image.imread(folder / "training.png").std() > 0.01, "an empty picture"
    assert (folder / "samples" / "3.jsonl").stat().st_size > 0
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
    saved = torch.load(folder / "checkpoints/global_step_3/actor/model_world_size_1_rank_0.pt", weights_only=False)
    for name, weight in model.state_dict().items():
        if name in saved:
            full = saved[name].full_tensor() if hasattr(saved[name], "full_tensor") else saved[name]
            assert torch.equal(full.float(), weight.float()), f"{name} is not the trained weight"

    again = run()
    assert again.status != 0
    assert "amft.overwrite=true" in again.output
    assert "Traceback" not in again.output
