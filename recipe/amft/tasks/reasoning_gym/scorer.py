"""Scores from reasoning-gym's own scorers, computed in a subprocess with limits.

One subprocess for each process, started at the first request and kept; it ends when its input does. One over the time
limit is killed, and the next request starts another.
"""

import logging
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from recipe.amft.tasks.json_process import JsonProcess

logger = logging.getLogger(__name__)

MAX_ANSWER_CHARACTERS = 16_384
START_SECONDS = 120.0
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
        self._process: JsonProcess | None = None
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
            process.send(request, deadline)
            return process.receive(deadline)
        except BaseException:
            self._kill()  # its reply would be taken for that to the next request
            raise

    def _start(self) -> JsonProcess:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        process = self._process = JsonProcess("recipe.amft.tasks.reasoning_gym.worker", environment=environment)
        try:
            process.receive(time.monotonic() + START_SECONDS)
        except (OSError, EOFError) as error:
            self._kill()
            raise RuntimeError(f"the scorer's process did not start ({error}); its messages are above") from error
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


_scorers: dict[int, Scorer] = {}
_scorers_lock = threading.Lock()


def shared_scorer() -> Scorer:
    """The scorer of this process, made at the first call (and anew in a forked process)."""
    with _scorers_lock:
        return _scorers.setdefault(os.getpid(), Scorer())
