r"""Math-Verify 0.9 as a grader. Call it in a worker process only (pool.py): it has no time limit of its own here.

Math-Verify's limits use SIGALRM, which raises off the main thread and does not interrupt a long computation in C; they
are switched off (`parsing_timeout=None`, `timeout_seconds=None`). Its modules are imported at the first call, so that
the training process does not load sympy for the graders.
"""

import cmath
import logging
import re
from functools import lru_cache
from typing import Any

from recipe.amft.tasks.graders import letters, normalise
from recipe.amft.tasks.graders.answers import beyond_caps, last_box
from recipe.amft.tasks.graders.verdicts import Verdict, judged, not_judged

MAX_LINE_CHARACTERS = 400  # a longer line with the last box is cut down to the box
MAX_UNBOXED_CHARACTERS = 1000  # searched for an answer, from the end, when there is no box
SEPARATOR, PERCENT = re.compile(normalise.SEPARATOR), re.compile(normalise.PERCENT)
E_NOTATION = re.compile(r"(?<![\w.\\])(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,3})(?![\w.])")
TOLERANCE = 1e-3  # relative; closer values are left to Math-Verify
SMALL, SMALL_TOLERANCE = 1e-2, 1e-4  # below SMALL, six decimals are too few


def grade_math_verify(answer: str, ground_truth: str, choices: str = "") -> Verdict:
    """Right if Math-Verify finds the extracted answer equal to the ground truth; with `choices`, a choice match.

    What Math-Verify sees is the line of the last box (it joins neighbouring boxes to a set), or without a box the last
    MAX_UNBOXED_CHARACTERS.
    """
    if choices:
        return letters.grade_letter(answer, ground_truth, choices)
    window, parsed_part = _window(answer)
    if reason := beyond_caps(parsed_part):
        return not_judged(reason, parsed_part)
    candidates = _parse(window)
    if not candidates:
        return not_judged("no_answer")
    extracted = next((candidate for candidate in candidates if isinstance(candidate, str)), parsed_part)
    return judged(_any_equal(_parse_ground_truth(ground_truth), candidates), extracted)


def equal_expressions(prediction: str, ground_truth: str) -> bool:
    """Whether Math-Verify finds two LaTeX expressions (the contents of two boxes) equal; False beyond the caps."""
    if beyond_caps(prediction):
        return False
    return _any_equal(_parse_ground_truth(ground_truth), _parse(rf"\boxed{{{prediction}}}"))


def _window(answer: str) -> tuple[str, str]:
    """The text for Math-Verify, and the part of it that must be within the caps."""
    box = last_box(answer)
    if box is None:
        tail = answer[-MAX_UNBOXED_CHARACTERS:]
        return tail, tail
    start, end, content = box
    line_start, line_end = answer.rfind("\n", 0, start) + 1, answer.find("\n", end)
    line = answer[line_start : line_end if line_end >= 0 else len(answer)]
    if len(line) > MAX_LINE_CHARACTERS or beyond_caps(line):
        line = rf"\boxed{{{content}}}"
    return line, content


@lru_cache(maxsize=2048)  # a group of rollouts shares its ground truth
def _parse_ground_truth(ground_truth: str) -> tuple[Any, ...]:
    plain = re.sub(r"(?<!\\)\$", "", ground_truth).strip().rstrip(". ")
    return tuple(_parse(rf"\boxed{{{plain}}}"))


def _parse(window: str) -> list[Any]:
    """What Math-Verify reads: expressions, and the texts they came from.

    It reads 1.5e3 as 1.5 e - 3, 10\\,080 as 10 times 080 and does not read 8\\% in a box; these are spelled out before,
    a percentage both as its number and as a hundredth of it.
    """
    import math_verify  # heavy: see the top of this file

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its limits are off
    window = SEPARATOR.sub("", window)
    bare = PERCENT.sub("", window)
    texts = [window, bare, E_NOTATION.sub(lambda match: rf"{match.group(1)} \times 10^{{{int(match.group(2))}}}", bare)]
    box = last_box(window)
    if box is not None and PERCENT.search(box[2]):
        texts.append(rf"\boxed{{\frac{{{PERCENT.sub('', box[2])}}}{{100}}}}")
    return [item for text in dict.fromkeys(texts) for item in math_verify.parse(text, parsing_timeout=None)]


def _any_equal(gold: tuple[Any, ...], candidates: list[Any]) -> bool:
    import math_verify

    return any(
        not _values_differ(expected, candidate) and math_verify.verify(expected, candidate, timeout_seconds=None)
        for expected in gold
        for candidate in candidates
    )


def _values_differ(expected: Any, candidate: Any) -> bool:
    """Whether two expressions are numbers with clearly different values; False if one of them is not a finite number.

    It spares Math-Verify's symbolic comparison, which takes seconds for log(2)/(log(2)-log(3)) against 2271380. And it
    corrects one thing: Math-Verify rounds to six decimals, by which 4.6e-24 equals 1.3e-27.
    """
    values = [_value(expected), _value(candidate)]
    if None in values:
        return False
    largest = max(abs(value) for value in values)
    return abs(values[0] - values[1]) > largest * (SMALL_TOLERANCE if largest < SMALL else TOLERANCE)


def _value(expression: Any) -> complex | None:
    from sympy import UnevaluatedExpr

    if not getattr(expression, "is_number", False) or expression.has(UnevaluatedExpr):
        return None  # percentages are unevaluated: Math-Verify takes 8% for 8 and for 0.08
    try:
        value = complex(expression.evalf(15))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if cmath.isfinite(value) else None
