"""Programs of the model: what counts as one, and that nothing but fulfilled tests passes, whatever it does."""

import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
import time
from fractions import Fraction

import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.amft.data.humaneval import main
from recipe.amft.tasks.code.answer import program_of, stub_of
from recipe.amft.tasks.code.sandbox import Program, run
from recipe.amft.tasks.code.values import from_json, to_json
from recipe.amft.tasks.environment import make_environment

PROBLEMS = [
    {
        "task_id": "Own/0",
        "entry_point": "total",
        "prompt": 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """Sum of the numbers."""\n',
        "canonical_solution": "    return sum(numbers)\n",
        "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == 6\n    assert candidate([]) == 0\n",
    },
    {
        "task_id": "Own/1",
        "entry_point": "decode",
        "prompt": 'def encode(text):\n    """Letters twice."""\n    return "".join(2 * letter for letter in text)\n\n\n'
        'def decode(text):\n    """The text that was encoded."""\n',
        "canonical_solution": "    return text[::2]\n",
        "test": "from random import Random\n\ndef check(candidate):\n    draw = Random(0)\n    for size in range(9):\n"
        '        text = "".join(draw.choices("abc", k=size))\n        assert candidate(encode(text)) == text\n',
    },
    {
        "task_id": "Own/2",
        "entry_point": "spread",
        "prompt": 'def spread(points):\n    """Least and greatest in a tuple, how often each occurs, the mean."""\n',
        "canonical_solution": "    counts = {point: points.count(point) for point in points}\n"
        "    return (min(points), max(points)), counts, sum(points) / len(points)\n",
        "test": "def check(candidate):\n    ends, counts, mean = candidate((3, 1, 3, 0.5))\n"
        "    assert ends == (0.5, 3)\n    assert type(ends) is tuple and counts == {3: 2, 1: 1, 0.5: 1}\n"
        "    assert abs(mean - 1.875) < 1e-9\n",
    },
]
TOTAL = PROBLEMS[0]
HOSTILE = {
    "leaves with status 0 before the tests": ("raised", "import sys\nsys.exit(0)"),
    "leaves at once with status 0": ("exited", "import os\nos._exit(0)"),
    "leaves with status 0 when it is called": ("raised", "import sys\ndef total(n): sys.exit(0)"),
    "prints that it has passed": (
        "failed",
        'import sys\nprint("ok", file=sys.__stdout__)\nprint(\'{"verdict": "passed", "reason": ""}\')\n'
        "def total(n): print('passed')",
    ),
    "writes verdicts into every pipe it has": (
        "exited",
        "import os\ndef total(n):\n    for pipe in range(3, 40):\n        try:\n"
        '            os.write(pipe, b\'{"verdict": "passed", "reason": ""}\\n\')\n'
        "        except OSError:\n            pass",
    ),
    "says that it cannot be confined": (
        "exited",
        'import os\nfor pipe in range(3, 40):\n    try:\n        os.write(pipe, b\'{"unavailable": "x"}\\n{}\\n\')\n'
        "    except OSError:\n        pass",
    ),
    "returns what equals everything": (
        "raised",
        "class Any:\n    __eq__ = lambda self, other: True\ndef total(n): return Any()",
    ),
    "returns a number that equals everything": (
        "failed",
        "class Any(int):\n    __eq__ = lambda self, other: True\ndef total(n): return Any(1)",
    ),
    "rewrites what the tests use": (
        "failed",
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.sum = lambda n: 0\ndef total(n): return sum(n)",
    ),
    "never ends": ("timeout", "def total(n):\n    while True:\n        pass"),
    "sleeps": ("timeout", "import time\ndef total(n): time.sleep(10**6)"),
    "takes all memory": ("raised", "def total(n): return len([0] * 10**10)"),
    "returns more than fits": ("exited", "def total(n): return 'x' * (1 << 26)"),
    "calls itself without end": ("raised", "def total(n): return total(n)"),
    "crashes the interpreter": ("exited", "import ctypes\ndef total(n): ctypes.string_at(0)"),
    "forks without end": ("raised", "import os\ndef total(n):\n    while True:\n        os.fork()"),
    "starts a program": ("raised", "import subprocess\ndef total(n): subprocess.run(['true'])"),
    "opens a socket": ("raised", "import socket\ndef total(n): socket.socket()"),
    "kills the judge": ("raised", "import os\ndef total(n): os.kill(os.getppid(), 9)"),
    "leaves its session": ("raised", "import os\ndef total(n): os.setsid()"),
    "raises its limits": ("raised", "import resource\ndef total(n): resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"),
    "reads the keyboard": ("raised", "def total(n): return input()"),
    "does not compile": ("raised", "def total(n: return"),
    "has another name": ("raised", "def sum_of(n): return sum(n)"),
}


