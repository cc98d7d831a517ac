"""Every source's reader, on records of the form in which the source is published, and on malformed ones."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe.amft.data.prepare import main
from recipe.amft.data.records import open_source, read_records
from recipe.amft.data.rows import BadRow, Problem, RowOptions, build_row, require_target
from recipe.amft.data.sources import SOURCES, is_row, read_gsm8k, read_math, read_row
from recipe.amft.tasks.environment import make_environment

GSM8K = {"question": "Two pies at $3?", "answer": "It is 2*3 = $<<2*3=6>>6.\nSo $<<6*1000=6000>>6000.\n#### 6,000"}
SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "Q?"}


def asked(text):
    return ({"role": "user", "content": text},)


def as_row(question="Q?", truth="1", **more):
    return {"prompt": [SYSTEM, {"role": "user", "content": question}], "reward_model": {"ground_truth": truth}, **more}


RECORDS = [
    ("aime24", {"ID": "2024-I-1", "Problem": "P", "Solution": "S", "Answer": 204}, Problem(asked("P"), "204")),
    ("aime25", {"problem": "P", "answer": "70", "id": "0"}, Problem(asked("P"), "70")),
    ("amc", {"id": 0, "problem": "P", "answer": 142.0, "url": "u"}, Problem(asked("P"), "142")),
    ("minerva", {"question": "P", "answer": "-1./3"}, Problem(asked("P"), "-1./3")),
    (
        "olympiad_bench",
        {"question": "P", "final_answer": ["$2$", "$\\pi$"], "unit": None},
        Problem(asked("P"), "2, \\pi"),
    ),
    (
        "math500",
        {"problem": "P", "solution": "so \\boxed{7}", "answer": "7", "unique_id": "test/algebra/1.json"},
        Problem(
            asked("P"),
            "7",
            "<think>\nso \\boxed{7}\n</think>\n\nThe answer is \\boxed{7}.",
            own_id="test/algebra/1.json",
        ),
    ),
    (
        "arc_c",
        {"id": "M_1", "question": "P", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        Problem(asked("P"), own_id="M_1", choices=("a", "b"), correct=1),
    ),
    (
        "gpqa",
        {"Record ID": "rec", "Question": "P", "Correct Answer": "r\n"}
        | {f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)},
        Problem(asked("P"), own_id="rec", choices=("r", "w1", "w2", "w3"), has_order=False),
    ),
    (
        "mmlu_pro",
        {"question_id": 70, "question": "P", "options": ["a", "b", "c", "N/A"], "answer": "C", "answer_index": 2},
        Problem(asked("P"), own_id="70", choices=("a", "b", "c"), correct=2),
    ),
]


@pytest.mark.parametrize(("name", "values", "problem"), RECORDS, ids=[name for name, _, _ in RECORDS])
def test_published_records_are_read(name, values, problem):
    """Question, answer, options and id come from the columns that the source has; the record has what it must."""
    assert SOURCES[name].read(values, "think") == problem
    columns = {column.casefold() for column in values}
    assert all(any(choice.casefold() in columns for choice in names) for names in SOURCES[name].columns)
    build_row(problem, name, "test", RowOptions())


@pytest.mark.parametrize(("name", "values", "problem"), RECORDS, ids=[name for name, _, _ in RECORDS])
def test_the_command_turns_published_files_into_episodes(name, values, problem, tmp_path):
    """`prepare NAME` on a file of such records: a test row whose right answer is rewarded, and no other."""
    (tmp_path / "file.jsonl").write_text(json.dumps(values) + "\n")
    assert main([name, "--source", str(tmp_path / "file.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "test.parquet"]
    (row,) = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    info, truth = row["extra_info"], row["reward_model"]["ground_truth"]
    assert problem.choices or truth == problem.answer
    for answer, reward in ((truth, 1.0), ("B" if truth == "A" else "A", 0.0)):
        environment = make_environment(info["env_id"], json.loads(info["env_kwargs"]))
        observation, _ = environment.reset(info["seed"], json.loads(info["options"]))
        assert observation["messages"] == row["prompt"]
        assert environment.step(f"Hm.</think>\\boxed{{{answer}}}")[1] == reward


@pytest.mark.parametrize("files", [["train.jsonl", "test.jsonl"], ["algebra/train.jsonl", "geometry/test.jsonl"]])
def test_the_command_reads_math_whole_or_by_subject(files, tmp_path):
    """MATH as one data set or a folder for each subject; the test split's questions leave training."""
    worked = [
        {"problem": f"Find {n}.", "solution": f"It is \\boxed{{{n}}}.", "level": "Level 1", "type": "Algebra"}
        for n in range(4)
    ]
    for file, records in zip(files, (worked, worked[3:]), strict=True):
        (tmp_path / "MATH" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "MATH" / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["math", "--source", str(tmp_path / "MATH"), "--out", str(tmp_path / "out")]) == 0
    rows = {split: pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist() for split in ("train", "test")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 3, "test": 1}
    assert rows["train"][0]["target"][0]["content"].endswith("</think>\n\nThe answer is \\boxed{0}.")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["leaks"]["train"]["count"] == 1


