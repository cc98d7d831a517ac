"""What a grader says about a response."""

from dataclasses import dataclass
from typing import Literal, get_args

Reason = Literal[
    "correct",
    "wrong",
    "no_answer",  # nothing that the grader reads as an answer
    "no_think",  # the thinking part is required and was not closed
    "too_long",  # the answer is beyond the caps of answers.py and was not parsed
    "too_deep",
    "too_large",
    "timeout",  # the worker was killed at the time limit
    "crashed",  # the grader raised, or its worker died twice
]
REASONS: tuple[str, ...] = get_args(Reason)
REFUSED = ("too_long", "too_deep", "too_large")
MAX_EXTRACTED_CHARACTERS = 200


@dataclass(frozen=True)
class Verdict:
    """Whether the response is right, why (one of REASONS), and the text that was read as its answer."""

    correct: bool
    reason: Reason
    extracted: str = ""


def judged(correct: bool, extracted: str) -> Verdict:
    """The verdict on an answer that was found and compared."""
    return Verdict(correct, "correct" if correct else "wrong", extracted[:MAX_EXTRACTED_CHARACTERS])


def not_judged(reason: Reason, extracted: str = "") -> Verdict:
    """The verdict when nothing was compared: not correct."""
    return Verdict(False, reason, extracted[:MAX_EXTRACTED_CHARACTERS])
