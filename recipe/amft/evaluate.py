"""`python -m recipe.amft.evaluate model=PATH suite=NAME [overrides]`: sample, judge, record, summarise.

PATH is a Hugging Face folder, a run folder (its final model), or a training checkpoint. `dry_run=true` checks all of it
and says what would be evaluated. docs/evaluation.md explains the suites, the keys and the output.
"""

import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from recipe.amft.evaluation.arguments import CONFIGS, check_arguments, translated
from recipe.amft.process import prepare_process

INTERRUPTED = 143  # exit status after SIGTERM, as a shell reports it


def compose(overrides: list[str] | None = None):
    """The composed configuration for `overrides`, as the command line would give it (for tests and tools)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(CONFIGS), version_base=None):
        return hydra_compose("evaluate", overrides=translated(overrides or []))


@dataclass(frozen=True)
class Evaluation:
    """A checked evaluation, ready to start."""

    settings: Any  # EvaluationSettings
    model: Any  # checkpoints.Model
    plan: Any  # engine.EnginePlan
    content: tuple[Any, ...]  # BenchmarkTasks
    chat: Any  # conversation.Chat
    prompt_lengths: dict[str, list[int]]  # benchmark -> tokens of each first prompt
    folder: Any  # records.EvaluationFolder

    def report(self) -> str:
        """What will be evaluated: rows, samples, and the most tokens that can be generated."""
        lines = [
            f"Evaluation of {self.settings.model_path} ({self.settings.suite}) in {self.folder.path}",
            f"  engine   {self.plan.arguments['dtype']}, context {self.plan.max_model_len:,} tokens",
        ]
        total = most = 0
        for item in self.content:
            benchmark, lengths = item.benchmark, self.prompt_lengths[item.benchmark.name]
            samples = len(item.tasks) * benchmark.samples
            total, most = total + samples, most + samples * benchmark.max_tokens
            lines.append(
                f"  {benchmark.name:<22}{len(item.tasks):>7,} rows x {benchmark.samples} = {samples:,} samples; "
                f"prompts of up to {max(lengths):,} tokens; temperature {benchmark.temperature:g}, at most "
                f"{benchmark.max_tokens:,} tokens a conversation"
            )
        lines.append(f"  in all {total:,} samples, at most {most:,} tokens, where no environment resets a conversation")
        return "\n".join(lines)


def check(config) -> Evaluation:
    """Every check that needs no engine; ValueError says what is wrong and how to mend it."""
    import torch
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from verl.utils.tokenizer import hf_processor, hf_tokenizer

    from recipe.amft.evaluation.checkpoints import find_model
    from recipe.amft.evaluation.conversation import Chat
    from recipe.amft.evaluation.engine import check_extra, plan_engine
    from recipe.amft.evaluation.records import EvaluationFolder, schema
    from recipe.amft.evaluation.settings import settings_from
    from recipe.amft.evaluation.tasks import read_benchmark

    try:
        settings = settings_from(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"the configuration cannot be resolved ({' '.join(str(error).split())}).") from None
    check_extra(settings.engine.extra)
    model = find_model(settings.model_path)
    plan = plan_engine(settings.engine, model.config, torch.cuda.is_available(), settings.seed is not None)
    content = tuple(read_benchmark(item, settings.data_dir, settings.cache_dir) for item in settings.benchmarks)
    tokenizer = hf_tokenizer(str(model.folder))
    if not tokenizer.chat_template:
        raise ValueError(
            f"model={settings.model_path} has no chat template; python -m recipe.amft.data.prepare_model adds one."
        )
    processor = hf_processor(str(model.folder)) if "vision_config" in model.config else None
    chat = Chat(tokenizer, model.config.get("model_type", ""), settings.chat_template_kwargs, processor)
    out = settings.out or f"runs/evaluation/{model.label}/{settings.suite}"
    folder = EvaluationFolder(
        out, identity_of(settings, model, plan, content), schema(settings.benchmarks), settings.overwrite
    )
    folder.check()
    lengths = {item.benchmark.name: check_prompts(item, chat, plan.max_model_len) for item in content}
    return Evaluation(settings, model, plan, content, chat, lengths, folder)


def check_prompts(item, chat, max_model_len: int) -> list[int]:
    """Poses every row once; the tokens of each prompt. ValueError for one that fails, or leaves too little room."""
    from recipe.amft.evaluation.episodes import opening, pose

    benchmark, lengths = item.benchmark, []
    for task in item.tasks:
        try:
            observation = pose(task)[1]
            lengths.append(chat.prompt_length(opening(observation), observation["images"]))
        except Exception as error:  # whatever an environment raises: its row cannot be evaluated
            raise ValueError(
                f"row {task.row_id} of {benchmark.name} cannot be posed by {task.env_id} "
                f"({type(error).__name__}: {error}); mend the row, or suite.benchmarks.{benchmark.name}.env_kwargs."
            ) from error
    longest = max(lengths)
    if longest + benchmark.max_tokens > max_model_len:
        row_id = item.tasks[lengths.index(longest)].row_id
        less = f"max_tokens={max_model_len - longest} or less" if longest < max_model_len else "shorter prompts"
        raise ValueError(
            f"row {row_id} of {benchmark.name}: its prompt has {longest} tokens, and with "
            f"max_tokens={benchmark.max_tokens} that is more than the context of {max_model_len}; give {less}, or a "
            "model with a longer context (engine.max_model_len, docs/data.md)."
        )
    return lengths


def identity_of(settings, model, plan, content) -> dict[str, Any]:
    """Everything that decides what the samples are; not where they are written or how many run at a time."""
    from dataclasses import asdict

    def of_benchmark(item) -> dict[str, Any]:
        values = asdict(item.benchmark)
        for name in ("make", "options", "files", "prepare", "pass_at"):  # the digests say what was read
            values.pop(name)
        return {**values, "rows": len(item.tasks), "files": dict(item.digests)}

    return {
        "model": model.fingerprint(),
        "seed": settings.seed,
        "engine": {"dtype": plan.dtype, "max_model_len": plan.max_model_len, "extra": dict(settings.engine.extra)},
        "chat_template_kwargs": dict(settings.chat_template_kwargs),
        "benchmarks": {item.benchmark.name: of_benchmark(item) for item in content},
    }


def evaluate(evaluation: Evaluation) -> str:
    """Plays what is left, completes the folder; returns the summary's table."""
    import asyncio

    from recipe.amft.evaluation.engine import Engine
    from recipe.amft.evaluation.guardian import guarded
    from recipe.amft.evaluation.records import LOG
    from recipe.amft.evaluation.runner import play

    settings, folder = evaluation.settings, evaluation.folder
    folder.open()
    try:
        total = sum(len(item.tasks) * item.benchmark.samples for item in evaluation.content)
        if folder.done:
            print(f"{len(folder.done):,} of {total:,} samples are there already: {folder.path}", flush=True)
        if len(folder.done) < total:
            weights = evaluation.model.weights_folder(evaluation.plan.dtype, settings.merged_dir)
            print(f"starting vLLM with {weights}", flush=True)
            with guarded(), Engine(weights, evaluation.plan, folder.path / LOG) as engine:
                asyncio.run(
                    play(
                        evaluation.content,
                        folder,
                        evaluation.chat,
                        engine.generate,
                        max_model_len=evaluation.plan.max_model_len,
                        seed=settings.seed,
                        concurrency=settings.concurrency,
                    )
                )
        return finish(evaluation)
    finally:
        folder.close()


