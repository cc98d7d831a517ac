"""Guided prompts are measured before any worker starts; one that verl would cut off is refused."""

import pytest

from recipe.amft.config import from_mapping
from recipe.amft.data.demonstrations import Demonstration
from recipe.amft.data.tiny_model import make_tokenizer
from recipe.amft.methods import make_method
from recipe.amft.step_data import check_guidance

STEPS = ["Add 3 and 4. Then multiply by 2.", "Multiply 5 by 4. Then add 4.", "Add 9 and 3. Double it."]


def guided(name: str = "tapo", num_prompt_tokens: int = 20):
    """The method with three demonstrations, whose prompts have `num_prompt_tokens`, one more each."""
    method = make_method(from_mapping({"method": {"name": name}}))
    rows = {f"row-{i}": Demonstration(f"row-{i}", [5] * (num_prompt_tokens + i), [6]) for i in range(len(STEPS))}
    if method.reads_demonstrations:
        method.read_demonstrations(dict.fromkeys(rows, "1 2"), dict(zip(rows, STEPS, strict=True)))
    return method, rows


def longest(method, rows, tokenizer) -> int:
    """Tokens of the longest guided prompt, counted one by one."""
    return max(
        len(row.prompt) + len(tokenizer.encode(text + "\n\n", add_special_tokens=False))
        for row_id, row in rows.items()
        for text in method.guidance(0, [row_id])[0]
    )


def test_the_limit_is_exact():
    """What fits to the token passes; one token less is refused with the length that is needed and the options."""
    tokenizer = make_tokenizer()
    method, rows = guided()
    needed = longest(method, rows, tokenizer)
    assert needed > 22
    check_guidance(method, rows, tokenizer, needed)
    with pytest.raises(ValueError, match=f"data.max_prompt_length={needed - 1} tokens") as error:
        check_guidance(method, rows, tokenizer, needed - 1)
    for text in ("of 3 prompts", "method=tapo", f"at least data.max_prompt_length={needed},", "amft.method.options"):
        assert text in str(error.value)


def test_prompts_without_guidance_are_not_measured():
    """Other methods put nothing before a prompt: the demonstrations' own check has seen it."""
    method, rows = guided("amft", num_prompt_tokens=500)
    check_guidance(method, rows, make_tokenizer(), 224)
