"""The verdict on a model's output: `paper` gives one verdict, `upstream` adds the public code's penalties up.

Known difference of `upstream` from the public code: after a wrong value the reason does not quote the longest prefix
shared with a solution, and over-long texts are illegal characters. Rewards are the same.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from recipe.amft.tasks.general_points.answer import (
    Answer,
    find_answer,
    find_cards,
    find_upstream_answer,
    find_upstream_cards,
)
from recipe.amft.tasks.general_points.formula import MAX_CHARACTERS, FormulaError, evaluate, numbers, parse

Mode = Literal["paper", "upstream"]
Name = Literal["correct", "wrong_value", "wrong_numbers", "illegal", "partial", "misread", "truncated"]

REWARDS: dict[Name, float] = {
    "correct": 5.0,
    "partial": 1.0,  # upstream only: a solution without its last ")"
    "wrong_value": -1.0,
    "truncated": -1.0,
    "misread": -1.5,  # image form only
    "wrong_numbers": -2.0,
    "illegal": -3.0,
}
_TOKEN = re.compile(r"[0-9]+|[-+*/()]")
_OPEN_SOLUTION = re.compile(r"([^()]+|\([0-9]+.[0-9]+\).)\([0-9]+[-+*/][^()]+")


@dataclass(frozen=True)
class Verdict:
    """`reason` goes back to the model; `right_side_differs` flags a correct formula with another number after "="."""

    name: Name
    reward: float
    reason: str
    formula: str | None = None
    right_side_differs: bool = False

    @property
    def success(self) -> bool:
        """Whether the hand is solved."""
        return self.name == "correct"


def verify(output: str, card_numbers: Sequence[int], target: int, mode: Mode = "paper") -> Verdict:
    """Judges the first answer in `output`: does its formula reach `target` with each of `card_numbers` used once?"""
    try:
        answer = find_answer(output) if mode == "paper" else find_upstream_answer(output)
    except FormulaError as error:
        return Verdict("illegal", REWARDS["illegal"], str(error))
    judge = _paper if mode == "paper" else _upstream
    return judge(answer, Counter(card_numbers), target)


def recognized(output: str, card_names: Sequence[str], mode: Mode = "paper") -> bool:
    """Whether the cards that the first answer in `output` reports are `card_names`, in any order."""
    cards = find_cards(output) if mode == "paper" else find_upstream_cards(output, len(card_names))
    return Counter(cards) == Counter(card_names)


def misread() -> Verdict:
    """The verdict on an answer that reports other cards than the image shows; its formula is not looked at."""
    return Verdict("misread", REWARDS["misread"], "you recognized wrong cards")


def _paper(answer: Answer, cards: Counter[int], target: int) -> Verdict:
    try:
        tree = parse(answer.formula)
    except FormulaError as error:
        return Verdict("illegal", REWARDS["illegal"], str(error), answer.formula)
    problems = _number_problems(numbers(tree), cards)
    if problems:
        return Verdict("wrong_numbers", REWARDS["wrong_numbers"], ", ".join(problems), answer.formula)
    try:
        reached = evaluate(tree, Fraction) == target
    except ZeroDivisionError:
        reached = False
    if not reached:
        reason = "your formula does not match the target"
        return Verdict("wrong_value", REWARDS["wrong_value"], reason, answer.formula)
    differs = answer.right_side is not None and answer.right_side.strip() != str(target)
    return Verdict("correct", REWARDS["correct"], "Correct solution", answer.formula, differs)


def _number_problems(used: Sequence[int], cards: Counter[int]) -> list[str]:
    """Numbers on no card, else those used too often; in addition those left out."""
    counts = Counter(used)
    invalid = sorted(number for number in counts if number not in cards)
    overused = sorted(number for number in counts if number in cards and counts[number] > cards[number])
    left_out = sorted(number for number in cards if counts[number] < cards[number])
    problems = []
    if invalid:
        problems.append(f"you used invalid numbers: {invalid}")
    elif overused:
        problems.append(f"you used numbers: {overused} too many times")
    if left_out:
        problems.append(f"you didn't use numbers: {left_out}")
    return problems


def _upstream(answer: Answer, cards: Counter[int], target: int) -> Verdict:
    formula = answer.formula
    if set(formula) - set("0123456789+-*/()") or len(formula) > MAX_CHARACTERS:
        return Verdict("illegal", REWARDS["illegal"], "illegal characters.", formula)
    tokens = _TOKEN.findall(formula)
    sequence_problems = _upstream_sequence_problems(tokens)
    number_problems = _number_problems([int(token) for token in tokens if token.isdigit()], cards)
    if sequence_problems or number_problems:
        reward = REWARDS["illegal"] * len(sequence_problems) + REWARDS["wrong_numbers"] * len(number_problems)
        reason = ", ".join(sequence_problems + number_problems) + "."
        return Verdict("illegal" if sequence_problems else "wrong_numbers", reward, reason, formula)
    try:
        if evaluate(parse(formula), int) == target:  # float division: 8/(3-8/3) is not 24 here
            return Verdict("correct", REWARDS["correct"], "Correct solution", formula)
    except ZeroDivisionError:
        pass
    except FormulaError:
        if _lacks_last_bracket(formula, target):
            return Verdict("partial", REWARDS["partial"], "partial solution", formula)
    return Verdict("wrong_value", REWARDS["wrong_value"], "your formula does not match any solution", formula)


def _upstream_sequence_problems(tokens: Sequence[str]) -> list[str]:
    """One entry for each penalty of -3; a trailing operator and a missing ")" at the end are not among them."""
    problems = []
    previous, open_brackets = "start", 0
    for token in tokens:
        kind = "number" if token.isdigit() else token if token in "()" else "operator"
        after_value = previous in ("number", ")")
        if kind == "number" and after_value:
            problems.append("invalid sequence after number")
        if kind == "operator" and not after_value:
            problems.append("invalid sequence after operator")
        if kind == "(":
            if after_value:
                problems.append("invalid sequence before '('")
            else:
                open_brackets += 1
        if kind == ")":
            if not after_value:
                problems.append("invalid sequence after ')'")
            if open_brackets:
                open_brackets -= 1
            else:
                problems.append("unmatched closing parenthesis")
        previous = kind
    return problems


def _lacks_last_bracket(formula: str, target: int) -> bool:
    """Whether `formula` + ")" is a solution in the public solver's form: one pair (not the whole), or (a?b)?(c?d)."""
    try:
        reached = evaluate(parse(formula + ")"), Fraction) == target
    except (FormulaError, ZeroDivisionError):
        return False
    return reached and _OPEN_SOLUTION.fullmatch(formula) is not None
