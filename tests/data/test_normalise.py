"""Which prompts are the same, lettered options, and splits that share no prompt."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.amft.data.choices import LETTERS, parse_choices, render_choices, shuffled
from recipe.amft.data.files import normalised
from recipe.amft.data.hygiene import draw, keys_of_file, without_duplicates, without_leaks
from recipe.amft.data.normalise import normalised_text, prompt_key
from recipe.amft.data.rows import Problem, RowOptions, build_row

TEXT = st.text(st.sampled_from("abXY019 +-*/=().,$\\{}!'?\n"), max_size=40)
OPTION = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


def row(question: str, answer: str = "1", source: str = "s"):
    return build_row(Problem(({"role": "user", "content": question},), answer), source, "train", RowOptions())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find x.", "find  X"),
        ("Find the value of $x+1$.", "Find the value of \\( x + 1 \\)"),
        ("It costs $1,000.50 now!", "it costs 1000.50 now"),
        ("$1{,}000$ and $2\\,500$", "1000 and 2500"),
        ("\\left( \\dfrac{1}{2} \\right)", "(\\frac{1}{2})"),
        ("Alice’s “well-known” dog", "alice's well known dog"),
        ("$x \\leq 3$, \\text{ where } y", "x ≤ 3 where y"),
        ("a − b", "a - b"),
        ("100\\%", "100%"),
        ("It costs \\$5", "it costs $5"),
    ],
)
def test_typesetting_does_not_count(one, other):
    """Case, spacing, punctuation and LaTeX spacing do not make another prompt."""
    assert normalised_text(one) == normalised_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x + 1", "x - 1"),
        ("3.5", "35"),
        ("Find 5!", "Find 5"),
        ("f(x)", "f'(x)"),
        ("x^2", "x_2"),
        ("(a b)", "a b"),
        ("\\alpha", "\\beta"),
        ("12 3", "1 23"),
        ("x < y", "x > y"),
        ("\\sqrt{2}", "2"),
        ("Is n even", "Is n odd"),
    ],
)
def test_mathematics_counts(one, other):
    """What changes the problem changes the text."""
    assert normalised_text(one) != normalised_text(other)


@given(st.lists(TEXT.map(str.strip).filter(bool), max_size=5), st.sampled_from(["  ", "\n", " \t "]))
def test_spacing_between_words_never_counts(words, space):
    """Any white space between the same words is the same."""
    assert normalised_text(space.join(words)) == normalised_text(" ".join(words))


@given(st.text(max_size=200))
def test_any_text_has_a_normal_form(text):
    """No input raises, and the result has single spaces only."""
    normal = normalised_text(text)
    assert "  " not in normal
    assert normal == normal.strip()


def test_system_message_and_order_of_options_do_not_count():
    """A prompt is its question with its set of options."""
    one = render_choices("Which?", ["red", "green", "blue"])
    other = render_choices("Which?", ["blue", "red", "green"])
    less = render_choices("Which?", ["blue", "red", "black"])
    keys = [prompt_key([{"role": "user", "content": text}]) for text in (one, other, less)]
    assert keys[0] == keys[1] != keys[2]
    assert prompt_key([{"role": "system", "content": "s"}, {"role": "user", "content": one}]) == keys[0]


@given(st.text("abc ?\n", min_size=1).map(str.strip).filter(bool), st.lists(OPTION, min_size=2, max_size=10))
def test_options_survive_writing_and_reading(stem, options):
    """`parse_choices` takes apart what `render_choices` has put together."""
    assert parse_choices(render_choices(stem, options)) == (stem, tuple(options))


def test_text_without_options_is_left_alone():
    """Lines that are not a sequence of labels from A or 1 are part of the question."""
    for text in ("What?", "A) one", "B) one\nC) two", "A) one\nC) two", "1) a\nB) b"):
        assert parse_choices(text) is None


@given(st.lists(OPTION, min_size=2, max_size=10, unique=True), st.integers(0, 9), st.integers(0, 99), st.booleans())
def test_shuffling_keeps_the_right_option(options, correct, seed, has_order):
    """The right option's text is found under the returned position, and nothing is lost."""
    correct %= len(options)
    texts, position = shuffled(options, correct, random.Random(seed), has_order)
    assert texts[position] == options[correct]
    assert sorted(texts) == sorted(options)


