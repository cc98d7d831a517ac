"""What a run took: wall seconds and peak memory, in measured.json of its folder."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MEASURED = "measured.json"  # {"seconds": ..., "gib": ...}
LOOK_EVERY = 10  # seconds: a look takes a tenth of a second of a core


class Watch:
    """Time and memory of a process and its descendants, from now on.

    Memory is the largest sum of proportional set sizes (a page that n processes share counts 1/n in each).
    """

    def __init__(self, root: psutil.Process):
        self.root, self.started, self.peak = root, time.monotonic(), 0
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def stop(self) -> None:
        self.ended.set()
        self.watcher.join()

    def write(self, folder: Path) -> None:
        """What it took so far, into `folder / MEASURED`."""
        record = {"seconds": time.monotonic() - self.started, "gib": self.peak / 2**30}
        (folder / MEASURED).write_text(json.dumps(record))

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, tree_bytes(self.root))
            if self.ended.wait(LOOK_EVERY):
                return


@contextmanager
def measured(folder: Path, root: psutil.Process | None = None) -> Iterator[None]:
    """Write what `root`, by default this process, took to `folder / MEASURED` when the block succeeds."""
    watch = Watch(root or psutil.Process())
    try:
        yield
    finally:
        watch.stop()
    watch.write(folder)


def tree_bytes(root: psutil.Process) -> int:
    """Proportional set size of a process and its descendants; those that end meanwhile count nothing."""
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total
