"""Graders in subprocesses with limits: a hostile answer costs its time limit, and never the process that trains.

Each worker is a subprocess (json_process.py), started at its first request and kept. The parent's clock limits the time
of an answer, so that the pool works in any thread and in asyncio; a worker over the limit is killed, and the next
request starts another.
"""

import asyncio
import logging
import os
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from recipe.amft.tasks.graders.answers import answer_part
from recipe.amft.tasks.graders.registry import check_task
from recipe.amft.tasks.graders.verdicts import Verdict, not_judged
from recipe.amft.tasks.graders.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

DEFAULT_SECONDS = 5.0


class GraderPool:
    """`num_workers` graders in subprocesses; a context manager, closed at the interpreter's exit at the latest.

    Args:
        seconds: limit for one answer, by the clock on the wall; a request may set its own.
        memory_gib: how far a worker's address space may grow over its size after the imports.

    `counters`: answers graded, timeouts (worker killed), crashes (worker died, or the grader raised). An answer whose
    worker dies is tried once more, for the worker may have died of something else.
    """

    def __init__(self, num_workers: int = 2, seconds: float = DEFAULT_SECONDS, memory_gib: float = 2.0):
        if num_workers < 1 or seconds <= 0 or memory_gib <= 0:
            raise ValueError(
                "num_workers must be 1 or more, seconds and memory_gib above 0; "
                f"got {num_workers!r}, {seconds!r}, {memory_gib!r}"
            )
        self.num_workers, self.seconds = num_workers, seconds
        self._workers = [WorkerProcess(int(memory_gib * 2**30)) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()  # the last used first: others start when needed
        for worker in reversed(self._workers):
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="grader")
        self._counters: Counter[str] = Counter(graded=0, timeouts=0, crashes=0)
        self._lock = threading.Lock()
        self._process_id = os.getpid()
        self._finalizer = weakref.finalize(self, _stop_workers, self._workers, self._process_id)

    @property
    def counters(self) -> dict[str, int]:
        """How many answers were graded, ran out of time, or crashed a grader, since the start."""
        with self._lock:
            return dict(self._counters)

    @property
    def process_ids(self) -> list[int]:
        """The workers that run now."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def grade(
        self,
        response: str,
        ground_truth: str,
        grader: str = "math_verify",
        *,
        require_think: bool = False,
        choices: str = "",
        seconds: float | None = None,
    ) -> Verdict:
        """`graders.grade` in a worker; waits for a free one first, which does not count against `seconds`."""
        check_task(ground_truth, grader, choices)
        if os.getpid() != self._process_id:
            raise RuntimeError("a GraderPool cannot be used in a forked process; make one there, or use shared_pool()")
        answer, reason = answer_part(response, require_think)
        if reason:
            self._count("graded")
            return not_judged(reason)
        request = {
            "answer": answer,
            "ground_truth": ground_truth,
            "grader": grader,
            "choices": choices,
            "seconds": self.seconds if seconds is None else seconds,
        }
        worker = self._idle.get()
        try:
            return self._ask(worker, request)
        finally:
            self._idle.put(worker)

    async def grade_async(
        self, response: str, ground_truth: str, grader: str = "math_verify", **options: Any
    ) -> Verdict:
        """`grade` without blocking the event loop."""
        call = partial(self.grade, response, ground_truth, grader, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def grade_many(self, tasks: Iterable[Sequence[str]], grader: str = "math_verify", **options: Any) -> list[Verdict]:
        """Grades (response, ground truth) pairs on all workers; verdicts in the order of the pairs."""
        return list(self._threads.map(lambda task: self.grade(task[0], task[1], grader, **options), tasks))

    def _ask(self, worker: WorkerProcess, request: dict[str, Any]) -> Verdict:
        for _ in range(2):
            try:
                verdict = Verdict(**worker.ask(request))
            except TimeoutError:
                self._count("graded", "timeouts")
                return not_judged("timeout")
            except (EOFError, OSError) as error:
                self._count("crashes")
                logger.warning("a grader's worker died (%s) on an answer to %r", error, request["ground_truth"])
                continue
            self._count("graded", *(["crashes"] if verdict.reason == "crashed" else []))
            return verdict
        self._count("graded")
        return not_judged("crashed")

    def _count(self, *names: str) -> None:
        with self._lock:
            self._counters.update(names)
            timeouts = self._counters["timeouts"]
        if "timeouts" in names and timeouts & (timeouts - 1) == 0:  # at 1, 2, 4, 8, ...
            logger.warning("%d answers have been graded wrong for the time limit so far", timeouts)

    def close(self) -> None:
        """Ends the workers; an answer that is being graded raises RuntimeError."""
        self._finalizer()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _stop_workers(workers: list[WorkerProcess], process_id: int) -> None:
    if os.getpid() == process_id:  # in a forked child they are the parent's
        for worker in workers:
            worker.stop()


_shared: GraderPool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> GraderPool:
    """The pool of this process, made at the first call (and anew in a forked process)."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared._process_id != os.getpid():
            _shared = GraderPool()
        return _shared