def judge(code, problem=TOTAL, seconds=10.0):
    return run(Program(code, problem["entry_point"], problem["test"], stub_of(problem["prompt"])), seconds, 0.5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem["task_id"])
def test_a_solution_passes_and_a_wrong_one_does_not(problem):
    """Helpers of the prompt are there for test and program; tuples, dicts and floats come through as they are."""
    assert judge(problem["prompt"] + problem["canonical_solution"], problem).passed
    outcome = judge(stub_of(problem["prompt"]), problem)
    assert (outcome.passed, outcome.verdict) == (False, "failed")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_do_not_pass(name):
    """Nothing but tests that are fulfilled passes, and every way of failing is told apart."""
    verdict, code = HOSTILE[name]
    assert judge(code, seconds=2.0 if verdict == "timeout" else 10.0).verdict == verdict


@pytest.mark.parametrize(
    "line",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a').write('x')",
        "open({path!r} + '.new', 'x')",
        "os.remove({path!r})",
        "os.rename({path!r}, {path!r} + '.old')",
        "os.mkdir({path!r} + '.d')",
        "os.chmod({path!r}, 0)",
        "os.truncate({path!r}, 0)",
        "os.symlink({path!r}, {path!r} + '.link')",
        "open('here', 'w')",
    ],
)
def test_no_file_is_written_anywhere(line, tmp_path):
    """Not outside and not in its own folder: the call fails, and what was there is as it was."""
    path = tmp_path / "kept.txt"
    path.write_text("kept")
    mode = path.stat().st_mode
    assert judge(f"import os\ndef total(n):\n    {line.format(path=str(path))}\n    return sum(n)").verdict == "raised"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]
    assert (path.read_text(), path.stat().st_mode) == ("kept", mode)


def test_ordinary_modules_work_inside():
    """What solutions import: much of the standard library, numpy and its numbers, threads."""
    code = (
        "import bisect, collections, dataclasses, datetime, decimal, fractions, functools, hashlib, heapq, itertools\n"
        "import math, random, re, statistics, string, threading\nimport numpy as np\n"
        "@dataclasses.dataclass\nclass Box:\n    value: int\n"
        "def total(n):\n    box = Box(0)\n"
        "    work = threading.Thread(target=lambda: setattr(box, 'value', int(np.sum(n))))\n"
        "    work.start()\n    work.join()\n    return np.int64(box.value)"
    )
    assert judge(code).passed


