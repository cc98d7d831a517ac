"""The model preparation, on a tiny Qwen2 with the repository's tokenizer."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recipe.amft.data.demonstrations import DemonstrationTokenizer
from recipe.amft.data.prepare_model import main, make, read_template
from recipe.amft.data.tiny_model import make_model, make_tokenizer

CHAT = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}]
OPENING = "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model folder as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    make_model(tokenizer, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def source(saved, tmp_path):
    """A copy whose small files may be changed; the weights are linked, as in a hub cache."""
    folder = tmp_path / "source"
    folder.mkdir()
    for path in saved.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def change(folder, name, **values):
    """Set keys of a JSON file; ... removes one."""
    path = folder / name
    content = (json.loads(path.read_text()) if path.exists() else {}) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("stored", ["transformers 4", "transformers 5", "neither"])
def test_the_prepared_folder_loads_with_the_new_values(source, tmp_path, stored):
    """rope_theta, wherever the source keeps it, positions, end of text and template arrive in the loaded objects."""
    if stored != "transformers 5":
        old = {"rope_theta": 10000.0} if stored == "transformers 4" else {}
        change(source, "config.json", rope_parameters=..., **old)
    out = tmp_path / "out"
    arguments = ("--rope-theta", 40000, "--max-position-embeddings", 16384, "--template", "qwen2_5_math_think")
    assert run("--source", source, "--out", out, *arguments) == 0
    config, tokenizer = AutoConfig.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert config.rope_parameters["rope_theta"] == 40000.0
    assert json.loads((out / "config.json").read_text())["rope_theta"] == 40000.0
    assert config.max_position_embeddings == tokenizer.model_max_length == 16384
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.eos_token_id == config.eos_token_id == model.generation_config.eos_token_id == end
    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False) == OPENING
    before = AutoModelForCausalLM.from_pretrained(source)
    assert all(torch.equal(new, old) for new, old in zip(model.parameters(), before.parameters(), strict=True))
    positions = torch.arange(64)[None]
    tokens = torch.randint(0, config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [each(input_ids=tokens, position_ids=positions).logits for each in (before, model)]
    assert not torch.allclose(*logits, atol=1e-6), "the rotary base has no effect on the loaded model"


@pytest.mark.parametrize("answer", ["t</think>2", "<think>\nt</think>2"])
def test_the_generation_prompt_begins_the_answered_chat(source, tmp_path, answer):
    """What the model continues is a prefix of the chat with its answer in it; demonstrations are tokenised to match."""
    out = tmp_path / "out"
    assert run("--source", source, "--out", out) == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    answered = [*CHAT, {"role": "assistant", "content": answer}]
    assert tokenizer.apply_chat_template(answered, tokenize=False) == OPENING + "t</think>2<|im_end|>\n"
    made = DemonstrationTokenizer(tokenizer, "qwen2", 1000, 1000)({"prompt": CHAT, "target": answered[-1:]})
    assert tokenizer.decode(made.prompt) == OPENING
    assert tokenizer.decode(made.response) == "t</think>2<|endoftext|>"
    without_system = tokenizer.apply_chat_template(CHAT[1:], tokenize=False)
    assert without_system == "<|im_start|>user\n1+1?<|im_end|>\n", "the template adds no system message of its own"


def test_weights_are_linked_or_copied(source, tmp_path):
    """Links name the file itself, so that they outlive a hub cache's own links; copies are plain files."""
    assert run("--source", source, "--out", tmp_path / "linked") == 0
    link = tmp_path / "linked" / "model.safetensors"
    assert link.is_symlink()
    assert os.readlink(link) == str((source / "model.safetensors").resolve())
    assert run("--source", source, "--out", tmp_path / "copied", "--weights", "copy") == 0
    copied = tmp_path / "copied" / "model.safetensors"
    assert not copied.is_symlink()
    assert copied.read_bytes() == link.read_bytes()


