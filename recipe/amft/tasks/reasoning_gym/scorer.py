"""Scores from reasoning-gym's own scorers, computed in a subprocess with limits.

One subprocess for each process, a plain `python -m` on two pipes, started at the first request and kept; it ends when
its input does. The limit is on the parent's clock; a subprocess over it is killed, and the next request starts another.
"""

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_ANSWER_CHARACTERS = 16_384
MAX_REPLY_BYTES = 4096
START_SECONDS = 120.0
ROOT = Path(__file__).resolve().parents[4]
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Score:
    """`value` in [0, 1]; `problem` is "", or why it is 0: no_answer, too_long, error (raised), timeout, crashed."""

    value: float
    problem: str = ""
    reason: str = ""


class Scorer:
    """Asks the subprocess; thread-safe, one request at a time.

    `counts`: scored, and each problem by its name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def score(self, task: dict[str, Any], answer: str | None, seconds: float) -> Score:
        """The score of `answer` for `task`: dataset, config, and entry as JSON (entries.to_json)."""
        if not answer:
            result = Score(0.0, "no_answer", "there is no answer")
        elif len(answer) > MAX_ANSWER_CHARACTERS:
            reason = f"the answer has {len(answer)} characters, at most {MAX_ANSWER_CHARACTERS} are scored"
            result = Score(0.0, "too_long", reason)
        else:
            with self._lock:
                result = self._ask({**task, "answer": answer, "seconds": seconds})
        with self._lock:
            self.counts[result.problem or "scored"] += 1
        if result.problem in ("timeout", "crashed"):
            logger.warning("scoring an answer to %s: %s (%s)", task["dataset"], result.reason, dict(self.counts))
        return result

    def close(self) -> None:
        """Ends the subprocess; another request would start one again."""
        with self._lock:
            self._kill()

    def _ask(self, request: dict[str, Any]) -> Score:
        try:
            try:
                reply = self._exchange(request)
            except EOFError:  # it may have died of something else, and this answer is a good one
                reply = self._exchange(request)
        except TimeoutError:
            return Score(0.0, "timeout", f"no score within {request['seconds']} s")
        except EOFError as error:
            return Score(0.0, "crashed", f"the scorer's process ended twice: {error}")
        if "error" in reply:
            return Score(0.0, "error", reply["error"])
        return Score(min(max(reply["score"], 0.0), 1.0))

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply; TimeoutError, or EOFError for a process that has ended. After any error there is no process."""
        process = self._process or self._start()
        try:
            deadline = time.monotonic() + request["seconds"]
            _send(process, request, deadline)
            return _receive(process, deadline)
        except BrokenPipeError as error:
            self._kill()
            raise EOFError(str(error)) from error
        except BaseException:
            self._kill()  # its reply would be taken for that to the next request
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "recipe.amft.tasks.reasoning_gym.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
        )
        self._process = process
        try:
            _receive(process, time.monotonic() + START_SECONDS)
        except (OSError, EOFError) as error:
            self._kill()
            raise RuntimeError(f"the scorer's process did not start ({error}); its messages are above") from error
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _send(process: subprocess.Popen[bytes], message: dict[str, Any], deadline: float) -> None:
    """An entry may be longer than a pipe's buffer: write as the other side reads, until `deadline`."""
    data = json.dumps(message).encode() + b"\n"
    descriptor = process.stdin.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data:
        _wait(poll, deadline)
        data = data[os.write(descriptor, data) :]


def _receive(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    received = b""
    while not received.endswith(b"\n"):
        _wait(poll, deadline)
        chunk = os.read(descriptor, MAX_REPLY_BYTES)
        if not chunk:
            raise EOFError(f"exit status {process.wait()}")
        received += chunk
        if len(received) > MAX_REPLY_BYTES:
            raise EOFError("its reply is too long")
    return json.loads(received)


def _wait(poll: "select.poll", deadline: float) -> None:
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise TimeoutError


_scorers: dict[int, Scorer] = {}
_scorers_lock = threading.Lock()


def shared_scorer() -> Scorer:
    """The scorer of this process, made at the first call (and anew in a forked process)."""
    with _scorers_lock:
        return _scorers.setdefault(os.getpid(), Scorer())
