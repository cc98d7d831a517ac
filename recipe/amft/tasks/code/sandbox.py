"""A program and its tests in two confined processes; whatever they do, they are gone after the time limit."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[4]
MAX_VERDICT_BYTES = 1 << 16
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
            _send(process, json.dumps(asdict(program) | limits).encode() + b"\n", deadline)
            reply = _expect(process, deadline)
        except TimeoutError:
            return Outcome("timeout", f"not done within {seconds:g} s")
        except (EOFError, BrokenPipeError):
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


def _start(folder: str) -> subprocess.Popen[bytes]:
    environment = {
        "PYTHONPATH": str(ROOT),
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
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "recipe.amft.tasks.code.judge"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


def _wait_for_start(process: subprocess.Popen[bytes]) -> None:
    try:
        _expect(process, time.monotonic() + START_SECONDS)
    except (TimeoutError, EOFError) as error:
        raise RuntimeError(f"the sandbox for programs did not start ({type(error).__name__})") from None


def _send(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    """Write as the other side reads: tests may be longer than a pipe's buffer."""
    descriptor = process.stdin.fileno()
    os.set_blocking(descriptor, False)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data:
        _wait(poll, deadline)
        data = data[os.write(descriptor, data) :]


def _expect(process: subprocess.Popen[bytes], deadline: float) -> dict[str, str]:
    """The next line; EOFError when there is none."""
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    received = b""
    while not received.endswith(b"\n"):
        _wait(poll, deadline)
        chunk = os.read(descriptor, MAX_VERDICT_BYTES)
        if not chunk or len(received) > MAX_VERDICT_BYTES:
            raise EOFError
        received += chunk
    reply: dict[str, str] = json.loads(received)
    return reply


def _wait(poll: "select.poll", deadline: float) -> None:
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise TimeoutError


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the session of the judge: a confined process cannot leave it."""
    with contextlib.suppress(ProcessLookupError):  # both have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