def test_options_that_speak_of_others_keep_their_sense():
    """ "All of the above" stays under the others; a row with "Both A and B" keeps its order."""
    above = ("x", "All of the above", "y", "z")
    letters = ("x", "y", "Both A and B", "z")
    for seed in range(20):
        rng = random.Random(seed)
        assert shuffled(above, 1, rng, has_order=True) == (above, 1)
        assert shuffled(letters, 0, rng, has_order=True) == (letters, 0)
        texts, position = shuffled(above, 1, rng, has_order=False)
        assert texts[3] == "All of the above"
        assert position == 3
    places = {shuffled(("x", "y", "z"), 0, random.Random(seed), True)[1] for seed in range(20)}
    assert places == {0, 1, 2}


def test_letters_reach_j():
    """Ten options have the letters A to J, in one order per seed and row."""
    problem = Problem(({"role": "user", "content": "Which?"},), choices=tuple("abcdefghij"), correct=9)
    rows = [build_row(problem, "s", "test", RowOptions(seed=seed)) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert rows[0]["extra_info"]["id"] == rows[2]["extra_info"]["id"]
    for made in rows:
        stem, options = parse_choices(made["prompt"][-1]["content"])
        assert options[LETTERS.index(made["reward_model"]["ground_truth"])] == "j"
        assert '"choices": "ABCDEFGHIJ"' in made["extra_info"]["options"]
        assert stem == "Which?"


def test_duplicates_keep_the_first_and_name_disagreement():
    """One row per prompt and source; a repeat with another answer is named by the id of the row that stays."""
    rows = [row("Find x", "1"), row("find  x.", "1"), row("Find x", "2"), row("Find x", "1", "other"), row("Find y")]
    kept, found = without_duplicates(rows)
    assert kept == [rows[0], rows[3], rows[4]]
    assert found.by_source == {"s": 2}
    assert found.other_answer == [rows[0]["extra_info"]["id"]]


def test_leaks_are_dropped_and_say_where_they_are():
    """A prompt that is elsewhere goes, whatever its spelling; the rest stays in order."""
    rows = [row("One plus two?"), row("Three"), row("FOUR!")]
    kept, leaks = without_leaks(rows, {"test": {"one plus two"}, "file": {"one plus two", "four"}})
    assert kept == [rows[1]]
    assert [(leak.row_id, leak.also_in) for leak in leaks] == [
        (rows[0]["extra_info"]["id"], "test, file"),
        (rows[2]["extra_info"]["id"], "file"),
    ]


def test_draw_does_not_depend_on_neighbours():
    """Which rows are drawn is decided row by row: other rows and their order change nothing but the cut."""
    rows = [row(f"Question {number}") for number in range(60)]
    chosen, rest = draw(rows, 20, seed=0)
    assert len(chosen) == 20
    assert sorted(map(id, chosen + rest)) == sorted(map(id, rows))
    backwards, _ = draw(rows[::-1], 20, seed=0)
    assert backwards[::-1] == chosen
    fewer, _ = draw([item for item in rows if item not in chosen[:5]], 15, seed=0)
    assert fewer == chosen[5:]
    assert draw(rows, 20, seed=1)[0] != chosen


def test_files_to_compare_with_may_be_rows_or_records(tmp_path):
    """`--hygiene-against` reads prompts of prepared rows and questions of raw records; nothing to read is an error."""
    (tmp_path / "raw.jsonl").write_text('{"Problem": "Find X."}\n{"question": "y"}\n')
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Y"}]}\n'
    )
    (tmp_path / "none.jsonl").write_text('{"text": "z"}\n')
    assert keys_of_file(tmp_path / "raw.jsonl")[0] == {"find x", "y"}
    assert keys_of_file(tmp_path / "rows.jsonl")[0] == {"y"}
    with pytest.raises(ValueError, match=r"none.jsonl: row none.jsonl:1 has no .*columns: text"):
        keys_of_file(tmp_path / "none.jsonl")


def test_normalised_prompts():
    """Case and spacing do not make another prompt; words do."""
    assert normalised([{"content": "What is\n 1+1?"}]) == normalised([{"content": "what IS 1+1? "}])
    assert normalised([{"content": "1+1"}]) != normalised([{"content": "1+2"}])