def test_limits_and_templates_of_the_source_do_not_survive(source, tmp_path):
    """A generation_config's limit would cut every answer; an old template or special token would contradict the new."""
    change(source, "generation_config.json", max_new_tokens=2048, temperature=0.7, eos_token_id=[1, 2])
    change(source, "tokenizer_config.json", chat_template="old", model_max_length=131072)
    change(source, "special_tokens_map.json", eos_token={"content": "<|im_end|>"}, pad_token="<|endoftext|>")
    (source / "chat_template.jinja").write_text("old")
    out = tmp_path / "out"
    make({"source": str(source), "eos_token": "<|im_end|>"}, _empty(out))
    generation = json.loads((out / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert "max_new_tokens" not in generation
    assert generation["temperature"] == 0.7
    assert generation["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.chat_template == read_template("qwen2_5_math_think")
    assert tokenizer.model_max_length == 131072
    assert json.loads((out / "special_tokens_map.json").read_text())["eos_token"] == "<|im_end|>"


def _empty(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("file", "values", "arguments", "fragments"),
    [
        ("config.json", {"model_type": "mllama"}, [], ["model_type='mllama'", "qwen2"]),
        ("config.json", {"rope_scaling": {"type": "yarn", "factor": 4}}, [], ["yarn", "without rope scaling"]),
        ("config.json", {"rope_parameters": {"rope_type": "yarn"}}, [], ["yarn", "without rope scaling"]),
        ("config.json", {}, ["--eos-token", "</s>"], ["no token </s>"]),
        ("config.json", {}, ["--template", "chatml"], ["template='chatml'", "qwen2_5_math_think"]),
        ("config.json", {}, ["--template", "BAD"], ["cannot be rendered", "TemplateSyntaxError"]),
        ("config.json", {}, ["--template", "DROPS"], ["drops a message"]),
        ("config.json", {}, ["--rope-theta", "0"], ["rope_theta=0.0", "positive"]),
        ("config.json", {}, ["--weights", "move"], ["'move'", "symlink or copy"]),
        ("config.json", {}, ["--source", "models/none"], ["models/none", "hf download models/none"]),
        ("config.json", {}, ["--source", "./none"], ["is not a folder"]),
        ("config.json", {}, ["--source", "EMPTY"], ["no config.json"]),
        ("config.json", {}, ["--source", "NO_WEIGHTS"], ["no weights"]),
        ("config.json", {}, ["--out", "SOURCE"], ["was not made by this command"]),
    ],
)
def test_what_does_not_fit_is_refused(source, tmp_path, capsys, monkeypatch, file, values, arguments, fragments):
    """Status 2, one line with the value and the fix, no folder left behind."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change(source, file, **values)
    (tmp_path / "bad.jinja").write_text("{% for %}")
    (tmp_path / "drops.jinja").write_text("{{ messages[1]['content'] }}")
    no_weights = _empty(tmp_path / "no_weights")
    for path in source.glob("*.json*"):
        (no_weights / path.name).write_bytes(path.read_bytes())
    places = {
        "BAD": tmp_path / "bad.jinja",
        "DROPS": tmp_path / "drops.jinja",
        "EMPTY": _empty(tmp_path / "empty"),
        "NO_WEIGHTS": no_weights,
        "SOURCE": source,
    }
    there = {path.name for path in tmp_path.iterdir()}
    given = [places.get(argument, argument) for argument in arguments]
    assert run("--source", source, "--out", tmp_path / "out", *given) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert all(fragment in message for fragment in fragments), message
    assert {path.name for path in tmp_path.iterdir()} == there


def test_an_earlier_preparation_is_replaced_on_request(source, tmp_path, capsys):
    """Without --overwrite nothing changes; with it the folder is the new one."""
    out = tmp_path / "out"
    assert run("--source", source, "--out", out) == 0
    assert "rope_theta" in capsys.readouterr().out
    assert run("--source", source, "--out", out, "--rope-theta", 5) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert AutoConfig.from_pretrained(out).rope_parameters["rope_theta"] == 40000.0
    assert run("--source", source, "--out", out, "--rope-theta", 5, "--overwrite") == 0
    assert AutoConfig.from_pretrained(out).rope_parameters["rope_theta"] == 5.0
    assert Path(out, "preparation.json").is_file()
