"""General Points: the solver finds what brute force finds, each formula once, and formulas are read exactly."""

import ast
import itertools
import json
import random
import re
import time
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recipe.amft.tasks.general_points import solver
from recipe.amft.tasks.general_points.cards import card_value
from recipe.amft.tasks.general_points.formula import FormulaError, evaluate, parse
from recipe.amft.tasks.general_points.verifier import verify


def as_answer(formula):
    return json.dumps({"formula": formula})


def test_solver_finds_the_published_numbers_of_solvable_hands():
    """566 of 715 multisets over 1..10 and 1,362 of 1,820 over 1..13 make 24; of the 28,561 ordered deals, 20,876 do
    where J, Q, K are 10, and 79.2% where they are 11, 12, 13.
    """
    assert sum(solver.solvable(hand, 24) for hand in itertools.combinations_with_replacement(range(1, 11), 4)) == 566
    assert sum(solver.solvable(hand, 24) for hand in itertools.combinations_with_replacement(range(1, 14), 4)) == 1362
    deals = list(itertools.product(range(1, 14), repeat=4))
    assert len(deals) == 28561
    solvable = {
        rule: sum(solver.solvable([card_value(rank, rule) for rank in deal], 24) for deal in deals)
        for rule in ("ten", "value")
    }
    assert solvable["ten"] == 20876
    assert round(solvable["value"] / len(deals), 3) == 0.792


@cache
def reachable_values(values):
    """All values of all formulas, by reducing every ordered pair in every order: independent of the solver's tables."""
    if len(values) == 1:
        return {values[0]}
    found = set()
    for first, second in itertools.permutations(range(len(values)), 2):
        rest = [value for index, value in enumerate(values) if index not in (first, second)]
        a, b = values[first], values[second]
        for joined in (a + b, a - b, a * b, *([a / b] if b else [])):
            found |= reachable_values(tuple(sorted([*rest, joined])))
    return found


@pytest.mark.parametrize("num_cards", [2, 3, 4])
def test_solver_agrees_with_brute_force_for_every_integer_target(num_cards):
    """A target is solvable, negative ones included, exactly when brute force over ordered reductions reaches it."""
    hands = list(itertools.combinations_with_replacement(range(1, 8), num_cards))
    for hand in random.Random(0).sample(hands, min(len(hands), 15)):
        expected = {
            int(value) for value in reachable_values(tuple(Fraction(n) for n in hand)) if value.denominator == 1
        }
        assert solver.integer_targets(hand) == {target for target in expected if target >= 0}
        for target in range(min(expected) - 2, max(expected) + 3):
            assert solver.solvable(hand, target) == (target in expected), (hand, target)
            assert bool(solver.formulas(hand, target)) == (target in expected), (hand, target)


def test_every_formula_of_every_solvable_hand_verifies_as_correct():
    """Each solution that the solver names gets +5 of the verifier, with any number of cards and a negative target."""
    num_solved = 0
    for hand in itertools.combinations_with_replacement(range(1, 14), 4):
        found = solver.formulas(hand, 24)
        num_solved += bool(found)
        for formula in found:
            assert verify(as_answer(formula), hand, 24).reward == 5.0, (hand, formula)
    assert num_solved == 1362
    for hand, target in [((2, 7), -5), ((3, 5, 7), 56), ((1, 2, 3), -3), ((2, 3, 5, 7, 11), 100), ((4, 4), 0)]:
        assert solver.formulas(hand, target)
        assert {verify(as_answer(formula), hand, target).reward for formula in solver.formulas(hand, target)} == {5.0}


