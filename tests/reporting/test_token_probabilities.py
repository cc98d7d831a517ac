"""DFT Figure 2's histogram: the probabilities of exactly the learned tokens, before and after a run."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from recipe.amft.data import general_points, tiny_model
from recipe.amft.data.demonstrations import Demonstration
from recipe.amft.evaluation.token_probabilities import NUM_BINS, histogram, main, token_probabilities
from recipe.amft.main import compose
from recipe.amft.reporting.charts import read_curves
from recipe.amft.sweeps.execution import evaluation
from recipe.amft.sweeps.points import load


def test_bins():
    """[0, 1/20) is the first, 1 belongs to the last; nothing is lost."""
    counts = histogram(torch.tensor([0.0, 0.049, 0.05, 0.5, 0.999, 1.0]))
    assert counts[[0, 1, 10, 19]].tolist() == [2, 1, 1, 2]
    assert counts.sum() == 6
    assert len(counts) == NUM_BINS


def test_probabilities_are_conditional_and_of_learned_tokens():
    """Token t's is softmax(logits of the prefix up to t - 1) at t, prefix by prefix; masked tokens are left out."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen2Config(vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1)
    ).eval()  # fmt: skip
    prompt, response = [1, 2, 3], [4, 5, 6, 7]
    expected = []
    for position, token in enumerate(response):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response[:position]])).logits[0, -1]
        expected.append(torch.softmax(logits, -1)[token].item())
    found = token_probabilities(model, Demonstration("row", prompt, response))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    masked = token_probabilities(model, Demonstration("row", prompt, response, mask=[1, 0, 0, 1]))
    assert masked.tolist() == pytest.approx([expected[0], expected[3]], abs=1e-6)


def general_points_text(path: Path) -> list[str]:
    return [row["target"][0]["content"] for row in pq.read_table(path).to_pylist()]


def unigram(start: Path, folder: Path, texts: list[str]) -> None:
    """Saves the model after some steps on the texts: it now knows which tokens are frequent."""
    tokenizer, model = AutoTokenizer.from_pretrained(start), AutoModelForCausalLM.from_pretrained(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    for _ in range(30):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_run_becomes_a_curve(tmp_path):
    """The command on a run folder writes what Figure 2 reads; before training it is the initial model's histogram."""
    config = compose(["scale=micro/general_points", "method=sft"])
    game = OmegaConf.to_container(config.amft.task.options, resolve=True) | {"train": 24, "validation": 4, "test": 4}
    small = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 1}
    (tmp_path / "data").mkdir()
    (tmp_path / "start").mkdir()
    general_points.make(game, tmp_path / "data")
    tiny_model.make({**small, "seed": 0, "pretraining": None}, tmp_path / "start")
    point = next(point for point in load("dft_figure2", "micro").points() if point.method == "sft")
    run = tmp_path / point.folder
    (run / "model").mkdir(parents=True)
    unigram(tmp_path / "start", run / "model", general_points_text(tmp_path / "data/train.parquet"))
    config.data.train_files, config.actor_rollout_ref.model.path = (
        [str(tmp_path / "data/train.parquet")],
        str(tmp_path / "start"),
    )
    OmegaConf.save(config, run / "config.yaml", resolve=True)
    module, *arguments = evaluation(point, "token_probabilities", tmp_path)
    assert module == "recipe.amft.evaluation.token_probabilities"
    with pytest.raises(SystemExit, match="no finished run"):
        main(arguments)
    (run / "FINISHED").write_text("")
    main(arguments)
    summary = json.loads((run / "evaluation" / "token_probabilities" / "summary.json").read_text())
    assert summary["rows"] == pq.read_table(tmp_path / "data/train.parquet").num_rows
    assert sum(summary["counts"]["start"]) == sum(summary["counts"]["last"]) > summary["rows"]
    assert summary["counts"]["start"] != summary["counts"]["last"]
    curves = {curve.row: curve for curve in read_curves(load("dft_figure2", "micro"), tmp_path)}
    assert [curve.num_runs for curve in curves.values()] == [1, 1, 0, 0, 0, 0]
    assert sum(value.mean for _, _, value in curves["SFT"].points) == pytest.approx(100)
    first = summary["counts"]["start"]
    assert [value.mean for _, _, value in curves["Before training"].points] == pytest.approx(
        [100 * count / sum(first) for count in first]
    )
    assert [x for _, x, _ in curves["SFT"].points[:2]] == [0.025, 0.075]