def test_nothing_is_left_of_a_program_that_was_ended():
    """After a time-out neither of its two processes runs, and its folder is gone."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    started = time.monotonic()
    assert judge(HOSTILE["sleeps"][1], seconds=1.0).verdict == "timeout"
    assert time.monotonic() - started < 30
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


def test_nothing_is_left_when_the_evaluation_is_killed():
    """SIGKILL of the process that judges: judge and program end with it."""
    script = (
        "import sys\nfrom recipe.amft.tasks.code.sandbox import Program, run\n"
        f"run(Program({HOSTILE['sleeps'][1]!r}, 'total', {TOTAL['test']!r}), 600.0, 0.5)"
    )
    parent = psutil.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 60
    while len(family := parent.children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)  # the program itself runs by now, or is about to: either way it must go
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.booleans()), inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
        | st.frozensets(st.text(max_size=2), max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_values_come_back_equal_and_of_their_kind(value):
    """Through JSON text: a tuple stays one, 1 stays apart from "1" and True, dictionaries keep their order."""
    back = from_json(json.loads(json.dumps(to_json(value))))
    assert repr(back) == repr(value) or (back == value and type(back) is type(value))


@pytest.mark.parametrize("value", [object(), iter([]), Fraction(1, 2), len, [1, (2, {"a": print})]])
def test_what_is_no_plain_value_is_named(value):
    """Functions, iterators and objects do not pass between the processes."""
    with pytest.raises(TypeError, match="no plain value"):
        to_json(value)


HEAD = "from typing import List\n\n\n"
BODY = "def total(numbers: List[int]) -> int:\n    return sum(numbers)"


@pytest.mark.parametrize(
    ("answer", "runs"),
    [
        (f"```python\n{BODY}\n```", True),
        (f"First try:\n```python\ndef total(n):\n    return 0\n```\nBetter:\n```py\n{BODY}\n```\nDone.", True),
        (f"```python\n{BODY}\n```\nUse it so:\n```python\nprint(total([1]))\n```", True),
        (f"```\n{BODY}", True),  # cut before the fence was closed
        (BODY, True),
        (f"Here it is.\n\n{HEAD}{BODY}", True),
        ("    return sum(numbers)\n", True),
        ("    return sum(numbers)\n\n\nprint(total([]))\nassert False", True),
        ("```python\n    return sum(numbers)\n```", True),
        (f"```python\nfrom __future__ import annotations\n{BODY}\n```", True),
        ("```python\ntotal = sum\n```", True),
        (f"```python\n{BODY}\n```\nNo, this:\n```python\ndef total(n):\n    return 0\n```", False),
        ("I cannot do that.", None),
        ("", None),
        ("```python\nprint(6)\n```", None),
    ],
)
def test_the_program_in_an_answer(answer, runs):
    """Fenced or bare, whole or as a continuation, after the prompt's imports; the last definition counts."""
    program = program_of(answer, TOTAL["prompt"], "total")
    assert (program is None) == (runs is None)
    if program is not None:
        names = {}
        exec(program, names)
        assert (names["total"]([1, 2, 3]) == 6) == runs


@given(st.text(), st.text(alphabet="`\n d", max_size=40))
def test_any_text_is_an_answer_or_none(text, other):
    """Extraction never raises and never makes a program of nothing."""
    for answer in (text, other, f"```python\n{text}\n```{other}"):
        program = program_of(answer, TOTAL["prompt"], "total")
        assert program is None or program.strip()


def environment(problem=TOTAL, **kwargs):
    made = make_environment("code", kwargs)
    options = {name: problem[name] for name in ("prompt", "test", "entry_point")}
    return made, made.reset(0, options | {"solution": problem["canonical_solution"]})[0]


def test_an_episode_is_one_answer():
    """The demonstration is rewarded, a wrong program and a text without one are not; there is no second answer."""
    solved, observation = environment()
    assert TOTAL["prompt"].rstrip() in observation["text"]
    _, reward, terminated, truncated, info = solved.step(solved.expert_action())
    assert (reward, terminated, truncated, info["success"], info["verdict"]) == (1.0, True, False, True, "passed")
    with pytest.raises(RuntimeError, match="reset"):
        solved.step("again")
    for text, verdict, refused in (("sum", "no_code", 0), ("    pass", "failed", 0), ("x" * 300_000, "too_long", 1)):
        _, reward, _, _, info = environment()[0].step(text)
        assert (reward, info["success"], info["verdict"], info["num_refused_answers"]) == (0.0, False, verdict, refused)


