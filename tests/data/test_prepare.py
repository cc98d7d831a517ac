"""The preparation command: seeded leaks, broken rows, lengths, what it writes and what it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from recipe.amft.config import from_mapping
from recipe.amft.data import prepare, prepare_model
from recipe.amft.data.demonstrations import DemonstrationTokenizer
from recipe.amft.data.prepare import main, make, options_from
from recipe.amft.data.row_checks import Lengths
from recipe.amft.data.rows import SPLITS, THINK_SYSTEM
from recipe.amft.data.tiny_model import make_tokenizer
from recipe.amft.main import compose

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("--train", "1", "--validation", "1", "--test", "1")
NO_SIZES = ("--train", "0", "--validation", "0", "--test", "0")
DOCUMENTATION = ROOT / "docs" / "data.md"
TEMPLATE = ROOT / "recipe/amft/data/templates/qwen2_5_math_think.jinja"


def rows_of(folder, split):
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def gsm8k(question, answer=6):
    return {"question": question, "answer": f"Count.\n#### {answer}"}


def openr1(question, truth, target):
    messages = [{"role": "system", "content": THINK_SYSTEM}, {"role": "user", "content": question}]
    answer = [{"role": "assistant", "content": target}] if target else []
    reward = {"style": "rule", "ground_truth": truth}
    return {"data_source": "", "prompt": messages, "target": answer, "ability": "math", "reward_model": reward}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def small(tmp_path):
    """Twelve training and four test questions in GSM8K's form."""
    folder = tmp_path / "small"
    write_lines(folder / "train.jsonl", [gsm8k(f"How many are {number} pies?") for number in range(12)])
    write_lines(folder / "test.jsonl", [gsm8k(f"How many are {number} cakes?") for number in range(4)])
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


# ---- hygiene, order, bad rows ----------------------------------------------------------------------------------------


def test_seeded_leaks_are_dropped_and_listed(small, tmp_path):
    """Test, validation and foreign evaluation prompts, however they are spelled, do not stay in training."""
    lines = [gsm8k(f"Are there {number} pies?") for number in range(5)]
    spelled = [gsm8k("how many are 2  CAKES"), gsm8k("Is $x+1$ prime?"), gsm8k("Extra one?")]
    write_lines(small / "train.jsonl", lines + spelled)
    write_lines(small / "validation.jsonl", [gsm8k("is \\( x + 1 \\) prime"), gsm8k("How many are 3 cakes")])
    foreign = write_lines(tmp_path / "foreign.jsonl", [{"problem": "EXTRA one!"}])
    arguments = ("gsm8k", "--source", small, "--no-check-targets", "--hygiene-against", foreign)
    assert run(*arguments, "--out", tmp_path / "out") == 0
    assert [row["prompt"][1]["content"] for row in rows_of(tmp_path / "out", "train")] == [
        line["question"] for line in lines
    ]
    leaks = report_of(tmp_path / "out")["leaks"]
    assert [leak["also_in"] for leak in leaks["train"]["rows"]] == ["test", "validation", str(foreign)]
    assert [leak["also_in"] for leak in leaks["validation"]["rows"]] == ["test"]
    assert report_of(tmp_path / "out")["hygiene_against"][0]["prompts"] == 1


