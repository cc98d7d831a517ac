"""The process that holds the tests: `python -m recipe.amft.tasks.code.judge`; a request on stdin, a verdict on stdout.

The program under test runs in a process of its own (solution.py). The tests see it as a function that sends its
arguments there and gets a plain value back, so that the model's code cannot reach the tests, their expected values or
the verdict: it passes when `check` has come to its end here, and in no other way.
"""

import builtins
import io
import json
import subprocess
import sys
from typing import Any

from recipe.amft.tasks.code.confine import confine
from recipe.amft.tasks.code.solution import MAX_REASON_CHARACTERS, private_streams, send
from recipe.amft.tasks.code.values import from_json, to_json

MAX_REPLY_BYTES = 16 << 20
UNREADABLE = "the program's answer is not readable"
Verdict = tuple[str, str]


class SolutionEnded(BaseException):
    """The program under test is gone, or has said what no program says; no test can catch this."""


class Solution:
    """The function under test, in the other process; `raised` is the exception that it raised last."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "recipe.amft.tasks.code.solution"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.replies = io.BufferedReader(self.process.stdout)
        self.raised: BaseException | None = None
        self._hear()  # it has started

    def load(self, request: dict[str, Any]) -> None:
        """Confine the process, then run the program's own statements. OSError where it cannot be confined."""
        self._tell({name: request[name] for name in ("code", "entry_point", "memory_bytes", "cpu_seconds")})
        reply = self._hear()
        if "unavailable" in reply:
            raise OSError(reply["unavailable"])
        self._value(self._hear())

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self._tell({"arguments": to_json(list(arguments)), "keywords": to_json(keywords)})
        return self._value(self._hear())

    def _value(self, reply: dict[str, Any]) -> Any:
        try:
            if "value" in reply:
                return from_json(reply["value"])
            self.raised = exception_of(*reply["raised"])
        except (KeyError, TypeError, ValueError, RecursionError):
            raise SolutionEnded(UNREADABLE) from None
        raise self.raised

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            send(self.process.stdin, message)
        except OSError as error:
            raise SolutionEnded(f"the program ended: {error}") from None

    def _hear(self) -> dict[str, Any]:
        line = self.replies.readline(MAX_REPLY_BYTES)
        if not line:
            raise SolutionEnded("the program ended")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise SolutionEnded(UNREADABLE)
        return reply


def exception_of(name: Any, text: Any) -> Exception:
    """An exception as the program raised it, where it is one of Python's own; tests may expect it."""
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind(str(text))
    return RuntimeError(f"{name}: {text}")


def judged(solution: Solution, request: dict[str, Any]) -> Verdict:
    """(verdict, reason): passed, failed, raised, exited, or unavailable."""
    try:
        confine(request["memory_bytes"], request["cpu_seconds"])
        solution.load(request)
    except SolutionEnded as error:
        return "exited", str(error)
    except Exception as error:  # not the program's own: confine's, before a line of it was run
        return "raised" if error is solution.raised else "unavailable", described(error)
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(request["prelude"], "prompt.py", "exec"), namespace)
        namespace[request["entry_point"]] = solution
        exec(compile(request["test"], "test.py", "exec"), namespace)
        namespace["check"](solution)
    except SolutionEnded as error:
        return "exited", str(error)
    except Exception as error:
        return "raised" if error is solution.raised else "failed", described(error)
    return "passed", ""


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]


def main() -> None:
    sys.set_int_max_str_digits(0)  # tests of HumanEval+ compare longer ones; the time limit bounds the work
    requests, verdicts = private_streams()
    solution = Solution()
    send(verdicts, {"verdict": "ready", "reason": ""})
    verdict, reason = judged(solution, json.loads(requests.readline()))
    send(verdicts, {"verdict": verdict, "reason": reason})


if __name__ == "__main__":
    main()
