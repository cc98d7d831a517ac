"""HumanEval and HumanEval+ as they are published: their files' shapes, with problems of our own."""

import gzip
import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from recipe.amft.data.prepare import main
from recipe.amft.evaluation.settings import Benchmark
from recipe.amft.evaluation.tasks import read_benchmark
from recipe.amft.tasks.environment import make_environment

# HumanEval: blank lines first, examples in the docstring, METADATA above `check`, which may use helpers of the prompt.
RUNS = {
    "task_id": "HumanEval/0",
    "prompt": '''from typing import List


def longest_run(bits: List[int]) -> int:
    """ Length of the longest run of equal bits.
    >>> longest_run([1, 1, 0])
    2
    """
''',
    "entry_point": "longest_run",
    "canonical_solution": """    best = run = 0
    last = None
    for bit in bits:
        run = run + 1 if bit == last else 1
        last = bit
        best = max(best, run)
    return best
""",
    "test": """

METADATA = {
    'author': 'us',
    'dataset': 'test'
}


def check(candidate):
    assert candidate([1, 1, 0]) == 2
    assert candidate([]) == 0
""",
}
ROOTS = {
    "task_id": "HumanEval/1",
    "prompt": """import math


def value_at(coefficients: list, x: float):
    '''
    The polynomial at x.
    '''
    return sum(c * math.pow(x, i) for i, c in enumerate(coefficients))


def root_of(coefficients: list):
    ''' A zero of a polynomial of odd degree.
    root_of([1, 2]) # 1 + 2x
      -> -0.5
        '''
""",
    "entry_point": "root_of",
    "canonical_solution": """    low, high = -1e3, 1e3
    while high - low > 1e-10:
        middle = (low + high) / 2
        if value_at(coefficients, low) * value_at(coefficients, middle) <= 0:
            high = middle
        else:
            low = middle
    return low
""",
    "test": """

METADATA = {}


def check(candidate):
    import copy
    import random
    draws = random.Random(42)
    for _ in range(20):
        coefficients = [draws.randint(-10, 10), draws.randint(1, 10)]
        found = candidate(copy.deepcopy(coefficients))
        assert abs(value_at(coefficients, found)) < 1e-4
""",
}
SHOUT = {
    "task_id": "HumanEval/2",
    "prompt": '\ndef shout(text):\n    """Upper case; \'\' for no text."""\n',
    "entry_point": "shout",
    "canonical_solution": "    return text.upper()\n",
    "test": 'def check(candidate):\n\n    # a simple case\n    assert candidate("a") == "A", "not upper case"\n\n',
}
PLAIN = [RUNS, ROOTS, SHOUT]

# HumanEval+ in the original format: long lists of inputs and results, compared with numpy and a tolerance.
PLUS_TEST = """

import numpy as np


def compare(found, expected, tolerance):
    if found != expected:
        assert tolerance
        np.testing.assert_allclose(found, expected, atol=tolerance)


def check(candidate):
    inputs = {inputs}
    results = {results}
    for arguments, expected in zip(inputs, results):
        compare(candidate(*arguments), expected, {tolerance})
"""
PAIRS = [(float(number), float(number + 1)) for number in range(3000)]
HALVES = {
    "task_id": "HumanEval/0",
    "prompt": 'def half_of_each(numbers):\n    """Half of every number, in a tuple."""\n',
    "entry_point": "half_of_each",
    "canonical_solution": "    return tuple(number * 0.50000000001 for number in numbers)\n",
    "test": PLUS_TEST.format(
        inputs=[[list(pair)] for pair in PAIRS], results=[(a / 2, b / 2) for a, b in PAIRS], tolerance=1e-6
    ),
}
POWERS = {
    "task_id": "HumanEval/1",
    "prompt": 'def power_of_ten(exponent: int) -> int:\n    """10 to this power."""\n',
    "entry_point": "power_of_ten",
    "canonical_solution": "    return 10**exponent\n",
    # A number of more digits than Python reads and writes, unless told otherwise.
    "test": PLUS_TEST.format(inputs=[[3], [6000]], results=f"[1000, 1{'0' * 6000}]", tolerance=0),
}
PLUS = [HALVES, POWERS]


def write(problems, path):
    if path.suffix == ".parquet":
        pd.DataFrame(problems).to_parquet(path)
    else:
        text = "".join(json.dumps(problem) + "\n" for problem in problems)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("problems", "file", "name"),
    [
        (PLAIN, "HumanEval.jsonl.gz", "humaneval"),
        (PLAIN, "test-00000-of-00001.parquet", "humaneval"),
        (PLUS, "HumanEvalPlus-OriginFmt.jsonl.gz", "humaneval_plus"),
        (PLUS, "test.jsonl", "humaneval_plus"),
    ],
)
def test_published_files_become_problems_that_the_suite_reads(tmp_path, problems, file, name):
    """Own solutions pass and wrong ones fail; the suite `code` reads the file that is written."""
    source = write(problems, tmp_path / file)
    arguments = ["humaneval", "--source", str(source), "--name", name, "--seconds", "60"]
    assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    rows = pq.read_table(tmp_path / name / "test.parquet").to_pylist()
    assert [row["extra_info"]["id"] for row in rows] == [f"{name}/HumanEval/{index}" for index in range(len(rows))]
    benchmark = Benchmark(name, files=(f"{name}/test.parquet",))
    for row, task in zip(rows, read_benchmark(benchmark, str(tmp_path), "").tasks, strict=True):
        for answer, reward in ((row["target"][0]["content"], 1.0), ("    return None", 0.0)):
            environment = make_environment(task.env_id, dict(task.env_kwargs))
            environment.reset(task.seed, dict(task.options))
            assert environment.step(answer)[1] == reward, (task.row_id, answer)


def test_a_file_in_another_format_says_which_one_to_take(tmp_path, capsys):
    """EvalPlus's own format has inputs in place of `test`; a missing file says where there is one."""
    own = {key: value for key, value in HALVES.items() if key != "test"} | {"base_input": [], "plus_input": []}
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(SHOUT).encode())[:-20])
    for path, fragments in (
        (write([own], tmp_path / "Plus.jsonl"), ["Plus.jsonl:1 has no text under test", "own format", "OriginFmt"]),
        (tmp_path / "none.jsonl.gz", ["does not exist", "openai/human-eval", "hub for openai/openai_humaneval"]),
        (tmp_path / "cut.jsonl.gz", ["cut.jsonl.gz cannot be read"]),
    ):
        with pytest.raises(SystemExit) as status:
            main(["humaneval", "--source", str(path), "--out", str(tmp_path / "out")])
        assert status.value.code == 2
        message = capsys.readouterr().err
        assert all(fragment in message for fragment in fragments), message
