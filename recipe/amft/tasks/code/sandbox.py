"""A program and its tests in two confined processes; whatever they do, they are gone after the time limit."""

import contextlib
import math
import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

from recipe.amft.tasks.json_process import JsonProcess

START_SECONDS = 30.0  # the interpreters' own start, which does not count against a program's time

Reason = Literal[
    "passed",
    "failed",  # a test is not fulfilled
    "raised",  # the program raised an exception, a syntax error among them
    "exited",  # its process ended, or answered what no function answers
    "timeout",
    "crashed",  # the judge died: of memory, or of the time that the tests themselves took
]


@dataclass(frozen=True)
class Program:
    """A program under test.

    Attributes:
        code: the source that defines `entry_point`.
        entry_point: the function that `check` of the test gets.
        test: source that defines `check(candidate)`.
        prelude: source whose names the test may use, such as the helpers that the question gives.
    """

    code: str
    entry_point: str
    test: str
    prelude: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a program, and a few words about it."""

    verdict: Reason
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run(program: Program, seconds: float, memory_gib: float) -> Outcome:
    """Judge one program. RuntimeError where this machine cannot confine it (then nothing of it was run).

    Args:
        seconds: by the clock on the wall, for the program and its tests together.
        memory_gib: how far each process may grow over its size before the program.
    """
    limits = {"memory_bytes": int(memory_gib * 2**30), "cpu_seconds": math.ceil(seconds) + 1}
    with tempfile.TemporaryDirectory(prefix="amft-code-") as folder:
        process = _start(folder)
        try:
            _wait_for_start(process)
            deadline = time.monotonic() + seconds
            process.send(asdict(program) | limits, deadline)
            reply = process.receive(deadline)
        except TimeoutError:
            return Outcome("timeout", f"not done within {seconds:g} s")
        except EOFError:
            return Outcome("crashed", f"the judge ended with status {process.wait()}")
        finally:
            _end(process)
    if reply["verdict"] == "unavailable":
        raise RuntimeError(f"programs cannot be confined on this machine, and are not run otherwise: {reply['reason']}")
    return Outcome(reply["verdict"], reply["reason"])


@lru_cache(maxsize=1)
def check_available() -> None:
    """RuntimeError where this machine cannot confine programs."""
    outcome = run(Program("def one(): return 1", "one", "def check(candidate): assert candidate() == 1"), 30.0, 1.0)
    if not outcome.passed:
        raise RuntimeError(f"the sandbox for programs does not work on this machine: {outcome}")


def _start(folder: str) -> JsonProcess:
    environment = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "LANG": "C.UTF-8",
        "HOME": folder,
        "TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if "LD_LIBRARY_PATH" in os.environ:  # of the interpreter itself
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return JsonProcess("recipe.amft.tasks.code.judge", environment=environment, cwd=folder, start_new_session=True)


def _wait_for_start(process: JsonProcess) -> None:
    try:
        process.receive(time.monotonic() + START_SECONDS)
    except (TimeoutError, EOFError) as error:
        raise RuntimeError(f"the sandbox for programs did not start ({type(error).__name__})") from None


def _end(process: JsonProcess) -> None:
    """Kill the session of the judge: a confined process cannot leave it."""
    with contextlib.suppress(ProcessLookupError):  # both have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.end()
