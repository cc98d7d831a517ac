r"""One spelling for answers that differ only in writing: `\dfrac12` and `\frac{1}{2}`, `10,\!080` and `10080`."""

import re
from fractions import Fraction

MAX_NUMBER_CHARACTERS = 60
MAX_POWER_OF_TEN = 400

CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "°": r"^\circ ", "∞": r"\infty ", "π": r"\pi ",
     "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "±": r"\pm ", "∈": r"\in ", "\u00a0": " ", "\t": " ", "\n": " "}
)  # fmt: skip
WRAPPER = r"\\(?:text|mbox|mathrm|textrm|textbf|textit|mathbf|mathsf|mathit|boldsymbol|operatorname)\s*"
UNIT_WORDS = (
    r"(?:square\s+|cubic\s+|sq\.?\s+)?(?:degrees?|radians?|percent|units?|cm|mm|km|kg|mph|ft|inch(?:es)?|feet|foot|yards?|"
    r"miles?|(?:centi|milli|kilo)?met(?:er|re)s?|(?:milli)?lit(?:er|re)s?|(?:kilo)?grams?|pounds?|ounces?|seconds?|minutes?|"
    r"hours?|days?|weeks?|months?|years?|cents?|dollars?|euros?)"
)
SEPARATOR = r"(?<=\d),\s*\\!\s*(?=\d{3})|(?<=\d)\{,\}(?=\d{3})|(?<=\d)\\[,;: ](?=\d{3})"  # of thousands, in LaTeX
PERCENT = r"(?<=[\d})])\s*\\?%"
# In this order. The first group works on the text with its spaces, the second without.
SPACED = [
    (r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr)(?![A-Za-z])\s*\.?", ""),
    (SEPARATOR, ""),
    (r"\\(?:[!,;:> ]|q?quad(?![A-Za-z])|displaystyle(?![A-Za-z]))|~", " "),
    (r"\\(?:d|t|c)frac", r"\\frac"),
    (PERCENT, ""),
    (r"\\?\$|\\[()\[\]]", ""),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])", ""),
    (rf"(?<=[\d}})])\s*{WRAPPER}\{{[^{{}}\d]*\}}\s*(?:\^\s*\{{?\d\}}?)?\s*\.?\s*$", ""),  # a unit after a number
    (WRAPPER + r"\{([^{}]*)\}", r" \1 "),
    (WRAPPER + r"\{([^{}]*)\}", r" \1 "),  # wrappers in wrappers
    (rf"(?<=[\d}})])\s*{UNIT_WORDS}\s*(?:\^\s*\{{?\d\}}?)?\s*\.?\s*$", ""),
    (r"\\frac\s*([0-9A-Za-z])", r"\\frac{\1}"),
    (r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),
    (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"([_^])\s*(\d+|[A-Za-z])", r"\1{\2}"),
    (r"\\(?:cdot|times)(?![A-Za-z])|\*", "*"),
    (r"\\(?=(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])|(?:ln|log|exp|max|min)(?![A-Za-z]))", ""),
    (r"\\(?:le|leq|leqslant)(?![A-Za-z])", r"\\le "),
    (r"\\(?:ge|geq|geqslant)(?![A-Za-z])", r"\\ge "),
    (r"\\(?:lbrace|rbrace)(?![A-Za-z])", lambda match: "\\{" if match.group() == "\\lbrace" else "\\}"),
]
UNSPACED = [
    (r"[.,;:]+$", ""),
    (r"(?<!\d)\*|\*(?!\d)", ""),
    (r"(?<=[(,\[])\+(?=[\d\\])|^\+", ""),
    (r"(?<!\d)\.(?=\d)", "0."),
    (r"(?<![\d.])0+(?=\d)", ""),
    (r"(?<=\d)(\.\d*?)0+(?!\d)", r"\1"),
    (r"(?<=\d)\.(?!\d)", ""),
]
SPACED_RULES = [(re.compile(pattern), replacement) for pattern, replacement in SPACED]
UNSPACED_RULES = [(re.compile(pattern), replacement) for pattern, replacement in UNSPACED]
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
LEFT_SIDE = re.compile(r"((?:[A-Za-z]|\\[A-Za-z]+)(?:_\{\w+\})?(?:\([a-z](?:,[a-z])*\))?)(?:=|\\in(?![A-Za-z]))(?=.)")
SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)(?:[eE]([+-]?\d+)|\*10\^\{?([+-]?\d+)\}?)")
QUOTIENT = re.compile(r"([+-]?)(\d*)(?:\\frac\{([+-]?\d+)\}\{(\d+)\}|(?<!\d)(\d+)/(\d+))")
DECIMAL = re.compile(r"[+-]?\d+(?:\.\d+)?")


def normalise(text: str) -> str:
    """The text without spaces, markup, units and thousands separators; numbers, fractions and scripts in one form."""
    text = text.translate(CHARACTERS).strip()
    for pattern, replacement in SPACED_RULES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", "", text)
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    for pattern, replacement in UNSPACED_RULES:
        text = pattern.sub(replacement, text)
    return text.casefold() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


def same_when_normalised(left: str, right: str) -> bool:
    """Whether two normalised answers are equal: as strings, as exact numbers, or element by element as lists."""
    left, right = _without_left_side(left, right)
    if left == right:
        return True
    left_value, right_value = exact_number(left), exact_number(right)
    if left_value is not None and right_value is not None:
        return left_value == right_value
    left_items, right_items = list_items(left), list_items(right)
    return len(left_items) == len(right_items) > 1 and all(
        same_when_normalised(*pair) for pair in zip(left_items, right_items, strict=True)
    )


def exact_number(text: str) -> Fraction | None:
    r"""The value of a normalised integer, decimal, fraction, mixed number, `1.5e3` or `1.5*10^{3}`, else None."""
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    if DECIMAL.fullmatch(text):
        return Fraction(text)
    if match := SCIENTIFIC.fullmatch(text):
        power = int(match.group(2) or match.group(3))
        return Fraction(match.group(1)) * Fraction(10) ** power if abs(power) <= MAX_POWER_OF_TEN else None
    if match := QUOTIENT.fullmatch(text):
        sign, whole = match.group(1), int(match.group(2) or 0)
        numerator, denominator = int(match.group(3) or match.group(5)), int(match.group(4) or match.group(6))
        if denominator == 0 or (whole and numerator < 0):
            return None
        value = whole + Fraction(numerator, denominator)
        return -value if sign == "-" else value
    return None


def list_items(text: str) -> list[str]:
    """The items between the commas outside brackets, each list bracket a further item, so that (1,2) is not [1,2]."""
    brackets: list[str] = []
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _encloses(text):
        brackets, text = [text[0], text[-1]], text[1:-1]
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            items.append(text[start:position])
            start = position + 1
    items.append(text[start:])
    return brackets + items


def _encloses(text: str) -> bool:
    """Whether the first bracket closes at the last character and not before: true for (1,2), false for (1,2),(3,4)."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position == len(text) - 1
    return False


def _without_left_side(left: str, right: str) -> tuple[str, str]:
    r"""Drops `x=` or `x\in` where only one of the answers has it: x=5 and 5 are the same, x=5 and y=5 are not."""
    left_match, right_match = _left_side(left), _left_side(right)
    if left_match and not right_match:
        return left[left_match.end() :], right
    if right_match and not left_match:
        return left, right[right_match.end() :]
    return left, right


def _left_side(text: str) -> re.Match[str] | None:
    return LEFT_SIDE.match(text) if text.count("=") <= 1 else None
