r"""Where the answer of a response stands: after the thinking part, in the last \boxed{}; and what is too much to parse.

Everything here is linear in the length of the text and parses no mathematics, so that it may run in any process.
"""

import math
import re

from recipe.amft.tasks.graders.verdicts import Reason

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
MAX_ANSWER_CHARACTERS = 4000  # of the answer part, from its end
MAX_EXPRESSION_CHARACTERS = 1000
MAX_DEPTH = 20  # brackets in brackets: the parser takes seconds for 30; the deepest benchmark answer has 5
MAX_DIGITS = 300  # of one integer
MAX_EXPONENT = 10**5
MAX_FACTORIAL_DIGITS = 4  # 9999! is parsed, 10000! is not
MAX_STACKED_EXPONENTS = 3  # a^b^c^d with integers b, c, d

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
ONE_TOKEN = re.compile(r"(?:\\[A-Za-z]+|[^\s$\\{}.,;])+")
DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
POWER = r"(?:\^|\*\*)[\s{(+-]*"
EXPONENT = re.compile(POWER + r"(\d+)")
STACKED_PAIR = re.compile(rf"{POWER}(\d+)[\s}})]*(?={POWER}(\d+))")
STACKED = re.compile(rf"(?:{POWER}\d+[\s}})]*){{{MAX_STACKED_EXPONENTS + 1},}}")
FACTORIAL = re.compile(rf"\d{{{MAX_FACTORIAL_DIGITS + 1},}}[\s)}}]*!|![\s)}}]*![\s)}}]*!")


def answer_part(response: str, require_think: bool) -> tuple[str, Reason | None]:
    """The text to grade and, when there is none, why: the last MAX_ANSWER_CHARACTERS of the response or of its answer.

    With `require_think` the answer is what follows the last `</think>`. The opening tag may be missing (the prompt may
    end with it); one that is opened after the last `</think>` means that the response ends while thinking.
    """
    if not require_think:
        return response[-MAX_ANSWER_CHARACTERS:], None
    _, closed, answer = response.rpartition(THINK_CLOSE)
    if not closed or THINK_OPEN in answer:
        return "", "no_think"
    return answer[-MAX_ANSWER_CHARACTERS:], None


def last_box(text: str) -> tuple[int, int, str] | None:
    r"""Start, end and content of the last \boxed{...} or \fbox{...}; None without one or if it is not closed.

    `\boxed 5`, without braces, holds the token up to the next space, `$`, brace or punctuation mark.
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    start, inside = boxes[-1].span()
    if not text.startswith("{", inside):
        token = ONE_TOKEN.match(text, inside)
        return (start, token.end(), token.group()) if token else None
    end = _closing_brace(text, inside)
    return None if end is None else (start, end + 1, text[inside + 1 : end].strip())


def _closing_brace(text: str, opening: int) -> int | None:
    depth, position = 0, opening
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # an escaped character: \{ and \} do not count
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def beyond_caps(expression: str) -> Reason | None:
    """Why an expression is not given to a parser, or None; what only takes long to compute is left to the clock."""
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        return "too_long"
    if _depth(expression) > MAX_DEPTH:
        return "too_deep"
    return "too_large" if _too_large(expression) else None


def _depth(expression: str) -> int:
    depth = deepest = 0
    for character in expression:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth = max(0, depth - 1)
    return deepest


def _too_large(expression: str) -> bool:
    if DIGITS.search(expression) or STACKED.search(expression) or FACTORIAL.search(expression):
        return True
    longest = len(str(MAX_EXPONENT))
    for match in EXPONENT.finditer(expression):
        digits = match.group(1).lstrip("0")
        if len(digits) > longest or int(digits or 0) > MAX_EXPONENT:
            return True
    for match in STACKED_PAIR.finditer(expression):  # both have passed the check above
        base, power = int(match.group(1)), int(match.group(2))
        if base > 1 and power * math.log(base) > math.log(MAX_EXPONENT):
            return True
    return False
