"""General Points: the verifier's verdicts are those of the design's tables, in both modes, whatever the text."""

import json
import time

import pytest

from recipe.amft.tasks.general_points.verifier import verify

HAND = (1, 3, 10, 6)  # A 3 K 6 under face_rule=ten


def as_answer(formula):
    return json.dumps({"formula": formula})


PAPER_TABLE = [
    ("(10*3-6)*1", "correct", 5.0),
    (" ( 10 * 3 - 6 ) * 1 = 24", "correct", 5.0),
    ("1*10+3+6", "wrong_value", -1.0),
    ("6/(10-10+1-1)", "wrong_numbers", -2.0),
    ("10*3-6", "wrong_numbers", -2.0),
    ("10*3-6*1*1", "wrong_numbers", -2.0),
    ("4*6", "wrong_numbers", -2.0),
    ("10*3-6+x", "illegal", -3.0),
    ("10**3-6*1", "illegal", -3.0),
    ("10//3-6*1", "illegal", -3.0),
    ("-6+10*3*1", "illegal", -3.0),
    ("10*3-6.0*1", "illegal", -3.0),
    ("10×3-6*1", "illegal", -3.0),
    ("10*３-6*1", "illegal", -3.0),
    ("10*3-6*①", "illegal", -3.0),
    ("(10*3-6*1", "illegal", -3.0),
    ("10*3-6*1)", "illegal", -3.0),
    ("10*(3)(6)*1", "illegal", -3.0),
    ("1 0*3-6*1", "illegal", -3.0),
    ("10*03-6*1", "illegal", -3.0),
    ("10*3-6*1+", "illegal", -3.0),
    ("10\t*3-6*1", "illegal", -3.0),
    ("10*3-6*1" + "+1" * 200, "illegal", -3.0),
    ("", "illegal", -3.0),
    ("=24", "illegal", -3.0),
]


@pytest.mark.parametrize(("formula", "name", "reward"), PAPER_TABLE)
def test_paper_verdicts_follow_the_table(formula, name, reward):
    """Each row of the design's table: one verdict, its reward, and a reason."""
    verdict = verify(as_answer(formula), HAND, 24)
    assert (verdict.name, verdict.reward) == (name, reward)
    assert verdict.reason


UPSTREAM_TABLE = [
    ("(10*3-6)*1", HAND, "correct", 5.0),
    ("(10*3-6)*1=24", HAND, "correct", 5.0),
    ("10*3-6 *1", HAND, "illegal", -3.0),  # a space is an illegal character
    ("1*10+3+6", HAND, "wrong_value", -1.0),
    ("8/(3-8/3)", (3, 3, 8, 8), "wrong_value", -1.0),  # float division
    ("10*3-6", HAND, "wrong_numbers", -2.0),
    ("10*3-6*1*1", HAND, "wrong_numbers", -2.0),  # 1 is used twice
    ("10*3-7*1", HAND, "wrong_numbers", -4.0),  # 7 is invalid, 6 is missing
    ("-10*3-6*1", HAND, "illegal", -3.0),
    ("10**3-7", HAND, "illegal", -7.0),  # second operator -3, 7 invalid -2, 1 and 6 missing -2
    ("(10)(3-6*1", HAND, "illegal", -3.0),
    ("10*3-6*1)", HAND, "illegal", -3.0),
    ("1*(10*3-6", HAND, "partial", 1.0),
    ("(1*10*3-6", HAND, "wrong_value", -1.0),  # the public solver never brackets the whole formula
    ("10*3-6*1+", HAND, "wrong_value", -1.0),  # a trailing operator is not checked
    ("10*03-6*1", HAND, "wrong_value", -1.0),
    ("3/(1-1)+8", (1, 1, 3, 8), "wrong_value", -1.0),
    ("4*6", HAND, "wrong_numbers", -4.0),  # 4 is on no card, 1, 3 and 10 are left out
    ("10*3-6+x", HAND, "illegal", -3.0),
    ("10//3-6*1", HAND, "illegal", -3.0),
    ("10*3-6.0*1", HAND, "illegal", -3.0),
    ("10×3-6*1", HAND, "illegal", -3.0),
    ("10*３-6*1", HAND, "illegal", -3.0),
    ("10*3-6*①", HAND, "illegal", -3.0),
    ("10*(3)(6)*1", HAND, "illegal", -6.0),  # an opening bracket after a value, and then one closed too many
    ("10*3-6*1" + "+1" * 200, HAND, "illegal", -3.0),  # over-long
    ("", HAND, "wrong_numbers", -2.0),  # no character is illegal; all cards are left out
    ("=24", HAND, "wrong_numbers", -2.0),
]


