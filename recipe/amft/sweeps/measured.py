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


@contextmanager
def measured(folder: Path, root: psutil.Process | None = None) -> Iterator[None]:
    """Write `folder / MEASURED` when the block succeeds.

    Memory is the largest sum of proportional set sizes (a page that n processes share counts 1/n in each) of `root`, by
    default this process, and its descendants.
    """
    root = root or psutil.Process()
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, tree_bytes(root))
            if ended.wait(LOOK_EVERY):
                return

    started = time.monotonic()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    record = {"seconds": time.monotonic() - started, "gib": peak / 2**30}
    (folder / MEASURED).write_text(json.dumps(record))


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
