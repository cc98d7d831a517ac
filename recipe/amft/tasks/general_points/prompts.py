"""The texts of General Points: prompt, demonstration and feedback, in the paper's style and in a compact one.

`paper` has the blocks of Chu et al. (arXiv 2501.17161) in our words; `compact` is for tiny models and shows each card
as the number it counts as. One verifier reads the answers of both.
"""

import json
from collections.abc import Sequence
from typing import Literal

from recipe.amft.tasks.general_points.cards import RANK_NAMES, FaceRule, card_value
from recipe.amft.tasks.general_points.verifier import Verdict

PromptStyle = Literal["paper", "compact"]

_PAPER_PROMPT = """[Task Description]
You are an expert {target} points card game player. You will receive {num_cards} cards.
Note that {face_rule}, and each card must be used once.
Your goal is to output a formula that equals {target}, made of the cards' numbers and the signs + - * / ( ) =

[Input]
Cards: {cards}

[Output]
Your answer is a JSON object in this format:
{{
  "cards": [{card_places}], where each is a card as it was given,
  "number": [{number_places}], where each is the number that the card counts as,
  "formula": "an equation that equals {target}"
}}"""
_FACE_RULES: dict[FaceRule, str] = {
    "ten": "'J', 'Q' and 'K' count as 10",
    "value": "'J', 'Q' and 'K' count as 11, 12 and 13",
}
_COMPACT_REASONS = {
    "wrong_value": "wrong value",
    "wrong_numbers": "wrong numbers",
    "illegal": "illegal formula",
    "partial": "open bracket",
    "truncated": "truncated",
}


def prompt(ranks: Sequence[int], target: int, face_rule: FaceRule, style: PromptStyle) -> str:
    """The user message that opens a hand."""
    if style == "compact":
        shown = " ".join(str(card_value(rank, face_rule)) for rank in ranks)
        return f"Cards: {shown} Target: {target}"
    return _PAPER_PROMPT.format(
        target=target,
        num_cards=len(ranks),
        face_rule=_FACE_RULES[face_rule],
        cards=[RANK_NAMES[rank] for rank in ranks],
        card_places=", ".join("xyzwv"[: len(ranks)]),
        number_places=", ".join("abcde"[: len(ranks)]),
    )


def demonstration(ranks: Sequence[int], target: int, face_rule: FaceRule, style: PromptStyle, formula: str) -> str:
    """The expert's answer: `formula`, followed by "=" and the target, in the answer format."""
    equation = f"{formula}={target}"
    if style == "compact":
        return json.dumps({"formula": equation})
    cards = json.dumps([RANK_NAMES[rank] for rank in ranks])
    values = json.dumps([card_value(rank, face_rule) for rank in ranks])
    return f'{{\n  "cards": {cards},\n  "number": {values},\n  "formula": {json.dumps(equation)}\n}}'


def feedback(verdict: Verdict, style: PromptStyle) -> str:
    """The user message after a wrong answer."""
    reason = _COMPACT_REASONS[verdict.name] if style == "compact" else verdict.reason
    return f"You failed this trial because {reason}"
