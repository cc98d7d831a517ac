"""A grader's subprocess: `python -m recipe.amft.tasks.graders.worker MEMORY_BYTES`; one JSON object a line, in and out.

It imports math-verify and sympy, not torch or verl. The parent's clock (pool.py) limits the time of an answer; two more
limits hold without the parent: a kernel timer kills the process in a computation that goes on for LATE_SECONDS longer
(the parent may be dead), and the address space may grow by MEMORY_BYTES over its size after the imports.
"""

import json
import os
import resource
import select
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe.amft.tasks.graders.registry import grade_answer
from recipe.amft.tasks.graders.verdicts import Verdict, not_judged

LATE_SECONDS = 10.0
PARENT_CHECK_SECONDS = 30.0
MEMORY_EXIT_STATUS = 3


def main() -> None:
    """Serves requests until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process, also inside a C function
    parent = os.getppid()
    grade_answer(r"\boxed{\frac{1}{2}}", "0.5", "math_verify")  # imports, and builds the LaTeX parser's tables
    _limit_memory(int(sys.argv[1]))
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # libraries print: not into the protocol, and not into the training log
    os.dup2(null, 2)
    _send(replies, {"ready": True})
    received = b""
    while line_end := _line_end(received, parent):
        received, end = line_end
        line, received = received[:end], received[end + 1 :]
        _send(replies, asdict(_answer(json.loads(line.decode("utf-8", "surrogatepass")))))


def _answer(request: dict[str, Any]) -> Verdict:
    signal.setitimer(signal.ITIMER_REAL, request["seconds"] + LATE_SECONDS)
    try:
        return grade_answer(request["answer"], request["ground_truth"], request["grader"], request["choices"])
    except MemoryError:
        os._exit(MEMORY_EXIT_STATUS)  # a fresh process has its memory back
    except Exception as error:
        return not_judged("crashed", f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _line_end(received: bytes, parent: int) -> tuple[bytes, int] | None:
    """Reads until `received` holds a line; None at the end of the input or when the parent has changed."""
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    while (end := received.find(b"\n")) < 0:
        if not poll.poll(PARENT_CHECK_SECONDS * 1000):
            if os.getppid() != parent:  # the pipe's other end may live on in a process that the parent forked
                return None
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return None
        received += chunk
    return received, end


def _limit_memory(growth: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + growth
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(descriptor: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
