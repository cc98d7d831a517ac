"""Plays the episodes that are left, many at a time, and writes each as it ends."""

import asyncio
import signal
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from recipe.amft.evaluation.conversation import Chat
from recipe.amft.evaluation.episodes import Episode, Generation, Limits, Policy, run_episode
from recipe.amft.evaluation.records import EvaluationFolder, Record
from recipe.amft.evaluation.settings import Benchmark
from recipe.amft.evaluation.tasks import BenchmarkTasks, Task

FLUSH_SAMPLES, FLUSH_SECONDS = 256, 20.0  # a killed evaluation loses what ended since the last part

# (prompt, max_tokens, benchmark, seed, images) -> answer
Generate = Callable[[Sequence[int], int, Benchmark, int | None, Sequence[Any]], Awaitable[Generation]]


class Stopped(Exception):
    """The process was told to end (SIGTERM); what had ended is on disk."""


def request_seed(seed: int | None, row_id: str, sample: int, turn: int) -> int | None:
    """The seed of one answer, from what it is and not from when it is asked for, as in verl_ext/agent_loop.py."""
    return None if seed is None else zlib.crc32(f"{seed}/{row_id}/{sample}/{turn}".encode())


def samples_left(content: Sequence[BenchmarkTasks], folder: EvaluationFolder) -> Iterator[tuple[Benchmark, Task, int]]:
    """Samples of one prompt follow each other, so that the engine finds its prefix in the cache."""
    for item in content:
        for task in item.tasks:
            for sample in range(item.benchmark.samples):
                if (task.benchmark, task.row_id, sample) not in folder.done:
                    yield item.benchmark, task, sample


async def play(
    content: Sequence[BenchmarkTasks],
    folder: EvaluationFolder,
    chat: Chat,
    generate: Generate,
    *,
    max_model_len: int,
    seed: int | None,
    concurrency: int,
) -> None:
    """Plays every sample that `folder` lacks. What `generate` raises ends it; so does SIGTERM, as Stopped."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    stopping = []

    def stop() -> None:
        stopping.append(True)
        main.cancel()

    total = sum(len(item.tasks) * item.benchmark.samples for item in content)
    left = samples_left(content, folder)
    progress = Progress(total, len(folder.done), folder)
    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        # One thread: environments are called one at a time, as in training, and the event loop goes on meanwhile.
        with ThreadPoolExecutor(1, thread_name_prefix="environment") as executor:

            async def worker() -> None:
                for benchmark, task, sample in left:
                    limits = Limits(benchmark.max_tokens, max_model_len, benchmark.max_turns)
                    policy = policy_of(generate, seed, benchmark, task, sample)
                    episode = await run_episode(task, chat, policy, limits, executor, benchmark.judge_again)
                    folder.add(record_of(episode, benchmark, task, sample, chat, folder.columns.names))
                    progress.ended(episode)

            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, total - len(folder.done))):
                    group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    except asyncio.CancelledError:
        if stopping:
            raise Stopped from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        folder.flush()
        progress.close()


def policy_of(generate: Generate, seed: int | None, benchmark: Benchmark, task: Task, sample: int) -> Policy:
    """The engine as the policy of one sample."""

    async def policy(prompt: Sequence[int], max_tokens: int, turn: int, images: Sequence[Any]) -> Generation:
        return await generate(prompt, max_tokens, benchmark, request_seed(seed, task.row_id, sample, turn), images)

    return policy


def record_of(
    episode: Episode, benchmark: Benchmark, task: Task, sample: int, chat: Chat, columns: Sequence[str]
) -> Record:
    """The row of the records; columns that belong to other benchmarks are null."""
    info: Mapping[str, object] = episode.info
    first = episode.contexts[0].prompt if episode.contexts else []
    record: Record = dict.fromkeys(columns)
    record |= {
        "benchmark": benchmark.name,
        "row_id": task.row_id,
        "sample": sample,
        "success": episode.success,
        "reward": episode.reward,
        "verdict": str(info.get("verdict", "")),
        "stop_reason": episode.stop_reason,
        "turns": len(episode.texts),
        "num_tokens": sum(episode.turn_lengths),
        "num_timeouts": episode.num_timeouts,
        "error": episode.error,
        "prompt": chat.show(first),
        "texts": episode.texts,
        "observations": episode.observations,
        "token_ids": np.array(episode.token_ids, dtype=np.int32),
        "turn_lengths": np.array(episode.turn_lengths, dtype=np.int32),
        "info": episode.info_text(),
    }
    for judge in benchmark.judge_again:
        record[f"success_{judge}"], record[f"verdict_{judge}"] = episode.verdicts.get(judge, (False, "error"))
    for metric, weight in benchmark.metrics.items():
        for name in (metric, weight):
            if name is not None:
                value = info.get(name)
                record[name] = float(value) if isinstance(value, int | float) else None
    return record


class Progress:
    """A bar on a terminal, lines elsewhere; writes a part when enough has ended or enough time has passed."""

    def __init__(self, total: int, done: int, folder: EvaluationFolder):
        self.folder = folder
        self.bar = tqdm(total=total, initial=done, unit="sample", desc="evaluating", dynamic_ncols=True, disable=None)
        self.num_ended, self.num_right, self.num_failed = 0, 0, 0
        self.total, self.before = total, done
        self.since_flush, self.flushed = 0, time.monotonic()

    def ended(self, episode: Episode) -> None:
        self.num_ended += 1
        self.num_right += episode.success
        self.num_failed += bool(episode.error)
        self.since_flush += 1
        self.bar.set_postfix_str(self.state(), refresh=False)
        self.bar.update()
        if self.since_flush >= FLUSH_SAMPLES or time.monotonic() - self.flushed >= FLUSH_SECONDS:
            self.folder.flush()
            self.since_flush, self.flushed = 0, time.monotonic()
            if self.bar.disable:
                print(f"  {self.before + self.num_ended:,} of {self.total:,} samples, {self.state()}", flush=True)

    def state(self) -> str:
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        return f"success {self.num_right / self.num_ended:.1%}{failed}"

    def close(self) -> None:
        self.bar.close()