@pytest.mark.parametrize("hand", [(2, 3, 4, 12), (1, 2, 3, 4), (2, 4, 6, 8), (1, 3, 6, 10)])
def test_no_two_formulas_of_a_hand_are_the_same_formula_in_disguise(hand):
    """With the card numbers replaced by others, all formulas differ in magnitude: none is a rewriting of another."""
    others = dict(zip(hand, (1013, 1097, 1201, 1409), strict=True))

    def replaced(tree):
        return others[tree] if isinstance(tree, int) else (tree[0], replaced(tree[1]), replaced(tree[2]))

    magnitudes = [abs(evaluate(replaced(parse(formula)), Fraction)) for formula in solver.formulas(hand, 24)]
    assert len(magnitudes) > 3
    assert len(set(magnitudes)) == len(magnitudes)


def test_solvable_lookup_is_fast():
    """At least 20,000 ordered deals a second on one core, so that the environment can redraw hands freely."""
    deals = [[card_value(rank, "ten") for rank in deal] for deal in itertools.product(range(1, 14), repeat=4)]
    start = time.process_time()
    for deal in deals:
        solver.solvable(deal, 24)
    assert len(deals) / (time.process_time() - start) > 20_000


# ---- formulas -------------------------------------------------------------------------------------------------------


def python_value(text):
    """The reference: Python's own grammar, restricted to + - * / on integers; None where a formula is illegal."""

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in operations:
            return operations[type(node.op)](value(node.left), value(node.right))
        raise SyntaxError

    operations = {
        ast.Add: Fraction.__add__,
        ast.Sub: Fraction.__sub__,
        ast.Mult: Fraction.__mul__,
        ast.Div: Fraction.__truediv__,
    }
    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError:
        return None
    except ZeroDivisionError:
        return "division by zero"


def our_value(text):
    try:
        return evaluate(parse(text), Fraction)
    except FormulaError:
        return None
    except ZeroDivisionError:
        return "division by zero"


formula_texts = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " + ", " / "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(formula_texts)
def test_random_formulas_have_python_s_exact_value(text):
    """Precedence, associativity and brackets are those of Python, and arithmetic is exact."""
    assert our_value(text) == python_value(text)
    assert our_value(text) is not None


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(["1", "2", "13", "+", "-", "*", "/", "(", ")", " "]), max_size=9).map("".join))
def test_random_token_soup_is_legal_exactly_when_python_says_so(text):
    """No ill-formed text slips through, no well-formed one is refused (unary signs, ** and // count as ill-formed)."""
    assume(not re.search("[0-9]{7}", text))  # beyond MAX_DIGITS
    assert our_value(text) == python_value(text)


@st.composite
def formulas_about_hands(draw):
    """(hand, the numbers that a formula uses, the formula): its cards, or with one changed, repeated or left out."""
    hand = draw(st.lists(st.integers(1, 13), min_size=2, max_size=5))
    used = list(hand)
    change = draw(st.sampled_from(["none", "none", "none", "other", "twice", "without"]))
    if change == "other":
        used[0] = draw(st.integers(0, 20))
    elif change == "twice":
        used.append(used[0])
    elif change == "without" and len(used) > 1:
        used.pop()
    texts = [str(number) for number in draw(st.permutations(used))]
    while len(texts) > 1:
        place = draw(st.integers(0, len(texts) - 2))
        joined = f"{texts[place]}{draw(st.sampled_from('+-*/'))}{texts.pop(place + 1)}"
        texts[place] = f"({joined})" if draw(st.booleans()) else joined
    return hand, used, texts[0]


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(formulas_about_hands(), st.booleans())
def test_the_verdict_is_that_of_exact_fractions(case, aims_at_its_value):
    """Random expressions over a hand: right numbers decide first, then the exact value, against Python's grammar."""
    hand, used, formula = case
    value = python_value(formula)
    target = int(value) if aims_at_its_value and isinstance(value, Fraction) and value.denominator == 1 else 24
    expected = "correct" if value == target else "wrong_value"
    verdict = verify(as_answer(f"{formula}={target}"), hand, target)
    assert verdict.name == (expected if sorted(used) == sorted(hand) else "wrong_numbers")
