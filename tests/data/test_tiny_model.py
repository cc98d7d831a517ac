"""The tiny base: which weights come with the code, that they belong to their options, and that they know arithmetic."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from recipe.amft.data import tiny_model
from recipe.amft.data.arithmetic_chats import chats, equations, held_out_hands
from recipe.amft.data.tiny_model import ChatEncoder, Pretraining, make, make_model, make_tokenizer, pad, shipped_base
from recipe.amft.main import compose

HELD_OUT = {"num_cards": 2, "ranks": 4, "targets": [1, 9], "train": 8, "validation": 2, "test": 2, "seed": 0}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 1, "seed": 3}


@pytest.fixture(scope="module")
def quickstart() -> dict:
    """The model options of a run without overrides."""
    return OmegaConf.to_container(compose([]).amft.model.options, resolve=True)


def file_of(options: dict) -> Path:
    tokenizer, model, pretraining, seed = tiny_model._untrained(options)
    return shipped_base(tokenizer, model, pretraining, seed)


def loss_on_fresh_chats(model, tokenizer, pretraining: Pretraining) -> float:
    """Nats per learned token on chats that pretraining did not draw."""
    source = equations(
        pretraining.largest, pretraining.counts, pretraining.largest_value, held_out_hands(pretraining.held_out)
    )
    encode = ChatEncoder(tokenizer)
    tokens, mask = pad([encode(chat) for chat in islice(chats(source, seed=12345), 64)], tokenizer.pad_token_id)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return ((losses * mask[:, 1:]).sum() / mask[:, 1:].sum()).item()


def test_the_quickstart_finds_its_base_in_the_code(quickstart):
    assert file_of(quickstart).exists(), "run python -m recipe.amft.data.tiny_model and commit what it writes"


def test_no_base_is_shipped_that_nothing_uses(quickstart):
    assert sorted(tiny_model.BASES.iterdir()) == [file_of(quickstart)]


def test_the_shipped_base_knows_arithmetic(quickstart, tmp_path):
    make(quickstart, tmp_path)
    pretraining = Pretraining(**quickstart["pretraining"])
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    random = make_model(tokenizer, **{key: value for key, value in quickstart.items() if key != "pretraining"})
    assert loss_on_fresh_chats(model, tokenizer, pretraining) < 1.0
    assert loss_on_fresh_chats(random, tokenizer, pretraining) > 5


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"num_layers": 2},
        {"vocabulary": "virl"},
        {"pretraining": {"steps": 3, "held_out": HELD_OUT}},
        {"pretraining": {"steps": 2, "held_out": {**HELD_OUT, "seed": 1}}},
    ],
    ids=str,
)
def test_another_option_is_another_base(change):
    options = {**SMALL, "pretraining": {"steps": 2, "held_out": HELD_OUT}}
    assert file_of({**options, **change}) != file_of(options)


def test_make_loads_what_ship_wrote_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_model, "BASES", tmp_path / "bases")
    options = {**SMALL, "pretraining": {"steps": 2, "batch_size": 4, "held_out": HELD_OUT}}
    make(options, tmp_path / "trained")
    tiny_model.ship(options)
    monkeypatch.setattr(tiny_model, "pretrain", lambda *_: pytest.fail("pretrained although its base is there"))
    make(options, tmp_path / "loaded")
    trained, loaded = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("trained", "loaded"))
    for expected, found in zip(trained.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)  # half precision on the way
