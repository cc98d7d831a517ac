"""A tokenizer without a download, the chat that training would build with it, and tasks of real environments."""

from pathlib import Path

import pytest

from recipe.amft.data.tiny_model import make_tokenizer
from recipe.amft.evaluation.conversation import Chat
from recipe.amft.evaluation.tasks import Task


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Tasks name the environments of this folder by import path, as a user's own are named."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def chat(tokenizer):
    return Chat(tokenizer, "qwen2")


@pytest.fixture
def hand():
    """A hand of General Points: 3 5 8 make 16, with three attempts."""
    kwargs = {"num_cards": 3, "ranks": 10, "verify_iter": 3, "prompt_style": "compact"}
    return Task("hands", "hand/1", "general_points", kwargs, 0, {"cards": [3, 5, 8], "target": 16})
