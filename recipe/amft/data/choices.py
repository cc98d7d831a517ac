"""Multiple choice: options as lettered lines at the end of a question, and their seeded order."""

import random
import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"

_LINE = re.compile(r"([A-J]|[1-9]|10)\) (.*\S)")
_ABOVE = re.compile(
    r"\b(?:all|none|both|neither|any|each|two) of (?:the )?(?:above|preceding|previous)\b", re.IGNORECASE
)
_OTHER_LETTERS = re.compile(r"\b[A-J]\)?,? (?:and|or|&) \(?[A-J]\b")


def render_choices(stem: str, choices: Sequence[str]) -> str:
    """The question with one line per option (`A) ...`), as the benchmark rows have it."""
    lines = [f"{letter}) {' '.join(choice.split())}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([stem.rstrip(), "", *lines, ""])


def parse_choices(text: str) -> tuple[str, tuple[str, ...]] | None:
    """(stem, options) where the last lines of `text` are labelled A), B), ... or 1), 2), ...; else None."""
    lines = text.rstrip().split("\n")
    found: list[tuple[str, str]] = []
    while lines and (match := _LINE.fullmatch(lines[-1].rstrip())):
        found.insert(0, (match[1], match[2]))
        lines.pop()
    labels = [label for label, _ in found]
    orders = (list(LETTERS), [str(number) for number in range(1, 11)])
    if len(found) < 2 or not any(labels == order[: len(labels)] for order in orders):
        return None
    return "\n".join(lines).rstrip(), tuple(choice for _, choice in found)


def label_position(label: str) -> int:
    """0 for "A" and "1", ...; -1 for anything else."""
    label = label.strip()
    if label.isdecimal():
        return int(label) - 1 if 1 <= int(label) <= len(LETTERS) else -1
    return LETTERS.find(label) if len(label) == 1 else -1


def shuffled(choices: Sequence[str], correct: int, rng: random.Random, has_order: bool) -> tuple[tuple[str, ...], int]:
    """The options in a random order, and where the correct one went.

    Options that speak of others ("Both A and B", "All of the above") lose their sense: with `has_order` (the source
    shows the options in an order) such a row stays as it is; without, those that speak of the ones above come last.
    """
    refers = [bool(_ABOVE.search(choice)) for choice in choices]
    if has_order and (any(refers) or any(_OTHER_LETTERS.search(choice) for choice in choices)):
        return tuple(choices), correct
    order = [index for index in range(len(choices)) if not refers[index]]
    rng.shuffle(order)
    order += [index for index in range(len(choices)) if refers[index]]
    return tuple(choices[index] for index in order), order.index(correct)
