r"""The grader pool: hostile text costs bounded time in any thread, and no worker is lost, shared or left behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recipe.amft.tasks.graders import REASONS, GraderPool

REPOSITORY = Path(__file__).resolve().parents[2]
LATE_SECONDS = 8.0  # a killed worker, its successor's start and a busy machine; far below the hours that a hang takes
SLOW = r"\boxed{\prod_{n=1}^{100000} n^{n}}"  # within the caps, and hours to compute


HOSTILE = {
    "million characters": "x" * 10**6,
    "million digits": "1" * 10**6,
    "million dollars": "$ " * 500_000,
    "boxes in boxes": r"\boxed{" * 10**5,
    "braces": r"\boxed{" + "{" * 10**4 + "1" + "}" * 10**4 + "}",
    "parentheses": r"\boxed{" + "(" * 1800 + "1" + ")" * 1800 + "}",
    "fractions": r"\boxed{" + r"\frac" * 700 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 19 + "x" + "}" * 19 + "}",
    "tower": r"\boxed{9^{9^{9^{9}}}}",
    "tower, no box": "The answer is 9^9^9^9.",
    "factorial": r"\boxed{10^{10^{10}}!}",
    "hidden tower": r"\boxed{9^{9*9*9*9*9*9*9*9*9*9*9}}",
    "exponentials": r"\boxed{e^{e^{e^{e^{e^{e}}}}}}",
    "product": SLOW,
    "infinite sum": r"\boxed{\sum_{n=1}^{\infty} \frac{1}{n^2 + n + 1}}",
    "infinite product": r"\boxed{\prod_{n=2}^{\infty} (1 - n^{-n})}",
    "endless roots": r"\boxed{\sqrt{2+\sqrt{2+\sqrt{2+\cdots}}}}",
    "endless decimals": r"\boxed{16.9999\ldots}",
    "integral": r"\boxed{\int_0^{\infty} \frac{\sin(x^x)}{x + e^{x^2}} dx}",
    "limit": r"\boxed{\lim_{n \to \infty} (1 + n^{-n})^{n^n}}",
    "display brackets": r"\[\boxed{1} " * 300,
    "scientific": r"\boxed{1e999999999}",
    "surrogates": "\ud800\x00\\boxed{\ud800}" * 100,
    "statements": "the answer is " * 10**5,
}


@pytest.mark.parametrize("grader", ["math_verify", "oat"])
@pytest.mark.parametrize("in_thread", [False, True], ids=["main thread", "other thread"])
def test_hostile_text_returns_in_time(in_thread, grader):
    """Not correct, within the limit, in and off the main thread; and the next answer is graded right."""
    with GraderPool(2, seconds=0.5) as pool, ThreadPoolExecutor(2) as threads:
        pool.grade("1", "1")  # the start of the first worker is not measured
        for name, response in HOSTILE.items():
            start = time.monotonic()
            task = (response, "C", "letter") if name == "statements" else (response, "17", grader)
            verdict = threads.submit(pool.grade, *task).result() if in_thread else pool.grade(*task)
            assert time.monotonic() - start < LATE_SECONDS, name
            assert not verdict.correct, name
            assert verdict.reason in REASONS, name
        assert pool.grade(r"\boxed{17}", "17", seconds=LATE_SECONDS).correct
        assert pool.counters["timeouts"] >= 1
        assert pool.counters["crashes"] == 0


def test_time_limit_replaces_the_worker():
    """The verdict is `timeout`, it is counted, the worker is another process afterwards, and nothing stays behind."""
    with GraderPool(1) as pool:
        assert pool.grade(r"\boxed{4}", "4").correct
        (before,) = pool.process_ids
        assert pool.grade(SLOW, "4", seconds=0.3).reason == "timeout"
        assert pool.process_ids == []
        assert not _alive(before)
        assert pool.grade(r"\boxed{4}", "4").correct
        (after,) = pool.process_ids
        assert after != before
        assert pool.counters == {"graded": 3, "timeouts": 1, "crashes": 0}
    assert not _alive(after)
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade(r"\boxed{4}", "4")


def test_killed_worker_is_replaced_and_its_answer_graded_again():
    """A worker that dies of something else (an out-of-memory killer) costs nothing but a count."""
    with GraderPool(1) as pool:
        pool.grade("1", "1")
        os.kill(pool.process_ids[0], signal.SIGKILL)  # while idle
        assert pool.grade(r"\boxed{4}", "4").correct
        (worker,) = pool.process_ids
        killer = threading.Timer(0.5, os.kill, (worker, signal.SIGKILL))  # in the middle of an answer
        killer.start()
        assert pool.grade(SLOW, "4", seconds=1.5).reason == "timeout"  # at the second attempt
        assert pool.counters == {"graded": 3, "timeouts": 1, "crashes": 2}


def test_close_ends_a_running_grader():
    """close() does not wait for an answer: its thread gets an error and the subprocess is gone."""
    pool = GraderPool(1)
    pool.grade("1", "1")
    (worker,) = pool.process_ids
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(pool.grade, SLOW, "4", seconds=60.0)
        time.sleep(0.2)
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            running.result(timeout=LATE_SECONDS)
    assert not _alive(worker)


@pytest.mark.parametrize("end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "kill"])
def test_workers_end_with_their_process(end):
    """No worker outlives a process that forgot to close its pool, or that was killed."""
    code = (
        "from recipe.amft.tasks.graders import shared_pool\n"
        "shared_pool().grade('1', '1'); print(*shared_pool().process_ids, flush=True)\n" + end
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    (worker,) = map(int, output.stdout.split())
    deadline = time.monotonic() + LATE_SECONDS
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)
    assert output.stderr == ""


def test_asyncio():
    """Answers are graded side by side while the event loop goes on."""

    async def run(pool):
        ticks = 0
        tasks = [asyncio.ensure_future(pool.grade_async(rf"\boxed{{{n}}}", "3", seconds=60)) for n in range(20)]
        slow = asyncio.ensure_future(pool.grade_async(SLOW, "3", seconds=0.5))
        while not slow.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, [verdict.correct for verdict in await asyncio.gather(*tasks)], await slow

    with GraderPool(2) as pool:
        ticks, correct, slow = asyncio.run(run(pool))
    assert correct == [n == 3 for n in range(20)]
    assert slow.reason == "timeout"
    assert ticks > 5


def test_worker_memory_is_limited():
    """The address space of a worker may grow by the given amount and no more."""
    with GraderPool(1, memory_gib=0.5) as pool:
        pool.grade("1", "1")
        limits = Path(f"/proc/{pool.process_ids[0]}/limits").read_text()
        size = int(Path(f"/proc/{pool.process_ids[0]}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = int(re.search(r"Max address space\s+(\d+)", limits).group(1))
        assert 0 < limit - size <= 0.5 * 2**30


def _alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # an ended process whose new parent has not collected it yet
