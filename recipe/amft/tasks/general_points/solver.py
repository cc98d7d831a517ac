"""Exact solver: every formula over + - * / that uses each of 2 to 5 positive integers once, in rational arithmetic.

Magnitudes suffice: the sign of any part can be moved outwards (x - (y - z) = x + (z - y)), so tables hold values >= 0,
and a formula for a negative target is one for its magnitude with one difference turned round.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from itertools import combinations
from typing import NamedTuple

INVERSES = {"+": "-", "*": "/"}

Values = tuple[int, ...]


class Expression(NamedTuple):
    """A flattened sum or product: `kept` parts, then `inverted` ones (subtracted, divided by); a number has neither."""

    text: str  # first field: expressions sort by it
    operator: str = ""
    kept: tuple["Expression", ...] = ()
    inverted: tuple["Expression", ...] = ()


def solvable(values: Sequence[int], target: int) -> bool:
    """Whether some formula over `values` equals `target`; cached, so that a repeated hand is one lookup."""
    return _solvable(tuple(sorted(values)), target)


def integer_targets(values: Sequence[int]) -> frozenset[int]:
    """Every integer >= 0 that some formula over `values` equals."""
    return _integer_targets(tuple(sorted(values)))


def formulas(values: Sequence[int], target: int) -> tuple[str, ...]:
    """All formulas over `values` that equal `target`, sorted; one for each class of trivially equal ones.

    Trivially equal: the same up to the order of a sum or product, its brackets, and differences turned round in pairs.
    """
    return _formulas(tuple(sorted(values)), target)


@lru_cache(maxsize=1 << 18)
def _solvable(values: Values, target: int) -> bool:
    return target in _integer_targets(values) if target >= 0 else bool(_formulas(values, target))


@lru_cache(maxsize=1 << 14)
def _integer_targets(values: Values) -> frozenset[int]:
    found = set()
    for left, right in _splits(values):
        right_ratios = [value.as_integer_ratio() for value in _expressions(right)]
        for left_value in _expressions(left):
            left_top, left_bottom = left_value.as_integer_ratio()
            for right_top, right_bottom in right_ratios:
                first, second, bottom = left_top * right_bottom, right_top * left_bottom, left_bottom * right_bottom
                if (first + second) % bottom == 0:
                    found.add((first + second) // bottom)
                if (first - second) % bottom == 0:
                    found.add(abs(first - second) // bottom)
                if (left_top * right_top) % bottom == 0:
                    found.add(left_top * right_top // bottom)
                if second and first % second == 0:
                    found.add(first // second)
                if first and second % first == 0:
                    found.add(second // first)
    return frozenset(found)


@lru_cache(maxsize=1 << 14)
def _formulas(values: Values, target: int) -> tuple[str, ...]:
    solutions = {
        expression
        for value, left, right, operator, invert in _joins(values)
        if value == abs(target)
        for expression in _join_all(left, right, operator, invert, is_zero=value == 0)
    }
    if target < 0:
        solutions = {negated for expression in solutions if (negated := _negate(expression))}
    return tuple(sorted(expression.text for expression in solutions))


@lru_cache(maxsize=1 << 11)
def _expressions(values: Values) -> dict[Fraction, frozenset[Expression]]:
    """Magnitude -> the expressions over all of `values` that have it."""
    if len(values) == 1:
        return {Fraction(values[0]): frozenset({Expression(str(values[0]))})}
    table: dict[Fraction, set[Expression]] = {}
    for value, left, right, operator, invert in _joins(values):
        table.setdefault(value, set()).update(_join_all(left, right, operator, invert, is_zero=value == 0))
    return {value: frozenset(expressions) for value, expressions in table.items()}


Join = tuple[Fraction, frozenset[Expression], frozenset[Expression], str, bool]


def _joins(values: Values) -> Iterator[Join]:
    """Every last operation over `values`: value, both operands' expressions, operator, whether right is inverted."""
    for left_values, right_values in _splits(values):
        for left_value, left in _expressions(left_values).items():
            for right_value, right in _expressions(right_values).items():
                yield left_value + right_value, left, right, "+", False
                if left_value >= right_value:
                    yield left_value - right_value, left, right, "+", True
                else:
                    yield right_value - left_value, right, left, "+", True
                yield left_value * right_value, left, right, "*", False
                if right_value:
                    yield left_value / right_value, left, right, "*", True
                if left_value:
                    yield right_value / left_value, right, left, "*", True


def _join_all(
    left: frozenset[Expression], right: frozenset[Expression], operator: str, invert: bool, is_zero: bool
) -> Iterator[Expression]:
    for first in left:
        for second in right:
            joined = _join(first, second, operator, invert)
            if is_zero and operator == "+" and invert:  # x - x: both orders are the same formula, keep one
                joined = min(joined, _join(second, first, operator, invert))
            yield joined


def _join(first: Expression, second: Expression, operator: str, invert: bool) -> Expression:
    first_kept, first_inverted = _parts(first, operator)
    second_kept, second_inverted = _parts(second, operator)
    if invert:
        second_kept, second_inverted = second_inverted, second_kept
    return _flat(operator, first_kept + second_kept, first_inverted + second_inverted)


def _parts(expression: Expression, operator: str) -> tuple[tuple[Expression, ...], tuple[Expression, ...]]:
    return (expression.kept, expression.inverted) if expression.operator == operator else ((expression,), ())


def _flat(operator: str, kept: tuple[Expression, ...], inverted: tuple[Expression, ...]) -> Expression:
    kept, inverted = tuple(sorted(kept)), tuple(sorted(inverted))
    text = operator.join(_bracketed(part, operator) for part in kept)
    text += "".join(INVERSES[operator] + _bracketed(part, operator) for part in inverted)
    return Expression(text, operator, kept, inverted)


def _bracketed(part: Expression, operator: str) -> str:
    return f"({part.text})" if operator == "*" and part.operator == "+" else part.text


def _negate(expression: Expression) -> Expression | None:
    """The same formula with one difference turned round, or None where it holds no difference."""
    operator, kept, inverted = expression.operator, expression.kept, expression.inverted
    if operator == "+" and inverted:
        return _flat("+", inverted, kept)
    for index, part in enumerate(kept + inverted):
        negated = _negate(part)
        if negated is None:
            continue
        if operator == "+":
            return _flat("+", (negated,), kept[:index] + kept[index + 1 :])
        parts = (*(kept + inverted)[:index], negated, *(kept + inverted)[index + 1 :])
        return _flat("*", parts[: len(kept)], parts[len(kept) :])
    return None


@cache
def _splits(values: Values) -> tuple[tuple[Values, Values], ...]:
    """Every way to part the multiset `values` (sorted) into two non-empty ones, each once."""
    found = set()
    for size in range(1, len(values) // 2 + 1):
        for chosen in combinations(range(len(values)), size):
            left = tuple(values[index] for index in chosen)
            right = tuple(value for index, value in enumerate(values) if index not in chosen)
            found.add((left, right) if len(left) < len(right) else (min(left, right), max(left, right)))
    return tuple(sorted(found))
