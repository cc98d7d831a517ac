"""The formula of a model's output, found by a tolerant scan: JSON, nearly JSON, or either one inside other text."""

import json
import re
from typing import NamedTuple

from recipe.amft.tasks.general_points.formula import FormulaError

MAX_CHARACTERS = 200_000

_KEY = re.compile(r'"formula"\s*:\s*')
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_UPSTREAM = re.compile(r'"formula": "(.*?)"')


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


def _unescape(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _split(formula: str) -> Answer:
    left, equals, right = formula.partition("=")
    return Answer(left, right if equals else None)