def finish(evaluation: Evaluation) -> str:
    """Joins the records and writes the summary; returns its table, with what should not be overlooked."""
    import json

    from recipe.amft.evaluation.records import write_text
    from recipe.amft.evaluation.summary import summarise

    settings, folder = evaluation.settings, evaluation.folder
    records = folder.complete()
    summary = summarise(records, settings.benchmarks, settings.bootstrap, settings.seed or 0, settings.average)
    head = {"model": settings.model_path, "suite": settings.suite}
    write_text(folder.path / "summary.json", json.dumps({**head, **summary.as_dict()}, indent=1) + "\n")
    table = f"{summary.table()}\n"
    title = f"# {settings.suite}: {settings.model_path}\n\n"
    note = f"\n95% intervals: {settings.bootstrap:,} bootstrap resamples of the prompts.\n"
    write_text(folder.path / "summary.md", title + table + note)
    timeouts = sum(counts.timeouts for counts in summary.counts.values())
    if timeouts:
        table += f"\nwarning: {timeouts} answers were not graded within the time limit, and count as wrong.\n"
    failed = sum(counts.failed for counts in summary.counts.values())
    if failed:
        table += (
            f"\nwarning: {failed} samples failed because their environment raised, and count as wrong; column error.\n"
        )
    return f"\n{table}\nwritten to {folder.path}"


def run(config) -> None:
    """Check, evaluate, print; errors of the user are one paragraph and exit status 1."""
    from recipe.amft.evaluation.engine import EngineFailed
    from recipe.amft.evaluation.runner import Stopped

    try:
        evaluation = check(config)
        if config.dry_run:
            print(evaluation.report())
            return
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(INTERRUPTED))  # until the episodes run
        print(evaluate(evaluation))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except EngineFailed as error:
        sys.exit(f"error: {error}; when that is mended, the same command goes on from here")
    except (KeyboardInterrupt, Stopped) as error:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED if isinstance(error, Stopped) else 130)


def main() -> None:
    import hydra

    prepare_process()
    os.environ.setdefault("TQDM_MININTERVAL", "1")
    check_arguments(sys.argv[1:])
    sys.argv[1:] = translated(sys.argv[1:])
    hydra.main(config_path=str(CONFIGS), config_name="evaluate", version_base=None)(run)()


if __name__ == "__main__":
    main()