def test_the_same_command_writes_the_same_bytes(small, tmp_path):
    """Splits, ids, order and report depend on the source and the options only."""
    arguments = ("gsm8k", "--source", small, "--validation", 3, "--no-check-targets")
    for name in ("one", "two"):
        assert run(*arguments, "--out", tmp_path / name) == 0
    for name in ("train.parquet", "validation.parquet", "test.parquet", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert run(*arguments, "--out", tmp_path / "three", "--seed", 1) == 0
    assert rows_of(tmp_path / "one", "validation") != rows_of(tmp_path / "three", "validation")


def test_bad_rows_are_refused_or_dropped_and_named(tmp_path, capsys):
    """Unreadable lines, missing answers, rejected or untagged targets: an error with places, or counted."""
    right = openr1("One plus one?", "2", "<think>\nadd\n</think>\n\\boxed{2}")
    rows = [
        right,
        openr1("One plus two?", "3", "<think>\nadd\n</think>\n\\boxed{4}"),
        openr1("One plus three?", "4", "The answer is \\boxed{4}"),
        openr1("One plus four?", "5", ""),
        openr1("One plus five?", " ", "<think>\nadd\n</think>\n\\boxed{6}"),
        openr1("", "5", "<think>\nadd\n</think>\n\\boxed{5}"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    arguments = ("openr1", "--source", tmp_path / "rows.parquet", "--out", tmp_path / "out")
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    for part in ("4 of 6 rows", "no_target 1 (rows.parquet:3", "no_think_tag 1", "no_answer 1", "--on-bad-row drop"):
        assert part in message
    assert not (tmp_path / "out").exists()
    assert run(*arguments, "--on-bad-row", "drop") == 0
    assert [row["prompt"] for row in rows_of(tmp_path / "out", "train")] == [right["prompt"]]
    bad = report_of(tmp_path / "out")["bad_rows"]
    kinds = {"no_answer", "no_question", "no_target", "no_think_tag", "rejected_target"}
    assert {kind: found["count"] for kind, found in bad.items()} == dict.fromkeys(kinds, 1)
    assert "read '4', ground truth '3'" in bad["rejected_target"]["rows"][0]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"question": "Q", "answer": "\n' + json.dumps(gsm8k("Fine?")))
    assert run("gsm8k", "--source", tmp_path / "broken", "--out", tmp_path / "x", "--no-check-targets") == 2
    assert "unreadable 1 (train.jsonl:1: it is not JSON" in capsys.readouterr().err


def test_lengths_are_those_of_training(small, tmp_path, capsys):
    """Token limits and statistics count what DemonstrationTokenizer makes of the same row."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.read_text()
    tokenizer.save_pretrained(tmp_path / "model")
    write_lines(small / "train.jsonl", [gsm8k("How many" + number * " pies" + "?") for number in range(12)])
    arguments = ("gsm8k", "--source", small, "--tokenizer", tmp_path / "model", "--no-check-targets")
    assert run(*arguments, "--out", tmp_path / "out") == 0
    trained = DemonstrationTokenizer(tokenizer, "qwen2", 10_000, 10_000)
    lengths = Lengths(str(tmp_path / "model"))
    for row in rows_of(tmp_path / "out", "train"):
        made = trained(row)
        assert lengths(row) == (len(made.prompt), len(made.response))
    longest = report_of(tmp_path / "out")["tokens"]["train"]["prompt"]["max"]
    limited = (*arguments, "--max-prompt-tokens", longest - 1, "--out", tmp_path / "limited")
    assert run(*limited) == 2
    assert f"its prompt has {longest:,} tokens; the limit is {longest - 1:,}" in capsys.readouterr().err
    assert run(*limited, "--on-bad-row", "drop") == 0
    assert report_of(tmp_path / "limited")["tokens"]["train"]["prompt"]["max"] < longest
    assert report_of(tmp_path / "limited")["bad_rows"]["long_prompt"]["count"] == 1
    assert run("gsm8k", "--source", small, "--max-target-tokens", 5, "--out", tmp_path / "y") == 2
    assert "needs tokenizer" in capsys.readouterr().err


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_output_folder_is_replaced_whole_or_not_at_all(small, tmp_path, capsys):
    """No overwriting without the flag, no file of an earlier preparation left over, nothing of the user's touched."""
    out = tmp_path / "out"
    arguments = ("gsm8k", "--source", small, "--no-check-targets", "--out", out)
    assert run(*arguments, "--validation", 2) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*arguments, "--overwrite", "--validation", 99) == 2
    assert "validation=99, but only 12 rows" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(*arguments, "--overwrite") == 0
    assert {path.name for path in out.iterdir()} == {"train.parquet", "test.parquet", "report.json"}
    (out / "notes.txt").write_text("mine")
    assert run(*arguments, "--overwrite") == 2
    assert "notes.txt" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "small"]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["gsm9k", "--source", "x"], ["'gsm9k'", "did you mean gsm8k?", "minerva", "general_points"]),
        (["generalpoints"], ["'generalpoints'", "did you mean general_points?"]),
        (["gsm8k", "--source", "data/none"], ["data/none", "does not exist", "hf download", "openai/gsm8k"]),
        (["gsm8k", "--source", "SMALL/empty"], ["holds no train.jsonl", "its data files: none"]),
        (["gsm8k", "--source", "SMALL/other.txt"], ["other.txt", ".parquet"]),
        (["amc", "--source", "SMALL/wrong.jsonl"], ["columns text, label", "problem or question", "AI-MO"]),
        (["gsm8k", "--source", "SMALL", "--style", "long"], ["style='long'", "think or plain"]),
        (["gsm8k", "--source", "SMALL", "--on-bad-row", "skip"], ["'skip'", "refuse or drop"]),
        (["gsm8k", "--source", "SMALL", "--max-prompt-bytes", "3", "--on-bad-row", "drop"], ["no row of", "is left"]),
        (["gsm8k", "--source", "SMALL", "--tokenizer", "SMALL"], ["tokenizer=", "cannot be loaded"]),
        (["gsm8k", "--source", "SMALL/train.jsonl", "--validation", "12"], ["validation=12 leave no row", "train=0"]),
        (
            ["gsm8k", "--source", "SMALL", "--hygiene-against", "none.jsonl"],
            ["hygiene_against=none.jsonl", "not exist"],
        ),
        (["gsm8k", "--source", "SMALL/latin.csv"], ["latin.csv is not in UTF-8", "write it again in UTF-8"]),
        (["gsm8k", "--source", "SMALL/empty.jsonl"], ["no row of gsm8k", "hf download"]),
        (["amc", "--source", "SMALL"], ["no_answer", "several lines", "no final answer"]),
    ],
)
def test_errors_name_the_value_and_the_fix(small, tmp_path, capsys, arguments, fragments):
    """One line on the error stream, exit status 2, nothing written."""
    (small / "empty").mkdir()
    (small / "other.txt").write_text("x")
    (small / "latin.csv").write_bytes("question,answer\nWie groß?,#### 3\n".encode("latin-1"))
    (small / "empty.jsonl").write_text("")
    write_lines(tmp_path / "small" / "wrong.jsonl", [{"text": "a", "label": "b"}])
    given = [argument.replace("SMALL", str(small)) for argument in arguments]
    assert run(*given, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert all(fragment in message for fragment in fragments), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["gsm8k"], ["required: --source, --out", "--help"]),
        (
            ["gsm8k", "--source", "s", "--out", "OUT", "--validations", "2"],
            ["--validations 2", "nearest options: --val"],
        ),
        (["gsm8k", "--source", "s", "--out", "OUT", "--validation", "2.5"], ["--validation", "'2.5'"]),
        (["gsm8k", "--source", "s", "--out", "FILE"], ["--out", "is a file; give a folder"]),
        (["gsm8k", "--source", "s", "--out", "FILE/below"], ["--out", "is a file; give a folder"]),
        (["general_points", "--out", "FILE", "--evaluation"], ["is a file; give a folder"]),
        (["general_points", "--out", "OUT", "--evaluation", "--targets", "24-1"], ["'24-1' is an empty range", "1-24"]),
        (["general_points", "--out", "OUT", "--evaluation", "--ranks", "20"], ["ranks", "1 to 13; got 20"]),
        (["virl", "--out", "FILE", "--train", "1"], ["is a file; give a folder"]),
        (["virl", "--out", "OUT", "--train", "1", "--contxt", "chat"], ["--contxt chat", "--context"]),
        (["virl", "--out", "OUT", "--routes", "none.json", "--train", "1"], ["none.json", "cannot be read"]),
        (["reasoning_gym", "--out", "FILE", "--dataset", "gcd"], ["is a file; give a folder"]),
        (["reasoning_gym", "--out", "OUT", "--dataset", "gdc", *SIZES], ["'gdc' is not one of", "nearest: ['gcd'"]),
        (["reasoning_gym", "--out", "OUT", "--dataset", "gcd", *NO_SIZES], ["one row at least"]),
        (["humaneval", "--out", "FILE", "--source", "s"], ["is a file; give a folder"]),
        (["humaneval", "--out", "OUT", "--source", "s", "--second", "3"], ["--second 3", "--seconds"]),
    ],
)
def test_errors_of_the_command_line_are_one_line(tmp_path, capsys, arguments, fragments):
    """For every command: the option, its value and what there is; exit status 2, nothing written."""
    (tmp_path / "file").write_text("x")
    places = {
        "FILE": str(tmp_path / "file"),
        "FILE/below": str(tmp_path / "file" / "below"),
        "OUT": str(tmp_path / "o"),
    }
    with pytest.raises(SystemExit) as status:
        main([places.get(argument, argument) for argument in arguments])
    assert status.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert all(fragment in message for fragment in fragments), message
    assert not (tmp_path / "o").exists()


