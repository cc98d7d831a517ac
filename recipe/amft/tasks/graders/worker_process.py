"""The parent's side of a grader's subprocess (worker.py): start, ask with a time limit, kill."""

import os
import threading
import time
from typing import Any

from recipe.amft.tasks.json_process import JsonProcess

START_SECONDS = 120.0


class WorkerProcess:
    """One subprocess, (re)started at the first request after its end. One thread at a time."""

    def __init__(self, memory_bytes: int):
        self.memory_bytes = memory_bytes
        self.process: JsonProcess | None = None
        self._in_use = threading.Lock()
        self._lock = threading.Lock()  # start against stop
        self._stopped = False

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to `request`; TimeoutError, or EOFError for a subprocess that has ended. After both it is gone."""
        with self._in_use:
            try:
                process = self.process or self._start()
                deadline = time.monotonic() + request["seconds"]
                process.send(request, deadline)
                return process.receive(deadline)
            except BaseException:
                self._discard()  # its reply would be taken for that to the next request
                raise

    def _start(self) -> JsonProcess:
        with self._lock:
            if self._stopped:
                raise RuntimeError("the grader pool is closed")
            process = self.process = JsonProcess(
                "recipe.amft.tasks.graders.worker", str(self.memory_bytes), environment=os.environ
            )
        try:
            process.receive(time.monotonic() + START_SECONDS)
        except (TimeoutError, EOFError) as error:
            raise RuntimeError(f"a grader's subprocess did not start ({error}): its error output is above") from error
        return process

    def _discard(self) -> None:
        """Ends the subprocess; the next request starts another."""
        with self._lock:
            process, self.process = self.process, None
        if process is not None:
            process.end()

    def stop(self) -> None:
        """Ends the subprocess for good; a thread that waits for its reply sees the end of the pipe."""
        with self._lock:
            self._stopped = True
            if self.process is not None:
                self.process.kill()
        with self._in_use:
            self._discard()
