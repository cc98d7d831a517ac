"""Formula and cards of a model's output, found by a tolerant scan: JSON, nearly JSON, or either one inside a text."""

import json
import re
from typing import NamedTuple

from recipe.amft.tasks.general_points.formula import FormulaError

MAX_CHARACTERS = 200_000
MAX_CARDS_TEXT = 400  # characters of a list of cards that are looked at

_KEY = re.compile(r'"formula"\s*:\s*')
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_UPSTREAM = re.compile(r'"formula": "(.*?)"')
_CARDS = re.compile(rf'"cards"\s*:\s*\[([^\[\]]{{0,{MAX_CARDS_TEXT}}})\]')
_UPSTREAM_CARDS = re.compile(r'"cards": \[(.*?)\]')


class Answer(NamedTuple):
    """`formula`: what stands before the first "="; `right_side`: what stands after it, None without one."""

    formula: str
    right_side: str | None


def find_answer(output: str) -> Answer:
    """The first answer in `output` (mode `paper`). Raises FormulaError where there is none."""
    if len(output) > MAX_CHARACTERS:
        raise FormulaError(f"the answer is too long: {len(output)} characters, at most {MAX_CHARACTERS}")
    key = _KEY.search(output)
    if key is None:
        raise FormulaError('the answer has no "formula"')
    formula = _STRING.match(output, key.end())
    if formula is None:
        raise FormulaError("the formula is not a string")
    return _split(_unescape(formula[1]))


def find_upstream_answer(output: str) -> Answer:
    """As the public code reads it: the whole output as JSON, else the first exact `"formula": "..."`, else "None"."""
    if len(output) > MAX_CHARACTERS:
        raise FormulaError("illegal characters.")
    try:
        formula = json.loads(output)["formula"]
    except (ValueError, TypeError, KeyError, RecursionError):
        formula = None
    if not isinstance(formula, str):
        match = _UPSTREAM.search(output)
        formula = match[1] if match else "None"
    return _split(formula)


def find_cards(output: str) -> list[str]:
    """The first list of cards in `output` (mode `paper`), as JSON or with other quotes; empty where there is none."""
    match = _CARDS.search(output) if len(output) <= MAX_CHARACTERS else None
    return [] if match is None else [card.strip(" \t\r\n'\"").upper() for card in match[1].split(",")]


def find_upstream_cards(output: str, num_cards: int) -> list[str]:
    """As the public code reads it: nothing from a list in valid JSON, `[ ] '` and spaces stripped from any other."""
    if len(output) > MAX_CHARACTERS:
        return []
    try:
        cards = json.loads(output)["cards"]
    except (ValueError, TypeError, KeyError, RecursionError):
        match = _UPSTREAM_CARDS.search(output)
        cards = match[1] if match else ""
    if not isinstance(cards, str):
        return []
    parts = cards.translate(str.maketrans("", "", "[] '")).split(",")
    return parts if len(parts) == num_cards else []


def _unescape(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _split(formula: str) -> Answer:
    left, equals, right = formula.partition("=")
    return Answer(left, right if equals else None)
