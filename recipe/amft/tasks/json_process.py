"""A subprocess that is asked and answers on two pipes, one JSON object a line, with deadlines on the parent's clock.

A plain `python -m` and no fork: the processes that start one have threads.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
MAX_REPLY_BYTES = 1 << 20


class JsonProcess(subprocess.Popen[bytes]):
    """`python -P -m MODULE ARGUMENTS`, which writes a line when it is ready.

    Deadlines are values of `time.monotonic`. After an error the next reply may be that to an earlier request: `end` it.

    Args:
        module, arguments: what runs.
        environment: its variables; this repository comes first in PYTHONPATH.
        options: further ones of `subprocess.Popen`.
    """

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str], **options: Any):
        path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        super().__init__(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**environment, "PYTHONPATH": path},
            **options,
        )
        os.set_blocking(self.stdin.fileno(), False)

    def send(self, message: Mapping[str, Any], deadline: float) -> None:
        """Write as the other side reads, for a message may be longer than a pipe's buffer.

        TimeoutError at the deadline, EOFError when the subprocess has ended.
        """
        data = json.dumps(message).encode() + b"\n"
        while data:
            _wait(self.stdin.fileno(), select.POLLOUT, deadline)
            try:
                data = data[os.write(self.stdin.fileno(), data) :]
            except BrokenPipeError as error:
                raise EOFError(str(error)) from None

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next line; TimeoutError at the deadline, EOFError when there is none or it is too long."""
        received = b""
        while not received.endswith(b"\n"):
            _wait(self.stdout.fileno(), select.POLLIN, deadline)
            chunk = os.read(self.stdout.fileno(), 1 << 16)
            if not chunk:
                raise EOFError(f"exit status {self.wait()}")
            received += chunk
            if len(received) > MAX_REPLY_BYTES:
                raise EOFError("its reply is too long")
        message: dict[str, Any] = json.loads(received)
        return message

    def end(self) -> None:
        """Kill it, and close the pipes."""
        self.kill()
        self.wait()
        self.stdin.close()
        self.stdout.close()


def _wait(descriptor: int, event: int, deadline: float) -> None:
    """Return when `descriptor` is ready for `event` or its other end is closed; TimeoutError at the deadline."""
    poll = select.poll()
    poll.register(descriptor, event)
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise TimeoutError("no reply in time")
