"""Formulas of a model, read without `eval`: integers, + - * / and brackets; no unary signs, every size capped."""

import operator
import re
from collections.abc import Callable
from typing import Any

MAX_CHARACTERS = 256
MAX_DIGITS = 6
MAX_DEPTH = 32

Tree = int | tuple[str, "Tree", "Tree"]

_TOKEN = re.compile(r" *([0-9]+|[-+*/()])")
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class FormulaError(ValueError):
    """What is wrong with a formula, and where."""


def parse(text: str) -> Tree:
    """The tree of `text`: a number, or (operator, left tree, right tree). Raises FormulaError for anything illegal."""
    tokens = tokenize(text)
    if not tokens:
        raise FormulaError("the formula is empty")
    tree, end = _parse_sum(tokens, 0, 0)
    if end < len(tokens):
        token, position = tokens[end]
        problem = "unmatched ')'" if token == ")" else f"expected an operator before {token!r}"
        raise FormulaError(f"{problem} at position {position}")
    return tree


def tokenize(text: str) -> list[tuple[str, int]]:
    """(token, position from 1) for each number, operator and bracket of `text`; spaces separate."""
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(f"the formula is too long: {len(text)} characters, at most {MAX_CHARACTERS}")
    text = text.rstrip(" ")
    tokens, end = [], 0
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            position = end + len(text[end:]) - len(text[end:].lstrip(" "))
            raise FormulaError(f"illegal character {text[position]!r} at position {position + 1}")
        tokens.append((match[1], match.start(1) + 1))
        end = match.end()
    return tokens


def numbers(tree: Tree) -> list[int]:
    """The numbers of `tree`, left to right."""
    return [tree] if isinstance(tree, int) else numbers(tree[1]) + numbers(tree[2])


def evaluate(tree: Tree, number: Callable[[int], Any]) -> Any:
    """The value of `tree` in the arithmetic of `number`: Fraction (exact) or int (Python's float division).

    Raises ZeroDivisionError.
    """
    if isinstance(tree, int):
        return number(tree)
    symbol, left, right = tree
    return _OPERATIONS[symbol](evaluate(left, number), evaluate(right, number))


def _parse_sum(tokens: list[tuple[str, int]], start: int, depth: int) -> tuple[Tree, int]:
    tree, end = _parse_product(tokens, start, depth)
    while end < len(tokens) and tokens[end][0] in "+-":
        symbol = tokens[end][0]
        right, end = _parse_product(tokens, end + 1, depth)
        tree = (symbol, tree, right)
    return tree, end


def _parse_product(tokens: list[tuple[str, int]], start: int, depth: int) -> tuple[Tree, int]:
    tree, end = _parse_atom(tokens, start, depth)
    while end < len(tokens) and tokens[end][0] in "*/":
        symbol = tokens[end][0]
        right, end = _parse_atom(tokens, end + 1, depth)
        tree = (symbol, tree, right)
    return tree, end


def _parse_atom(tokens: list[tuple[str, int]], start: int, depth: int) -> tuple[Tree, int]:
    if start == len(tokens):
        raise FormulaError("the formula ends where a number is missing")
    token, position = tokens[start]
    if token == "(":
        if depth == MAX_DEPTH:
            raise FormulaError(f"more than {MAX_DEPTH} nested brackets at position {position}")
        tree, end = _parse_sum(tokens, start + 1, depth + 1)
        if end == len(tokens):
            raise FormulaError(f"unmatched '(' at position {position}")
        if tokens[end][0] != ")":
            raise FormulaError(f"expected an operator before {tokens[end][0]!r} at position {tokens[end][1]}")
        return tree, end + 1
    if not token.isdigit():
        raise FormulaError(f"expected a number or '(' before {token!r} at position {position}")
    if len(token) > MAX_DIGITS:
        raise FormulaError(f"a number of {len(token)} digits at position {position}, at most {MAX_DIGITS}")
    if token[0] == "0" and len(token) > 1:
        raise FormulaError(f"leading zero in {token!r} at position {position}")
    return int(token), start + 1
