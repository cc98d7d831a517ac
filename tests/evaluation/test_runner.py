"""Playing all samples of an evaluation: seeds, failures, interruption and resume, with a scripted engine."""

import asyncio
import io
import os
import random
import signal
import sys

import pyarrow.parquet as pq
import pytest

from recipe.amft.evaluation import runner
from recipe.amft.evaluation.episodes import Generation
from recipe.amft.evaluation.records import EvaluationFolder, schema
from recipe.amft.evaluation.runner import Stopped, play, request_seed
from recipe.amft.evaluation.settings import Benchmark
from recipe.amft.evaluation.tasks import BenchmarkTasks, Task

NUM_ROWS, SAMPLES = 6, 4


def content(behaviours=("",) * NUM_ROWS, **changes):
    benchmark = Benchmark("echo", files=("echo.parquet",), samples=SAMPLES, max_tokens=60, **changes)
    tasks = [
        Task("echo", f"echo/{index}", "misbehaving:Echo", {"behaviour": behaviour}, index, {})
        for index, behaviour in enumerate(behaviours)
    ]
    return (BenchmarkTasks(benchmark, tuple(tasks), {}),)


class Engine:
    """Answers from the request's seed alone, in an order of its own; raises `failure()` after so many answers."""

    def __init__(self, tokenizer, failure=None, after=0):
        self.tokenizer, self.failure, self.after, self.num_answers = tokenizer, failure, after, 0

    async def __call__(self, prompt, max_tokens, benchmark, seed, images):
        draws = random.Random(seed)
        for _ in range(draws.randrange(5)):
            await asyncio.sleep(0)
        self.num_answers += 1
        if self.failure is not None and self.num_answers > self.after:
            self.failure()
            await asyncio.sleep(60)
        text = draws.choice(["yes", "no", "maybe"])
        return Generation([*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id], False)


def run(path, chat, engine, items, concurrency=5):
    """The rows of the records, or what ended the evaluation."""
    folder = EvaluationFolder(path, {"test": 1}, schema([item.benchmark for item in items]))
    folder.open()
    try:
        asyncio.run(play(items, folder, chat, engine, max_model_len=400, seed=3, concurrency=concurrency))
        return pq.read_table(folder.complete()).to_pylist()
    finally:
        folder.close()


def test_every_sample_is_played_once_whatever_the_concurrency(tmp_path, chat, tokenizer):
    """6 rows x 4 samples; the records do not depend on how many episodes run at a time."""
    one = run(tmp_path / "one", chat, Engine(tokenizer), content(), concurrency=1)
    many = run(tmp_path / "many", chat, Engine(tokenizer), content(), concurrency=100)
    assert one == many
    assert [(row["row_id"], row["sample"]) for row in one] == [
        (f"echo/{row}", sample) for row in range(NUM_ROWS) for sample in range(SAMPLES)
    ]
    assert len({tuple(row["texts"]) for row in one}) > 2


def test_seeds_tell_samples_and_turns_apart():
    """Row, sample and turn each change the seed; no seed asks for no seed."""
    seeds = {request_seed(0, row, sample, turn) for row in "ab" for sample in (0, 1) for turn in (0, 1)}
    assert len(seeds) == 8
    assert request_seed(1, "a", 0, 0) not in seeds
    assert request_seed(0, "a", 0, 0) == request_seed(0, "a", 0, 0)
    assert request_seed(None, "a", 0, 0) is None


def test_an_environment_that_crashes_costs_its_samples_only(tmp_path, chat, tokenizer):
    """The rows that raise are recorded as failed; the others have the answers they have without them."""
    behaviours = ["", "step raises", "", "stop iteration", "", ""]
    rows = run(tmp_path / "mixed", chat, Engine(tokenizer), content(behaviours))
    healthy = run(tmp_path / "healthy", chat, Engine(tokenizer), content())
    assert len(rows) == NUM_ROWS * SAMPLES
    failed = {row["row_id"] for row in rows if row["stop_reason"] == "error"}
    assert failed == {"echo/1", "echo/3"}
    assert all(row["success"] is False and row["error"] for row in rows if row["row_id"] in failed)
    assert [row for row in rows if row["row_id"] not in failed] == [
        row for row in healthy if row["row_id"] not in failed
    ]


def died():
    raise RuntimeError("the engine died")


@pytest.mark.parametrize(
    ("failure", "raised"), [(died, RuntimeError), (lambda: os.kill(os.getpid(), signal.SIGTERM), Stopped)]
)
def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, chat, tokenizer, failure, raised):
    """After a dead engine or SIGTERM what had ended is on disk; again, only the rest is played, to equal records."""
    whole = run(tmp_path / "whole", chat, Engine(tokenizer), content())
    with pytest.raises(raised):
        run(tmp_path / "broken", chat, Engine(tokenizer, failure, after=25), content())
    found = EvaluationFolder(tmp_path / "broken", {"test": 1}, schema([content()[0].benchmark]))
    found.open()
    num_done = len(found.done)
    found.close()
    assert 0 < num_done < NUM_ROWS * SAMPLES
    engine = Engine(tokenizer)
    assert run(tmp_path / "broken", chat, engine, content()) == whole
    needed = sum(row["turns"] for row in whole)
    assert needed - 26 <= engine.num_answers < needed


def test_a_finished_evaluation_asks_the_engine_for_nothing(tmp_path, chat, tokenizer):
    """Played again, no request is made."""
    rows = run(tmp_path / "out", chat, Engine(tokenizer), content())
    engine = Engine(tokenizer)
    assert run(tmp_path / "out", chat, engine, content()) == rows
    assert engine.num_answers == 0


def test_progress_is_lines_in_a_log_and_a_bar_on_a_terminal(tmp_path, chat, tokenizer, capsys, monkeypatch):
    """Samples that have ended of all, with the success so far; a resumed evaluation counts on from what is there."""
    monkeypatch.setattr(runner, "FLUSH_SAMPLES", 6)
    with pytest.raises(RuntimeError):
        run(tmp_path / "out", chat, Engine(tokenizer, died, after=25), content())
    run(tmp_path / "out", chat, Engine(tokenizer), content())
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    counts = [int(line.split()[0]) for line in shown if " of 24 samples, success " in line]
    assert counts[:1] == [6]
    assert counts == sorted(counts)
    assert 6 < counts[-1] <= 24

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    rows = run(tmp_path / "bar", chat, Engine(tokenizer), content())
    right = sum(row["success"] for row in rows) / len(rows)
    assert "24/24" in sys.stderr.getvalue()
    assert f"success {right:.1%}" in sys.stderr.getvalue()
    assert " of 24 samples" not in capsys.readouterr().out


def test_records_hold_what_was_said(tmp_path, chat, tokenizer):
    """Tokens, texts and turns of a record agree; the prompt is shown with its template."""
    for row in run(tmp_path / "out", chat, Engine(tokenizer), content(max_turns=3)):
        assert row["turns"] == len(row["texts"]) == len(row["turn_lengths"])
        assert len(row["observations"]) == row["turns"] - (row["stop_reason"] != "turns")
        assert row["num_tokens"] == sum(row["turn_lengths"]) == len(row["token_ids"])
        assert tokenizer.decode(row["token_ids"]) == "".join(f"{text}<|im_end|>" for text in row["texts"])
        assert row["prompt"] == "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
        assert row["success"] == (row["texts"][-1] == "yes") == (row["stop_reason"] == "terminated")
        assert row["reward"] == float(row["success"])