def test_gsm8k_solutions_lose_their_annotations():
    """The demonstration is the worked solution without <<...>>, its boxed answer without thousands separators."""
    solution = "It is 2*3 = $6.\nSo $6000."
    think, plain = (read_gsm8k(GSM8K, style) for style in ("think", "plain"))
    assert think.answer == plain.answer == "6000"
    assert think.target == f"<think>\n{solution}\n</think>\n\nThe answer is \\boxed{{6000}}."
    assert plain.target == f"{solution}\nThe answer is \\boxed{{6000}}."


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so \\boxed{5}, no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\left\\{ 1, \\frac{2}{3} \\right.}", "\\left\\{ 1, \\frac{2}{3} \\right."),
        ("\\fbox{x^{2^{3}}}", "x^{2^{3}}"),
        ("\\boxed 5$", "5"),
    ],
)
def test_the_boxed_answer_has_balanced_braces(solution, answer):
    """MATH without an answer column: the last box, whatever is nested in it."""
    assert read_math({"problem": "P", "solution": solution}, "plain").answer == answer


@pytest.mark.parametrize(
    ("read", "values", "kind"),
    [
        (read_gsm8k, {"question": "Q", "answer": "no mark 5"}, "no_answer"),
        (read_gsm8k, {"question": "Q", "answer": "<<1+1=2\n#### 2"}, "bad_annotation"),
        (read_gsm8k, {"question": "Q", "answer": None}, "no_answer"),
        (read_math, {"prompt": [{"role": "user", "content": "Q"}], "solution": "\\boxed{1}"}, "no_question"),
        (read_math, {"problem": "P", "solution": "\\boxed{\\frac{1}{2}"}, "no_answer"),
        (SOURCES["arc_c"].read, {"question": "Q", "choices": ["a"], "answerKey": "A"}, "bad_choices"),
        (SOURCES["mmlu_pro"].read, {"question": "Q", "options": "a, b", "answer": "A"}, "bad_choices"),
    ],
)
def test_malformed_records_are_bad_rows(read, values, kind):
    """A record that cannot be read is named by kind, not guessed at."""
    with pytest.raises(BadRow) as reason:
        read(values, "plain")
    assert reason.value.kind == kind


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (Problem(asked("  "), "1"), "no_question"),
        (Problem((), "1"), "no_question"),
        (Problem((*asked("Q"), {"role": "assistant", "content": "A"}), "1"), "no_question"),
        (Problem(asked("Q"), " "), "no_answer"),
        (Problem(asked("Q"), "9" * 3000), "no_answer"),
        (Problem(asked("Q"), choices=("a",)), "bad_choices"),
        (Problem(asked("Q"), choices=("a", " ")), "bad_choices"),
        (Problem(asked("Q"), choices=tuple("abcdefghijk")), "bad_choices"),
        (Problem(asked("Q"), choices=("a", "b"), correct=-1), "no_answer"),
    ],
)
def test_problems_that_make_no_row(problem, kind):
    """Nothing empty, unanswerable or beyond the letters becomes a row."""
    with pytest.raises(BadRow) as reason:
        build_row(problem, "s", "train", RowOptions())
    assert reason.value.kind == kind


def test_rows_are_read_back_with_their_demonstration():
    """A row in the OpenR1 schema gives its own system message, question, answer and target."""
    values = as_row(target=[{"role": "assistant", "content": "<think>\nt</think>1"}])
    assert is_row(values)
    assert read_row(values, multiple_choice=False) == Problem(asked("Q?"), "1", "<think>\nt</think>1", "S", correct=0)
    row = build_row(read_row(values, False), "openr1", "train", RowOptions())
    assert row["prompt"] == [SYSTEM, USER]
    assert json.loads(row["extra_info"]["options"]) == {"prompt": [SYSTEM, USER], "ground_truth": "1"}
    require_target(row, requires_think=True)