@pytest.mark.parametrize(("formula", "hand", "name", "reward"), UPSTREAM_TABLE)
def test_upstream_verdicts_add_penalties_up(formula, hand, name, reward):
    """The public code's scoring: additive penalties, float division, and its blind spots."""
    verdict = verify(as_answer(formula), hand, 24, "upstream")
    assert (verdict.name, verdict.reward) == (name, reward)


def test_exact_arithmetic_and_division_by_zero_in_paper_mode():
    """8/(3-8/3) is exactly 24; dividing by zero is a wrong value, not an illegal formula."""
    assert verify(as_answer("8/(3-8/3)"), (3, 3, 8, 8), 24).success
    assert verify(as_answer("3/(1-1)+8"), (1, 1, 3, 8), 24).name == "wrong_value"


def test_a_wrong_right_side_is_right_and_flagged():
    """Only what stands before the first "=" is judged; another number after it is flagged."""
    assert verify(as_answer("10*3-6*1=30"), HAND, 24).right_side_differs
    assert not verify(as_answer("10*3-6*1 = 24"), HAND, 24).right_side_differs
    assert not verify(as_answer("10*3-6*1"), HAND, 24).right_side_differs
    assert verify(as_answer("10*3-6*1=30"), HAND, 24).success


@pytest.mark.parametrize(
    "output",
    [
        '{"cards": ["A", "3", "K", "6"], "number": [1, 3, 10, 6], "formula": "10*3-6*1=24"}',
        "{\"cards\": ['A', '3', 'K', '6'], \"number\": [9, 9, 9, 9], \"formula\": \"10*3-6*1=24\",}",
        'K is 10, {so} 30 - 6.\n```json\n{\n "formula" :\n "10*3-6\\u002a1"\n}\n``` {"formula": "1"}',
        '{"formula": "10*3-6*1", ',
    ],
)
def test_answers_are_found_in_json_in_near_json_and_inside_other_text(output):
    """Valid JSON, the prompt's trailing comma and single quotes, and free text around all read the same."""
    assert verify(output, HAND, 24).success


def test_the_first_of_two_answers_counts():
    """A second, right answer does not repair a first, wrong one; nor does a second, wrong one spoil the first."""
    right, wrong = as_answer("10*3-6*1"), as_answer("10+3+6+1")
    for mode in ("paper", "upstream"):
        assert verify(f"{wrong} {right}", HAND, 24, mode).name == "wrong_value"
        assert verify(f"{right} {wrong}", HAND, 24, mode).success
    assert verify(f'{{"formula": "1+2",}} {right}', HAND, 24).name == "wrong_numbers"


@pytest.mark.parametrize(
    "output", ["", "24", "[]", '{"cards": []}', '{"formula": 24}', '{"formula": null}', '{"formula": ["1+2"]}', "null"]
)
def test_a_missing_or_non_string_formula_is_illegal(output):
    """No formula to judge is -3 in both modes, never an exception."""
    for mode in ("paper", "upstream"):
        verdict = verify(output, HAND, 24, mode)
        assert (verdict.name, verdict.reward) == ("illegal", -3.0)


HOSTILE = {
    "long formula": as_answer("1+" * 500_000 + "1"),
    "long output": "x" * 1_000_000,
    "long digits": as_answer("9" * 100_000),
    "deep brackets": as_answer("(" * 100_000 + "1" + ")" * 100_000),
    "brackets within the length": as_answer("(" * 100 + "1" + ")" * 100),
    "deep JSON": '{"formula": ' * 90_000,
    "deep lists": "[" * 190_000,
    "open string": '{"formula": "' + '\\"' * 90_000,
    "many keys": '"formula" ' * 19_000,
    "huge exponent": as_answer("9**9**9**9"),
    "code": as_answer("__import__('os').system('true')"),
    "surrogate": '{"formula": "\\ud800"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_outputs_are_illegal_and_fast(name):
    """A million characters, deep nesting and huge exponents cost no time and no stack: -3 in paper mode."""
    start = time.process_time()
    verdict = verify(HOSTILE[name], HAND, 24)
    upstream = verify(HOSTILE[name], HAND, 24, "upstream")
    assert time.process_time() - start < 0.5
    assert (verdict.name, verdict.reward) == ("illegal", -3.0)
    assert upstream.reward < 0
    assert len(verdict.reason) < 200
