"""What there is of a point on the disk: nothing, some steps, a finished run, and its evaluations."""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recipe.amft.run_folder import FINISHED, METRICS
from recipe.amft.sweeps.points import Point

EVALUATION = "evaluation"  # folder of a run folder, one evaluation folder a suite
LOGS = ".logs"  # of the folder of all runs: what the points print, and the locks of those that run


@dataclass(frozen=True)
class State:
    """What is left of a point.

    Attributes:
        trained: whether the run has finished (a base model needs none).
        step: the last step that was measured; None when there is none.
        suites: evaluations that are left.
        running: whether a process of this machine, or of one that shares its locks, is at it.
    """

    trained: bool
    step: int | None
    suites: tuple[str, ...]
    running: bool

    @property
    def finished(self) -> bool:
        return self.trained and not self.suites

    def __str__(self) -> str:
        if self.finished:
            return "finished"
        if self.trained:
            left = f"trained, to evaluate: {', '.join(self.suites)}"
        else:
            left = "not started" if self.step is None else f"stopped after step {self.step}"
        return f"running ({left})" if self.running else left


def state_of(point: Point, suites: Sequence[str], runs: Path) -> State:
    folder = runs / point.folder
    trained = point.method is None or (folder / FINISHED).exists()
    step = None
    if not trained and (folder / METRICS).exists():
        lines = (folder / METRICS).read_text().splitlines()
        step = json.loads(lines[-1])["step"] if lines else None
    left = tuple(suite for suite in suites if not (folder / EVALUATION / suite / "summary.json").exists())
    return State(trained, step, left, is_locked(lock_of(point, runs)))


def lock_of(point: Point, runs: Path) -> Path:
    return log_of(point, runs).with_suffix(".lock")


def log_of(point: Point, runs: Path) -> Path:
    return runs / LOGS / f"{point.folder.replace('/', '_')}.log"


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # a file system without locks
    return False


@contextmanager
def taken(path: Path) -> Iterator[int | None]:
    """Takes the lock of a point: its file descriptor, or None while somebody else is at the point.

    The lock lasts as long as a process has the descriptor open: a run that inherits it keeps it when we are killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError:
            pass  # a file system without locks: nobody is kept out
        yield file.fileno()
