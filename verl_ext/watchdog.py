"""Ends a run whose workers have stopped answering, with a message, instead of letting it hang."""

import faulthandler
import os
import sys
import threading
from contextlib import contextmanager


class Watchdog:
    """Limit on the duration of a phase.

    Ray calls of verl have no time limit: when vLLM fails inside a weight sync, the trainer waits for ever. A phase that
    is over its limit ends this process with status `EXIT_STATUS`, after `on_expiry` had a chance to clean up.
    """

    EXIT_STATUS = 70

    def __init__(self, limit_seconds: float, on_expiry=None):
        self.limit_seconds = limit_seconds
        self.on_expiry = on_expiry

    @contextmanager
    def phase(self, name: str):
        timer = threading.Timer(self.limit_seconds, self._expire, args=(name,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self, name: str) -> None:
        print(
            f"\nerror: the phase {name!r} did not finish within {self.limit_seconds:.0f} s; a worker has stopped "
            "answering. The run ends here and can be resumed from its last checkpoint. The workers' logs name the "
            "cause; amft.limits.phase_seconds sets this limit.",
            file=sys.__stderr__,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=False)
        try:
            if self.on_expiry is not None:
                self.on_expiry()
        finally:
            os._exit(self.EXIT_STATUS)
