"""The parent's side of a grader's subprocess (worker.py): start, ask with a time limit, kill."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
ROOT = Path(__file__).resolve().parents[4]


class WorkerDiedError(RuntimeError):
    """The subprocess ended while it had a request."""


class WorkerProcess:
    """One subprocess, (re)started at the first request after its end. One thread at a time."""

    def __init__(self, memory_bytes: int):
        self.memory_bytes = memory_bytes
        self.process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._in_use = threading.Lock()
        self._lock = threading.Lock()  # start against stop
        self._stopped = False

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to `request`; TimeoutError or WorkerDiedError, after which the subprocess is gone."""
        with self._in_use:
            try:
                process = self.process or self._start()
                line = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
                os.write(process.stdin.fileno(), line)  # an idle worker reads at once; one that died raises
                return self._reply(process, request["seconds"])
            except TimeoutError:
                self._discard()
                raise
            except OSError as error:
                self._discard()
                raise WorkerDiedError(str(error)) from error
            except BaseException:
                self._discard()  # its reply would be taken for that to the next request
                raise

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self._lock:
            if self._stopped:
                raise RuntimeError("the grader pool is closed")
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "recipe.amft.tasks.graders.worker", str(self.memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            self._reply(self.process, START_SECONDS)
        except (TimeoutError, WorkerDiedError) as error:
            raise RuntimeError(f"a grader's subprocess did not start ({error}): its error output is above") from error
        return self.process

    def _reply(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        poll = select.poll()
        poll.register(process.stdout.fileno(), select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                raise TimeoutError(f"no reply within {seconds} s")
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise WorkerDiedError(f"exit status {process.wait()}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _discard(self) -> None:
        """Ends the subprocess; the next request starts another."""
        with self._lock:
            process, self.process, self._received = self.process, None, b""
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def stop(self) -> None:
        """Ends the subprocess for good; a thread that waits for its reply sees the end of the pipe."""
        with self._lock:
            self._stopped = True
            if self.process is not None:
                self.process.kill()
        with self._in_use:
            self._discard()
