"""Ends the processes of an evaluation that is killed: vLLM's own outlive a parent that gets SIGKILL.

    with guarded():
        ...  # start and use processes

A guardian process remembers the descendants of this one, and kills those that are left when this one is gone.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

POLL_SECONDS = 1.0


@contextlib.contextmanager
def guarded() -> Iterator[subprocess.Popen[bytes]]:
    """Descendants of this process that are started inside do not outlive it by more than seconds."""
    command = [sys.executable, __file__, str(psutil.Process().pid)]
    # A session of its own: Ctrl-C is for the evaluation, which ends its processes itself.
    guardian = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield guardian
    finally:
        guardian.kill()
        guardian.wait()


def watch(parent: psutil.Process) -> None:
    """Returns when `parent` has ended and none of its descendants is left, apart from this process."""
    family: dict[int, psutil.Process] = {}
    while alive(parent):
        with contextlib.suppress(psutil.Error):
            family |= {child.pid: child for child in parent.children(recursive=True)}
        time.sleep(POLL_SECONDS)
    for child in family.values():
        with contextlib.suppress(psutil.Error):
            for process in [*child.children(recursive=True), child]:
                if process.pid != psutil.Process().pid:
                    process.kill()  # not another one that has got its number: psutil compares the time of its start


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and waits to be noticed does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    with contextlib.suppress(psutil.NoSuchProcess):
        watch(psutil.Process(int(sys.argv[1])))
