r"""Multiple choice: the letter that a response states last.

A statement is `\boxed{C}`, "ANSWER: C", "the answer is (C)", "the correct option is C" or "option C is correct".
Without any, the last line counts if it is or begins with a choice: "C", "(C)", "C. text". Letters are upper case, in a
box also lower case; a letter that is not among the choices is no statement. Two choices at once ("A and C") are wrong.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from recipe.amft.tasks.graders.answers import last_box
from recipe.amft.tasks.graders.verdicts import Verdict, judged, not_judged

LETTERS = "ABCDEFGHIJ"  # MMLU-Pro has up to ten options
NUMBERS = "123456789"  # some ARC questions number their options

MARKUP = re.compile(r"\\(?:text|mbox|math|mathrm|mathbf|textbf|textrm|boldsymbol)\s*\{|\\[()\[\]!,; ]|[*$_`]")
LEAD = (
    r"(?:[\s:=-]{0,40}(?i:is|was|are|would|must|should|be|therefore|thus|then|clearly|hence|the|correct|choice|option|letter)\b)"
    r"{0,6}[\s:=-]{0,40}"
)
END = r"(?![A-Za-z0-9]|\.\d)"
ARTICLES = "AI"  # English words too: "the answer is A number"
AFTER_ARTICLE = re.compile(r"\s+(?!because|since|as|for|and|or|which|with)[a-z]")


@lru_cache(maxsize=64)
def _patterns(choices: str) -> tuple[re.Pattern[str], ...]:
    choice = rf"[(\[{{]?(?P<choice>[{re.escape(choices)}]){END}"
    return (
        re.compile(rf"(?i:\banswers?\b){LEAD}{choice}"),
        re.compile(rf"\b(?i:correct|right|best|final)\s+(?i:choice|option|letter)\b{LEAD}{choice}"),
        re.compile(rf"\b(?i:choice|option)\s+{choice}(?=[)\]}}]?\s+is\s+(?:the\s+)?(?:correct|right|best)\b)"),
    )


def grade_letter(answer: str, ground_truth: str, choices: str = "") -> Verdict:
    """Right if the choice stated last is the ground truth; `choices` default to A-J, or 1-9 for a digit."""
    expected = ground_truth_letter(ground_truth) or ground_truth.strip()
    choices = choices or (NUMBERS if expected.isdigit() else LETTERS)
    if len(expected) != 1 or expected not in choices:
        raise ValueError(
            f"ground_truth of a multiple choice must be one of the choices {choices!r}; got {ground_truth!r}"
        )
    stated = stated_choice(answer, choices)
    if stated:
        return judged(stated == expected, stated)
    box = last_box(answer)
    return judged(False, box[2]) if box else not_judged("no_answer")


def ground_truth_letter(ground_truth: str) -> str:
    r"""The letter A to J that a ground truth such as `C`, `(C)` or `\text{(C)}` stands for, else the empty string."""
    match = re.fullmatch(r"[\s({]{0,9}([A-J])[\s)}.]{0,9}", _plain(ground_truth[:40]))
    return match.group(1) if match else ""


def stated_choice(answer: str, choices: str) -> str:
    """The choice that the answer states last, or several at once as they stand ("A and C"); empty if there is none."""
    text = _plain(answer)
    statements = list(_sentences(text, choices))
    box = last_box(answer)
    if box is not None:
        start, _, content = box
        boxed = _leading_choice(_plain(content).strip(), choices, any_case=True)
        statements += [(start, boxed)] if boxed else []
    if statements:
        return max(statements)[1]
    lines = text.strip().splitlines()
    return _leading_choice(lines[-1].strip(), choices, any_case=False) if lines else ""


def _plain(text: str) -> str:
    """The text with markup blanked out, so that positions stay."""
    return MARKUP.sub(lambda match: " " * len(match.group()), text)


def _sentences(text: str, choices: str) -> Iterator[tuple[int, str]]:
    for pattern in _patterns(choices):
        for match in pattern.finditer(text):
            start, end = match.span("choice")
            bracketed = text[start - 1] in "([{"
            is_article = text[start] in ARTICLES and not bracketed and AFTER_ARTICLE.match(text, end)
            if not is_article:
                yield start, _with_others(text, start, end, choices)


def _with_others(text: str, start: int, end: int, choices: str) -> str:
    """The choice at start..end, with any that is joined to it ("A and C", "A, B or D", up to the end of the clause)."""
    joined = rf"[)\]}}]?\s*(?:,|/|&|and\b|or\b|,\s*and\b|,\s*or\b)\s*[(\[{{]?[{re.escape(choices)}]{END}"
    match = re.compile(rf"(?:{joined})+(?=[)\]}}]*\s*(?:[.,;\n]|$))").match(text, end)
    return text[start : match.end() if match else end]


def _leading_choice(text: str, choices: str, any_case: bool) -> str:
    """The choice that the text is or begins with as a list item does: "C", "(C)", "C. text", "C) text"."""
    cases = choices + choices.lower() if any_case else choices
    choice = rf"[(\[{{\s]*(?P<choice>[{re.escape(cases)}])"
    match = re.match(rf"{choice}(?:[\s)\]}}.]*$|\s*[)\]}}.:](?!\d)|\s*(?:,|/|&|and\b|or\b)|\s+[A-Za-z]{{3,}})", text)
    if match is None:
        return ""
    if not any_case and AFTER_ARTICLE.match(text, match.end("choice")):
        return ""  # a sentence that begins with "A" or "I"
    stated = _with_others(text, *match.span("choice"), cases)
    return stated.upper() if len(stated) == 1 else stated