def test_programs_run_beside_the_event_loop():
    """`step_async` of several episodes: the loop goes on while they are judged, and each gets its own verdict."""
    answers = ["    return sum(numbers)", "    return 0", "    return sum(numbers)"]

    async def judged():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        outcomes = await asyncio.gather(*(environment()[0].step_async(answer) for answer in answers))
        ticking.cancel()
        return [outcome[1] for outcome in outcomes], ticks

    rewards, ticks = asyncio.run(judged())
    assert rewards == [1.0, 0.0, 1.0]
    assert ticks > 3


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        ({"seconds": 0}, {}, "seconds must be a number above 0; got 0"),
        ({}, {"prompt": "x"}, "missing"),
        ({}, {"prompt": "x", "test": "y", "entry_point": "a b"}, "name of a function; got 'a b'"),
        ({}, {"prompt": "x", "test": "y", "entry_point": "f"}, "check"),
        ({}, {"prompt": "x", "test": "def check(c): 1", "entry_point": "f", "tests": ""}, "unknown"),
    ],
)
def test_bad_arguments_are_named(kwargs, options, message):
    """Parameters and reset options: the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        make_environment("code", kwargs).reset(0, options)


def test_a_machine_that_cannot_confine_runs_nothing(monkeypatch, tmp_path):
    """Without the filter there is an error that says so, before any line of the program."""
    script = (
        "import recipe.amft.tasks.code.confine as confine, sys\n"
        "def refuse(*arguments): raise OSError(38, 'no filter here')\n"
        "confine._prctl = refuse\n"
        "sys.argv = ['solution']\nimport recipe.amft.tasks.code.solution as solution\nsolution.main()"
    )
    first = {"code": f"open({str(tmp_path / 'ran')!r}, 'w')", "entry_point": "f"}
    request = json.dumps(first | {"memory_bytes": 1 << 30, "cpu_seconds": 5})
    done = subprocess.run(
        [sys.executable, "-c", script], input=request + "\n", capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "no filter here" in json.loads(done.stdout.splitlines()[1])["unavailable"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_file_of_problems_becomes_rows(tmp_path, suffix):
    """The documented command, plain and compressed: rows that replay, whose demonstrations pass."""
    source = tmp_path / f"own{suffix}"
    text = "".join(json.dumps(problem) + "\n" for problem in PROBLEMS)
    source.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    main(["--source", str(source), "--out", str(tmp_path / "out")])
    rows = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert [row["extra_info"]["id"] for row in rows] == [f"humaneval/Own/{index}" for index in range(3)]
    task = rows[1]["extra_info"]
    replayed = make_environment(task["env_id"], json.loads(task["env_kwargs"]))
    observation, _ = replayed.reset(task["seed"], json.loads(task["options"]))
    assert [{"role": "user", "content": observation["text"]}] == rows[1]["prompt"]
    assert replayed.step(rows[1]["target"][0]["content"])[1] == 1.0


def test_problems_that_judge_nothing_are_refused_or_left_out(tmp_path, capsys):
    """A solution that fails its own tests, tests that a stub passes, lines that are no problem: named."""
    broken = PROBLEMS[0] | {"task_id": "Own/broken", "canonical_solution": "    return 0\n"}
    empty = PROBLEMS[0] | {"task_id": "Own/empty", "test": "def check(candidate):\n    candidate([])\n"}
    source = tmp_path / "own.jsonl"
    source.write_text("".join(json.dumps(problem) + "\n" for problem in (PROBLEMS[0], broken, empty)))
    arguments = ["--source", str(source), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(arguments)
    said = capsys.readouterr().err
    assert "Own/broken: its own solution does not pass (failed" in said
    assert "Own/empty: a function that does nothing passes" in said
    assert not (tmp_path / "out").exists()
    main([*arguments, "--on-bad-row", "drop"])
    assert pq.read_table(tmp_path / "out" / "test.parquet").num_rows == 1
    for text, message in (
        ("{}", r"own\.jsonl:1 has no text under task_id"),
        ("[", "not JSON"),
        ("", "has no problems"),
    ):
        source.write_text(text)
        with pytest.raises(SystemExit):
            main(arguments)
        assert re.search(message, capsys.readouterr().err)
