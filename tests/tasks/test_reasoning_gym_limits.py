"""Answers to reasoning-gym's questions are never run as Python, and a hostile one costs its time limit at most."""

import ast
import json
import subprocess
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from gym_problems import posed, result_of

from recipe.amft.tasks.reasoning_gym import scorer, worker

reasoning_gym = import_module("reasoning_gym")  # after entries.py, which stands in for pycosat


EVALUATE = ("eval", "exec", "sympify", "parse_expr", "lambdify", "S")


def evaluations(folder):
    """module -> what in it is called that evaluates a text as Python."""
    found = defaultdict(set)
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        if not any(f"{name}(" in text for name in EVALUATE):
            continue
        for node in ast.walk(ast.parse(text)):
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if name in EVALUATE:
                found[".".join(path.relative_to(folder).with_suffix("").parts)].add(name)
    return dict(found)


def test_no_evaluation_in_the_package_is_unknown():
    """All calls of eval, exec and sympy's parser in reasoning-gym: made safe in the worker, or never on an answer."""
    on_answers = {module: {"eval"} for module in worker.EVALUATING}
    on_answers |= {f"algebra.{name}": {"parse_expr"} for name in ("simple_integration", "intermediate_integration")}
    on_answers |= {"algebra.polynomial_multiplication": {"parse_expr"}, "games.countdown": {"parse_expr"}}
    on_the_entry = {
        "algorithmic.number_sorting": {"eval"},
        "arithmetic.basic_arithmetic": {"eval"},
        "arithmetic.bitwise_arithmetic": {"eval"},
        "arithmetic.gsm_symbolic.generators_00_49": {"eval"},
        "arithmetic.gsm_symbolic.generators_50_99": {"eval"},
        "code.codeio": {"exec"},
        "games.puzzle24": {"parse_expr"},  # refused
        "logic.propositional_logic": {"parse_expr"},  # its own parser
    }
    assert evaluations(Path(reasoning_gym.__file__).parent) == on_answers | on_the_entry


@pytest.mark.parametrize(
    "dataset",
    ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "polynomial_multiplication"],
)
def test_an_answer_is_never_run_as_python(dataset, tmp_path):
    """An answer that makes a folder where the package's own scorer reads it makes none here, and scores nothing."""
    folder = tmp_path / "made"
    answer = f"__import__('os').mkdir('{folder}')"
    original = reasoning_gym.create_dataset(dataset, seed=0, size=1)
    original.score_answer(answer, original[0])
    assert folder.exists(), "the attack has lost its teeth: this test shows nothing"
    folder.rmdir()
    reward, _ = result_of(answer, dataset)
    assert reward <= 0.05
    assert not folder.exists()


def test_an_answer_cannot_read_the_scorer_s_variables():
    """`oracle_answer` is a variable of the package's scorer, and an answer to it: worth marks there, none here."""
    original = reasoning_gym.create_dataset("string_insertion", seed=0, size=100)
    assert original.score_answer("oracle_answer", original[0]) > 0
    assert result_of("oracle_answer", "string_insertion") == (0.0, "")


def test_answers_in_the_forms_that_scorers_allow_still_score():
    """Lists where `eval` was, and formulas where sympy's parser reads."""
    environment = posed("binary_matrix")
    rows = [[int(number) for number in line.split()] for line in environment.expert_action().splitlines()]
    assert environment.step(json.dumps(rows))[1] == pytest.approx(0.1)
    assert result_of(f"(({posed('countdown').expert_action()}))", "countdown")[0] == 1.0
    assert result_of(f" {posed('simple_integration').expert_action()} + 7", "simple_integration")[0] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "().__class__",
        "x.diff()",
        "'a'",
        "f'{x}'",
        "open(x)",
        "preview(x)",
        "Integral(x, x)",
        "(lambda: x)()",
        "[x for x in y]",
        "x[0]",
        "xy",
        "sin",
        "sin(x=1)",
        "1j",
        "True",
        "3!",
        "ｅval(x)",
        "a if b else c",
        "(a := 1)",
        "é",
    ],
)
def test_what_is_no_formula_is_not_parsed(text):
    """Only numbers, one-letter variables, + - * / ** and known functions reach sympy's parser."""
    with pytest.raises((ValueError, SyntaxError)):
        worker.check_formula(text)


@pytest.mark.parametrize("text", ["x**2 + 3*x", "-(2*x1 - .5)/C", "sin(2*x)*exp(-x) + pi", "1e3*sqrt(x)"])
def test_formulas_are_parsed(text):
    """What answers to the integrals and polynomials look like."""
    worker.check_formula(text)


HOSTILE = {
    "huge power": ("countdown", "9**9**9**9"),
    "huge fraction": ("coin_flip", "1e999999999"),
    "deep brackets": ("countdown", "(" * 8000 + "1" + ")" * 8000),
    "deep list": ("n_queens", "[" * 8000 + "]" * 8000),
    "deep JSON": ("number_sorting", "[" * 8000),
    "long number": ("gcd", "9" * 10_000),
    "not a number": ("prime_factorization", "two × three"),
    "null byte": ("spiral_matrix", "\0"),
    "surrogate": ("caesar_cipher", "\ud800"),
    "too long": ("gcd", "1" * 1_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_score_nothing_and_the_next_one_is_scored(name):
    """Time, memory, stack and exceptions of a scorer: at most the floor that it gives any text, within the limit."""
    dataset, answer = HOSTILE[name]
    reward, problem = result_of(answer, dataset, seconds=0.7)
    assert reward <= 0.05
    assert problem in ("", "error", "timeout", "crashed", "too_long")
    assert (name == "too long") == (problem == "too_long")
    assert result_of(posed("gcd").expert_action(), "gcd") == (1.0, "")


def test_time_outs_are_counted_and_the_process_is_replaced():
    """The subprocess over the limit is gone, another one answers."""
    assert result_of(posed("gcd").expert_action(), "gcd") == (1.0, "")
    before, count = scorer.shared_scorer()._process, scorer.shared_scorer().counts["timeout"]
    assert result_of("9**9**9**9", "countdown", seconds=0.5) == (0.0, "timeout")
    assert before.returncode is not None
    assert scorer.shared_scorer().counts["timeout"] == count + 1
    assert result_of(posed("gcd").expert_action(), "gcd") == (1.0, "")


def test_a_process_that_died_between_two_answers_costs_none():
    """The next answer is scored by another one."""
    assert result_of(posed("gcd").expert_action(), "gcd") == (1.0, "")
    scorer.shared_scorer()._process.kill()
    scorer.shared_scorer()._process.wait()
    assert result_of(posed("gcd").expert_action(), "gcd") == (1.0, "")


def test_threads_share_the_subprocess():
    """Each thread gets the score of its own answer."""

    def score(index):
        environment = posed("gcd", index=index)
        right = environment.expert_action()
        return environment.step(right if index % 2 else "no idea")[1]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(score, range(40))) == [float(index % 2) for index in range(40)]


def test_the_subprocess_sees_no_credentials(monkeypatch):
    """It gets a few variables of its parent's environment, and no key of a tracker or a hub."""
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    scorer.shared_scorer().close()
    assert result_of(posed("gcd").expert_action(), "gcd") == (1.0, "")
    process_id = scorer.shared_scorer()._process.pid
    assert b"WANDB_API_KEY" not in Path(f"/proc/{process_id}/environ").read_bytes()
    assert b"WANDB_API_KEY" in subprocess.run(["env"], capture_output=True).stdout