def test_as_a_program(small, tmp_path):
    """`python -m`: status 0 and a summary; without a hub, status 2 and what to download."""
    command = [sys.executable, "-m", "recipe.amft.data.prepare", "gsm8k", "--out", str(tmp_path / "out"), "--source"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, str(small)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train           12 rows (gsm8k 12)" in done.stdout
    done = subprocess.run([*command, "hub", "--overwrite"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "hf download --repo-type dataset openai/gsm8k" in done.stderr


def test_other_commands_are_reached_by_name(tmp_path):
    """`prepare general_points ...` is the General Points command."""
    sizes = ("--train", 3, "--validation", 2, "--test", 2)
    assert run("general_points", "--out", tmp_path, "--num-cards", 2, "--ranks", 4, "--targets", "1-12", *sizes) == 0
    assert len(rows_of(tmp_path, "train")) == 3


def test_the_gsm8k_task_is_made_on_demand(small, tmp_path):
    """The options of configs/task/gsm8k.yaml make the three files; unknown ones and a missing source are errors."""
    settings = from_mapping(OmegaConf.to_container(compose(["task=gsm8k"]).amft, resolve=True))
    assert settings.task["make"] == "recipe.amft.data.prepare.make"
    assert "pretraining" not in settings.model["options"]
    options = dict(settings.task["options"])
    options |= {"source": str(small), "validation": 2, "test": 3}
    make(options, tmp_path)
    assert [len(rows_of(tmp_path, split)) for split in SPLITS] == [10, 2, 3]
    row = rows_of(tmp_path, "train")[0]
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert json.loads(row["extra_info"]["env_kwargs"])["require_think"] is False
    with pytest.raises(ValueError, match=r"unknown options validatoin; known: .*validation"):
        options_from(options | {"validatoin": 3})
    with pytest.raises(ValueError, match="AMFT_GSM8K"):
        make(options | {"source": "no/such"}, tmp_path)


def test_commands_of_the_documentation_parse():
    """Every command that docs/data.md shows has options that exist."""
    parsers = {"prepare": prepare._parser(), "prepare_model": prepare_model._parser()}
    shown = re.findall(
        r"^    python -m recipe\.amft\.data\.(prepare|prepare_model) (.*)$",
        DOCUMENTATION.read_text().replace("\\\n", " "),
        re.M,
    )
    assert len(shown) >= 6
    for command, arguments in shown:
        parsers[command].parse_args(shlex.split(arguments))