def test_a_target_must_be_there_and_close_its_thinking():
    """A demonstration without the tags that its reward requires would teach what scores 0."""
    for target, requires_think, kind in (("", False, "no_target"), ("plain", True, "no_think_tag")):
        row = build_row(Problem(asked("Q"), "1", target), "openr1", "train", RowOptions())
        with pytest.raises(BadRow) as reason:
            require_target(row, requires_think)
        assert reason.value.kind == kind
    require_target(build_row(Problem(asked("Q"), "1", "plain"), "openr1", "train", RowOptions()), requires_think=False)


@pytest.mark.parametrize("labels", ["AB", "12"])
def test_labels_of_options_become_letters(labels):
    """Options that a benchmark numbers get letters, and so does the answer."""
    values = as_row(f"Which?\n\n{labels[0]}) x\n{labels[1]}) y\n", labels[1])
    row = build_row(read_row(values, multiple_choice=True), "arc_c", "test", RowOptions(shuffle_choices=False))
    assert row["prompt"][-1]["content"] == "Which?\n\nA) x\nB) y\n"
    assert row["reward_model"]["ground_truth"] == "B"
    assert json.loads(row["extra_info"]["env_kwargs"])["grader"] == "letter"


def test_system_message_by_option():
    """own: the source's, else the reasoning prompt for style think and none for plain; think, none, or a text."""

    def system(option, style, own):
        row = build_row(Problem(asked("Q"), "1", system=own), "s", "train", RowOptions(system=option, style=style))
        return [message["content"][:9] for message in row["prompt"] if message["role"] == "system"]

    assert system("own", "think", "S") == system("own", "plain", "S") == ["S"]
    assert system("own", "think", None) == system("think", "plain", "S") == ["Your task"]
    assert system("own", "plain", None) == system("none", "think", "S") == []
    assert system("Be brief.", "think", "S") == ["Be brief."]


def test_files_of_every_kind_hold_the_same_records(tmp_path):
    """jsonl, json, csv and parquet; broken lines are named by their number."""
    rows = [{"question": 'a, "b"\nc', "answer": "1"}, {"question": "ä", "answer": "2"}]
    (tmp_path / "r.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "r.json").write_text(json.dumps(rows))
    (tmp_path / "r.csv").write_text('question,answer\n"a, ""b""\nc",1\nä,2\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for suffix in ("jsonl", "json", "csv", "parquet"):
        assert [values for _, values in read_records(tmp_path / f"r.{suffix}")] == rows, suffix
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a": \n[1]\n')
    places = dict(read_records(tmp_path / "broken.jsonl"))
    assert places["broken.jsonl:1"] == {"a": 1}
    assert all(isinstance(places[f"broken.jsonl:{line}"], BadRow) for line in (2, 3))
    for name, text in (("x.json", "{}"), ("y.json", "["), ("z.parquet", "no")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            list(read_records(tmp_path / name))


def test_splits_of_a_folder_are_found_by_name(tmp_path):
    """train.jsonl, train-00000-of-00002.parquet, also one folder down; two versions side by side are refused."""
    splits = {"train": "train", "test": "test"}
    (tmp_path / "main").mkdir()
    for name in ("main/train-00000-of-00002.jsonl", "main/train-00001-of-00002.jsonl", "main/tests.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n')
    opened = open_source(str(tmp_path), splits, "", "")
    assert list(opened) == ["train"]
    assert len(list(opened["train"])) == 2
    (tmp_path / "socratic").mkdir()
    (tmp_path / "socratic" / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"several folders \(main, socratic\)"):
        open_source(str(tmp_path), splits, "", "")
    assert len(list(open_source(str(tmp_path), splits, "", "", merge_folders=True)["train"])) == 3


def test_hub_data_sets_are_read_through_datasets(tmp_path, monkeypatch):
    """`hub:owner/name`: splits and rows come from the `datasets` package (to which a folder is a repository too)."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"question": split, "choices": {"text": ["a"]}}) + "\n")
    monkeypatch.chdir(tmp_path)
    opened = open_source("hub:owner/name", {"test": "test", "validation": "dev"}, "", "")
    assert list(opened) == ["test"]
    assert [values for _, values in opened["test"]] == [{"question": "test", "choices": {"text": ["a"]}}]
    assert opened["test"].facts[0]["hub"] == "owner/name"
    with pytest.raises(ValueError, match="has the splits train, test, none of dev"):
        open_source("hub:owner/name", {"validation": "dev"}, "", "")
