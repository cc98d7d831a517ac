"""A function to write, in one turn; the benchmark's tests decide in a sandbox."""

import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from recipe.amft.tasks.code import sandbox
from recipe.amft.tasks.code.answer import MAX_ANSWER_CHARACTERS, MAX_PROGRAM_CHARACTERS, program_of, stub_of
from recipe.amft.tasks.environment import Observation

RESET_OPTIONS = ("prompt", "test", "entry_point", "solution")
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
INSTRUCTION = "Complete this Python function. Answer with the whole function in one fenced block."


@dataclass(kw_only=True)
class CodeProblem:
    """Ends after one answer: reward 1.0 if its program passes the tests, else 0.0.

    Programs run in processes of their own that can write no file, start no process and reach no network (confine.py),
    as many at a time as there are processors. In asyncio use `step_async`.
    """

    seconds: float = 10.0  # for a program and its tests together
    memory_gib: float = 1.0  # how far its process may grow

    _prompt: str = field(default="", init=False)
    _test: str = field(default="", init=False)
    _entry_point: str = field(default="", init=False)
    _solution: str = field(default="", init=False)
    _open: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_gib"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} must be a number above 0; got {value!r}")

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Poses the problem of `options`; `seed` draws nothing.

        Options, as HumanEval has them: "prompt" (the source up to the end of the docstring), "test" (which defines
        `check(candidate)`), "entry_point" (the function's name), and optionally "solution" (what follows the prompt).
        """
        options = options or {}
        unknown = sorted(set(options) - set(RESET_OPTIONS))
        missing = [name for name in RESET_OPTIONS[:3] if not isinstance(options.get(name), str) or not options[name]]
        if unknown or missing:
            raise ValueError(
                f"reset options: missing {missing}, unknown {unknown}; allowed: {', '.join(RESET_OPTIONS)}"
            )
        if not NAME.fullmatch(options["entry_point"]):
            raise ValueError(f"entry_point must be the name of a function; got {options['entry_point']!r}")
        if "def check(" not in options["test"]:
            raise ValueError("test must define check(candidate)")
        try:
            sandbox.check_available()
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        self._prompt, self._test, self._entry_point = options["prompt"], options["test"], options["entry_point"]
        self._solution = options.get("solution") or ""
        self._open = True
        text = f"{INSTRUCTION}\n\n```python\n{self._prompt.rstrip()}\n```"
        return {"text": text, "images": [], "reset_context": False}, {"entry_point": self._entry_point}

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Runs the answer's program.

        info: success, verdict (one of sandbox.Reason, or no_code, too_long), reason, and num_grader_crashes and
        num_refused_answers (0 or 1).
        """
        if not self._open:
            raise RuntimeError("step() without an open episode: call reset() first")
        self._open = False
        verdict, reason = self._judged(text)
        success = verdict == "passed"
        info = {
            "success": success,
            "verdict": verdict,
            "reason": reason,
            "num_grader_crashes": int(verdict == "crashed"),
            "num_refused_answers": int(verdict == "too_long"),
        }
        end: Observation = {"text": "", "images": [], "reset_context": False}
        return end, float(success), True, False, info

    async def step_async(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """`step`, while other coroutines go on."""
        return await asyncio.get_running_loop().run_in_executor(_threads(), self.step, text)

    def expert_action(self) -> str:
        """The problem's own solution, as a model should answer."""
        if not self._solution:
            raise ValueError("this problem has no solution: give options['solution'] to reset()")
        return f"```python\n{self._prompt.rstrip()}\n{self._solution.strip(chr(10)).rstrip()}\n```"

    def _judged(self, text: str) -> tuple[str, str]:
        if len(text) > MAX_ANSWER_CHARACTERS:
            return "too_long", f"the answer has {len(text)} characters, over {MAX_ANSWER_CHARACTERS}"
        code = program_of(text, self._prompt, self._entry_point)
        if code is None:
            return "no_code", f"neither {self._entry_point} nor an indented continuation of the prompt"
        if len(code) > MAX_PROGRAM_CHARACTERS:
            return "too_long", f"the program has {len(code)} characters, over {MAX_PROGRAM_CHARACTERS}"
        program = sandbox.Program(code, self._entry_point, self._test, stub_of(self._prompt))
        outcome = sandbox.run(program, self.seconds, self.memory_gib)
        return outcome.verdict, outcome.reason


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="sandbox")
