"""The scorer's subprocess: `python -m recipe.amft.tasks.reasoning_gym.worker`, one JSON object per line, in and out.

Scorers of reasoning-gym are third-party code that reads a model's text; four call Python's `eval` on it, four sympy's
parser, which does too. Here those read literals and formulas only. Time is limited by the parent's clock (scorer.py),
and by a kernel timer in case the parent is gone; memory by the kernel; files cannot be written.
"""

import ast
import functools
import importlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.amft.tasks.reasoning_gym.entries import from_json, load_dataset

MEMORY_BYTES = 2 << 30  # how far the address space may grow over its size after the imports
LATE_SECONDS = 10.0  # after the parent's limit
EVALUATING = (  # modules of reasoning_gym whose scorer calls eval() on the answer
    "algorithmic.binary_matrix",
    "algorithmic.spiral_matrix",
    "algorithmic.string_insertion",
    "games.n_queens",
)
FUNCTIONS = {"Abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "cot", "coth", "csc", "exp"}
FUNCTIONS |= {"ln", "log", "sec", "sin", "sinh", "sqrt", "tan", "tanh"}
_FORMULA_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Call,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.Pow,
    ast.UAdd,
    ast.USub,
)


def main() -> None:
    """Serves requests until the parent closes the pipe."""
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process, also inside a C function
    replies = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # some scorers print
    make_evaluation_safe()
    limit_resources()
    reply(replies, {"ready": True})
    os.dup2(null, 2)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + LATE_SECONDS)
        reply(replies, score(request))
        signal.setitimer(signal.ITIMER_REAL, 0)


def score(request: dict[str, Any]) -> dict[str, Any]:
    """{"score": number} or {"error": what the scorer raised}."""
    try:
        dataset = load_dataset(request["dataset"], request["config"], seed=0, size=1)
        value = float(dataset.score_answer(request["answer"], from_json(request["entry"])))
        return {"score": value} if math.isfinite(value) else {"error": f"the score is {value}"}
    except MemoryError:
        os._exit(3)  # a fresh process has its memory back
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def make_evaluation_safe() -> None:
    """In this process, no scorer of reasoning-gym evaluates a text as Python."""
    import sympy

    for name in EVALUATING:
        importlib.import_module(f"reasoning_gym.{name}").eval = ast.literal_eval  # shadows the built-in there
    countdown = importlib.import_module("reasoning_gym.games.countdown")
    countdown.parse_expr = sympy.parse_expr = formulas_only(sympy.parse_expr)


def formulas_only(parse: Callable[..., Any]) -> Callable[..., Any]:
    """`parse`, which raises ValueError for a text that is not a plain formula before it reads it."""

    @functools.wraps(parse)
    def checked(text: str, *arguments: Any, **options: Any) -> Any:
        text = text.strip()
        check_formula(text)
        return parse(text, *arguments, **options)

    return checked


def check_formula(text: str) -> None:
    """Numbers, names of one letter (perhaps with digits), + - * / **, brackets, and calls of FUNCTIONS."""
    tree = ast.parse(text, mode="eval")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, _FORMULA_NODES):
            raise ValueError(f"{type(node).__name__} does not belong in a formula")
        if isinstance(node, ast.Constant) and type(node.value) not in (int, float):
            raise ValueError(f"{node.value!r} is not a number")
        if isinstance(node, ast.Call) and (node.keywords or not isinstance(node.func, ast.Name)):
            raise ValueError("only functions are called, by position")
        if isinstance(node, ast.Name):
            is_variable = node.id.isascii() and node.id[0].isalpha() and (node.id[1:].isdigit() or not node.id[1:])
            is_known = node.id in FUNCTIONS if id(node) in called else is_variable or node.id == "pi"
            if not is_known:
                raise ValueError(f"unknown name {node.id!r}")


def limit_resources() -> None:
    """No growth beyond MEMORY_BYTES, no core file, no byte into any file."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for kind, limit in (
        (resource.RLIMIT_AS, size + MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def reply(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
