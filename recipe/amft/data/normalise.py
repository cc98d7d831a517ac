"""The text by which two prompts are the same: for duplicates and for leaks between splits.

Case, white space, sentence punctuation and what only typesets a formula (dollar signs, thin spaces, `\\left`, group
braces, thousands separators) do not count. Operators, brackets, decimal points, factorials and primes do: `x+1` and
`x-1` stay two prompts. Equal formulas that are written differently (`\\frac12`, `1/2`) are two texts.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from recipe.amft.data.choices import parse_choices

_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!,|,\\!|\\ )(?=\d{3}(?!\d))")
_TYPESETTING = re.compile(
    r"\\\\|\\(?:left|right|displaystyle|textstyle|quad|qquad|[bB]igg?[lr]?|text|mathrm|mbox|textbf|mathbf)(?![a-zA-Z])"
    r"|\\[,;:!>\[\]() \n]|\\?\$|~"
)
_TOKEN = re.compile(r"\\[a-z]+|\\.|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+|[^\s\w]|_", re.DOTALL)
_SAME = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\leq": "\\le",
    "\\geq": "\\ge",
    "\\neq": "\\ne",
    "\\%": "%",
    "≤": "\\le",
    "≥": "\\ge",
    "≠": "\\ne",
    "×": "\\times",
    "·": "\\cdot",
    "−": "-",
    "–": "-",
    "—": "-",
    "’": "'",
    "‘": "'",
}
_DROPPED = set(',;:.?"`´“”{}')


def normalised_text(text: str) -> str:
    """The tokens of `text` that count, joined by one space."""
    text = unicodedata.normalize("NFKC", text)
    text = _TYPESETTING.sub(" ", _THOUSANDS.sub(",", text)).casefold()
    kept: list[str] = []
    matches = list(_TOKEN.finditer(text))
    for index, match in enumerate(matches):
        token = _SAME.get(match[0], match[0])
        following = matches[index + 1] if index + 1 < len(matches) else None
        if token in _DROPPED or (token in "!'-" and not _counts(token, kept, match, following)):
            continue
        kept.append(token.replace(",", ""))
    return " ".join(kept)


def prompt_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """The normalised text of a chat without its system message; the order of lettered options does not count."""
    parts: list[str] = []
    for message in messages:
        if message["role"] == "system":
            continue
        stem, choices = parse_choices(str(message["content"])) or (str(message["content"]), ())
        parts += [normalised_text(stem), *sorted(normalised_text(choice) for choice in choices)]
    return " | ".join(parts)


def _counts(token: str, kept: list[str], match: re.Match[str], following: re.Match[str] | None) -> bool:
    """Whether "!", "'" or "-" belongs to a formula (5!, f'(x), x - 1), not to a sentence (Wow!, don't, well-known)."""
    before = kept[-1] if kept else ""
    if token == "-":
        return not (_is_word(before) and following is not None and _is_word(following[0]))
    touches = bool(match.start()) and not match.string[match.start() - 1].isspace()
    if token == "'":
        return touches and len(before) == 1 and before.isalpha() and not (following and _is_joined(match, following))
    return touches and (before[-1:].isdigit() or before in (")", "!") or (len(before) == 1 and before.isalpha()))


def _is_word(token: str) -> bool:
    return len(token) > 1 and token.isalpha()


def _is_joined(match: re.Match[str], following: re.Match[str]) -> bool:
    return match.end() == following.start() and following[0].isalpha()
