r"""Graders: right answers are right and wrong ones wrong on real benchmark rows, in any spelling."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import graders as benchmark
from recipe.amft.tasks.graders import GRADERS, GraderPool, grade
from recipe.amft.tasks.graders.answers import MAX_ANSWER_CHARACTERS, answer_part, beyond_caps, last_box
from recipe.amft.tasks.graders.letters import ground_truth_letter, stated_choice
from recipe.amft.tasks.graders.normalise import exact_number, normalise, same_when_normalised

NUM_WRONG_ROWS = 150  # grading wrong formulas takes seconds; `python -m benchmarks.graders` does all of them


@pytest.fixture(scope="module")
def pool():
    with GraderPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def rows():
    folder = benchmark.data_folder()
    if not folder.is_dir():
        pytest.skip(f"no benchmark rows in {folder}: set AMFT_SHARED_DATA to the folder that has benchmarks/")
    return benchmark.load_rows(folder)


@pytest.mark.parametrize("grader", sorted(GRADERS))
def test_benchmark_answers_are_right_against_themselves(pool, rows, grader):
    r"""All rows, in \boxed{} and inside a sentence; at most 1% exceptions (docs/graders.md names all of them)."""
    cases = benchmark.right_cases(rows, grader)
    found = benchmark.grade_cases(pool, cases, grader)
    rejected = [(row.ground_truth, form) for (row, form, _), right in zip(cases, found, strict=True) if not right]
    assert len(cases) >= 2 * sum(grader in row.graders for row in rows) > 2000
    assert len(rejected) <= 0.01 * len(cases), rejected


@pytest.mark.parametrize("grader", sorted(GRADERS))
def test_answers_of_other_rows_are_wrong(pool, rows, grader):
    """An answer from another row of the same benchmark, whose normalised value differs, is not accepted."""
    asked = random.Random(0).sample([row for row in rows if grader in row.graders], NUM_WRONG_ROWS)
    cases = benchmark.wrong_cases(asked, grader)
    found = benchmark.grade_cases(pool, cases, grader)
    assert len(cases) > 100
    assert [(row.ground_truth, wrong) for (row, wrong, _), right in zip(cases, found, strict=True) if right] == []


@pytest.mark.parametrize(
    ("answer", "ground_truth"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("0.5", r"\frac12"),
        (r"\frac{2}{4}", "$1/2$"),
        ("10,080", r"10,\!080"),
        (r"10\,080", "10080"),
        ("25", "025"),
        ("142", "142.0"),
        ("x = 5", "5"),
        ("5", "x=5"),
        ("90", r"90^\circ"),
        (r"5.4\text{ cents}", "5.4"),
        (r"\$32,348", r"\$32,\!348"),
        ("Evelyn", r"\text{Evelyn}"),
        ("-2, 1", "1,-2"),  # without brackets: a set
        (r"x(1+x)", "x^2+x"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\frac{9}{5}", r"1\frac{4}{5}"),
        (r"4.6 \times 10^{-24}", "4.6e-24"),
        ("62.5%", r"62.5\%"),
        ("62.5", "62.5%"),
        (r"8\%", r"$8 \%$"),
        (r"(3, \tfrac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)"),
        (r"\text{(C)}", "C"),
    ],
)
def test_spellings_of_one_answer_are_right(pool, answer, ground_truth):
    """Notation, order of a set and algebraic form do not matter, to either grader."""
    for grader in ("math_verify", "oat"):
        verdict = pool.grade(rf"So it is $\boxed{{{answer}}}$.", ground_truth, grader)
        assert verdict.correct, (grader, verdict)


@pytest.mark.parametrize(
    ("answer", "ground_truth"),
    [
        ("4.6e-24", "1.325e-27"),  # Math-Verify alone rounds both to 0
        (r"2.88 \times 10^{-19}", "4.6e-24"),
        ("0.0000673", "0.0000672"),
        ("0.33", r"\frac13"),
        ("2, 1", "(1,2)"),  # a tuple has an order
        ("(1,2]", "(1,2)"),
        ("x=5", "y=5"),
        ("x^2", "x^3"),
        ("23", r"2 \cdot 3"),
        ("-7", "7"),
        ("1000", "100"),
        ("p-q", "q-p"),
        ("", "0"),
    ],
)
def test_other_values_are_wrong(pool, answer, ground_truth):
    """Neither grader takes a different value, order, bracket or sign for the answer."""
    for grader in ("math_verify", "oat"):
        assert not pool.grade(rf"So it is $\boxed{{{answer}}}$.", ground_truth, grader).correct, grader


def test_the_last_box_counts(pool):
    r"""Both graders take the last \boxed{}; OAT-style nothing else, Math-Verify also a sentence without a box."""
    twice = "First I found \\boxed{3}.\nBut that was wrong, so \\boxed{4}."
    for grader in ("math_verify", "oat"):
        assert pool.grade(twice, "4", grader).correct
        assert not pool.grade(twice, "3", grader).correct
    sentence = "The final answer is $4$."
    assert pool.grade(sentence, "4", "math_verify").correct
    assert pool.grade(sentence, "4", "oat").reason == "no_answer"


def test_boxes_are_balanced_and_found_in_any_spelling():
    r"""Nested and escaped braces, \fbox, a space before the brace, no brace; an unclosed last box is no box."""
    contents = {
        r"\boxed{\frac{1}{\sqrt{2}}} end": r"\frac{1}{\sqrt{2}}",
        r"\boxed{\{1, 2\}}": r"\{1, 2\}",
        r"\fbox{5} ": "5",
        r"\boxed {6}": "6",
        r"$\boxed 7$": "7",
        r"\boxed{\boxed{8}}": "8",
        r"\boxed{1} \boxed{2": None,
        r"\boxedtext{1}": None,
        "no box": None,
    }
    for text, content in contents.items():
        box = last_box(text)
        assert (box and box[2]) == content, text
        assert box is None or text[box[0]] == "\\"


def test_thinking_must_be_closed_when_required(pool):
    """The answer stands after the last </think>; without the tag, or with a new <think> after it, there is none."""
    right, thought = r"\boxed{4}", r"maybe \boxed{3}"
    cases = {
        f"{thought}</think>{right}": "correct",  # the prompt ended with <think>
        f"<think>{thought}</think>{right}": "correct",
        f"{right}</think>{thought}": "wrong",
        f"a</think>{thought}</think>{right}": "correct",
        right: "no_think",
        f"<think>{right}": "no_think",
        f"a</think>{right}<think>{right}": "no_think",
        f"{right}</think>": "no_answer",
        "": "no_think",
    }
    for response, reason in cases.items():
        for grader in ("math_verify", "oat"):
            assert pool.grade(response, "4", grader, require_think=True).reason == reason, response
    assert pool.grade(f"<think>{thought}", "3").correct  # not required: the whole response is the answer


def test_only_the_tail_of_a_long_answer_is_graded():
    """A response of 10^6 characters is cut to the cap, from its end; the cut comes after the thinking is removed."""
    text, reason = answer_part("x" * 10**6 + "</think>" + "y" * 10**6, require_think=True)
    assert (text, reason) == ("y" * MAX_ANSWER_CHARACTERS, None)


def test_caps():
    """What is too long, deep or large for a parser is named; ordinary answers, also large ones, are not."""
    towers = ["9^{9^{9^{9}}}", "9^9^9^9", "10**10**10", "2^{2^{2^{2^{2}}}}"]
    numbers = ["2^{1000000}", "x^{-999999}", "7" * 301, "12345!", "((9!)!)!!"]
    assert {text: beyond_caps(text) for text in towers + numbers} == dict.fromkeys(towers + numbers, "too_large")
    assert beyond_caps("x+" * 600) == "too_long"
    assert beyond_caps("(" * 25 + ")" * 25) == beyond_caps(r"\frac{1}{" * 25) == "too_deep"
    fine = [
        r"\frac{100!}{2^{50}}",
        "10^{100}",
        "2^{1009}",
        "2^{2^{5}}",
        "x^{n^{2}}",
        "7" * 300,
        "-1^{2},3^{4},5^{6},7^{8}",
    ]
    assert [beyond_caps(text) for text in fine] == [None] * len(fine)


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("ANSWER: C", "C"),
        ("The answer is (C)", "C"),
        ("**Answer:** **C**", "C"),
        (r"The final answer is $\boxed{C}$.", "C"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{c}", "C"),
        (r"\boxed{C. \text{ Planetary days}}", "C"),
        ("The correct option is C because A is too low.", "C"),
        ("The answer is A.\nWait: the answer is C.", "C"),
        ("\\boxed{A}\nNo, the answer must be C", "C"),
        ("The answer is C, A is wrong.", "C"),
        ("Option C is the correct choice; option D is incorrect.", "C"),
        ("so it rotates faster:\nC. Planetary days will become shorter.", "C"),
        ("I think\n(C)", "C"),
        ("A) density\nB) years\nC", "C"),
        ("The answer is A and C.", "A and C"),
        (r"\boxed{A, C}", "A, C"),
        ("The answer is not C.", ""),
        ("The answer is E.", ""),  # not among the choices
        ("The answer is A short day.", ""),  # the article
        ("Answer choices are hard.", ""),
        ("A planet turns.", ""),
        ("CAB", ""),
        ("", ""),
    ],
)
def test_stated_choice(answer, choice):
    """The last statement of a choice wins; articles, refutations and letters outside the choices are none."""
    assert stated_choice(answer, "ABCD") == choice


def test_multiple_choice_with_each_grader(pool):
    """`choices` makes every grader a choice match; OAT-style also sees that a ground truth is one letter A to J."""
    for grader in GRADERS:
        assert pool.grade("ANSWER: C", "C", grader, choices="ABCD").correct
        assert pool.grade("ANSWER: B", "C", grader, choices="ABCD").reason == "wrong"
    assert pool.grade("ANSWER: C", r"\text{(C)}", "oat").correct
    assert pool.grade("The answer is 2.", "2", "letter").correct
    assert pool.grade("The answer is A and C.", "C", "letter").reason == "wrong"
    assert pool.grade(r"\boxed{60}", "C", "letter").reason == "wrong"
    assert ground_truth_letter("(E)") == "E"
    assert ground_truth_letter("AB") == ground_truth_letter("m") == ground_truth_letter("2") == ""


@settings(derandomize=True, deadline=None)
@given(st.fractions(max_denominator=999).filter(lambda value: abs(value) < 10**9))
def test_numbers_keep_their_value_when_normalised(value):
    r"""A fraction written as `\frac{a}{b}`, as `a/b` or as a mixed number is read back exactly."""
    sign, numerator, denominator = "-" if value < 0 else "", abs(value.numerator), value.denominator
    whole, rest = divmod(numerator, denominator)
    spellings = [rf"{sign}\frac{{{numerator}}}{{{denominator}}}", rf" {sign} {numerator} / {denominator} "]
    if whole:
        spellings.append(rf"{sign}{whole}\dfrac{{{rest}}}{{{denominator}}}")
    assert [exact_number(normalise(spelling)) for spelling in spellings] == [Fraction(value)] * len(spellings)


@settings(derandomize=True, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_written_decimals_keep_their_value(digits, places):
    """A decimal with thousands separators, a unit and trailing zeros equals the bare number."""
    value = Fraction(digits, 10**places)
    written = f"{digits / 10**places:,.{places}f}" if abs(digits) < 10**10 else f"{digits:,}"
    value = Fraction(written.replace(",", ""))
    assert exact_number(normalise(rf"${written}0 \text{{ cm}}$" if "." in written else f"{written} cm")) == value


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=300), st.text(max_size=50))
def test_pure_parts_accept_any_text(text, other):
    """Extraction, caps and normalisation never raise, and normalisation finds every text equal to itself."""
    last_box(text), beyond_caps(text), stated_choice(text, "ABCD"), ground_truth_letter(text)
    assert same_when_normalised(normalise(text), normalise(text))
    same_when_normalised(normalise(text), normalise(other))


def test_pure_grade_and_pool_agree(pool):
    """`grade`, called here on trusted texts only, gives the verdict that the pool gives."""
    for response, ground_truth, grader in [
        (r"\boxed{\frac12}", "0.5", "math_verify"),
        (r"\boxed{3}", "0.5", "oat"),
        ("ANSWER: B", "B", "letter"),
        ("no idea", "0.5", "oat"),
    ]:
        assert grade(response, ground_truth, grader) == pool.grade(response, ground_truth, grader)


def test_wrong_arguments_are_named(pool):
    """Unknown grader, empty ground truth and a ground truth outside the choices are the user's to correct."""
    with pytest.raises(ValueError, match="math_verify, oat, letter; got 'sympy'"):
        pool.grade("1", "1", "sympy")
    with pytest.raises(ValueError, match="ground_truth must be a string"):
        pool.grade("1", " ")
    with pytest.raises(ValueError, match="one of the choices 'ABCD'; got 'E'"):
        pool.grade("E", "E", "letter", choices="ABCD")
    with pytest.raises(ValueError, match="num_workers must be 1 or more"):
        GraderPool(0)


def test_large_ground_truth_is_compared_as_a_string(pool):
    """A ground truth beyond the caps is never parsed: equal when written alike, else wrong, at once."""
    for grader in ("math_verify", "oat"):
        assert pool.grade(r"\boxed{ 9^{9^{9^{9}}} }", "9^{9^{9^{9}}}", grader).correct
        assert pool.grade(r"\boxed{9^{9^{9^{8}}}}", "9^{9^{9^{9}}}", grader).reason == "wrong"
