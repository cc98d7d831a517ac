"""The texts of General Points: prompt, demonstration and feedback, in the paper's style and in a compact one.

`paper` has the blocks of Chu et al. (arXiv 2501.17161) in our words; `compact` is for tiny models and shows each card
as the number it counts as. One verifier reads the answers of both.
"""

import json
from collections.abc import Sequence
from typing import Literal

from recipe.amft.tasks.environment import IMAGE
from recipe.amft.tasks.general_points.cards import RANK_NAMES, FaceRule, card_value
from recipe.amft.tasks.general_points.verifier import Mode, Verdict

PromptStyle = Literal["paper", "compact"]
Modality = Literal["text", "image"]

_PAPER_PROMPT = """[Task Description]
You are an expert {target} points card game player. {cards_are_given}
Note that {face_rule}, and each card must be used once.
Your goal is to output a formula that equals {target}, made of the cards' numbers and the signs + - * / ( ) =
{input}
[Output]
Your answer is a JSON object in this format:
{{
  "cards": [{card_places}], where each is a card as it {card_is},
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
    "misread": "wrong cards",
    "truncated": "truncated",
}


def prompt(
    ranks: Sequence[int], target: int, face_rule: FaceRule, style: PromptStyle, modality: Modality = "text"
) -> str:
    """The user message that opens a hand; with modality `image` the cards stand in the picture before it."""
    in_text = modality == "text"
    if style == "compact":
        shown = " ".join(str(card_value(rank, face_rule)) for rank in ranks)
        return f"Cards: {shown} Target: {target}" if in_text else f"{IMAGE}Target: {target}"
    number, shown = len(ranks), [RANK_NAMES[rank] for rank in ranks]
    text = _PAPER_PROMPT.format(
        target=target,
        cards_are_given=f"You will receive {number} cards."
        if in_text
        else f"You are observing {number} cards in the image.",
        input=f"\n[Input]\nCards: {shown}\n" if in_text else "",
        card_is="was given" if in_text else "is seen in the image",
        face_rule=_FACE_RULES[face_rule],
        card_places=", ".join("xyzwv"[: len(ranks)]),
        number_places=", ".join("abcde"[: len(ranks)]),
    )
    return text if in_text else f"{IMAGE}{text}"


def demonstration(
    ranks: Sequence[int],
    target: int,
    face_rule: FaceRule,
    style: PromptStyle,
    formula: str,
    modality: Modality = "text",
    mode: Mode = "paper",
) -> str:
    """The expert's answer: `formula`, followed by "=" and the target, in the answer format.

    With modality `image` the compact answer names the cards too. The public code reads no cards from valid JSON, so
    that in its mode the list has single quotes.
    """
    equation = f"{formula}={target}"
    names = [RANK_NAMES[rank] for rank in ranks]
    cards = str(names) if modality == "image" and mode == "upstream" else json.dumps(names)
    if style == "compact":
        seen = f'"cards": {cards}, ' if modality == "image" else ""
        return f'{{{seen}"formula": {json.dumps(equation)}}}'
    values = json.dumps([card_value(rank, face_rule) for rank in ranks])
    return f'{{\n  "cards": {cards},\n  "number": {values},\n  "formula": {json.dumps(equation)}\n}}'


def feedback(verdict: Verdict, style: PromptStyle) -> str:
    """The user message after a wrong answer."""
    reason = _COMPACT_REASONS[verdict.name] if style == "compact" else verdict.reason
    return f"You failed this trial because {reason}"
