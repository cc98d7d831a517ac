"""Checks of whole splits that need a tokenizer or a grader: lengths, and targets that their own reward rejects."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.amft.data.rows import BadRow, target_text

Row = dict[str, Any]
GRADED_AT_ONCE = 512
MOST_WORKERS = 16


@dataclass(frozen=True)
class Limits:
    """Longest prompt and target; None: any length. Bytes need no tokenizer, and no byte-level one makes more tokens."""

    max_prompt_tokens: int | None = None
    max_target_tokens: int | None = None
    max_prompt_bytes: int | None = None
    max_target_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more; leave it out for no limit.")


class Lengths:
    """A row's tokens as training counts them: prompt with the generation prompt, target with its end of text."""

    def __init__(self, folder: str):
        from transformers import AutoTokenizer

        if not Path(folder).is_dir():
            raise ValueError(f"tokenizer={folder!r} is not a folder; give the folder of the model to be trained.")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"tokenizer={folder!r} cannot be loaded ({reason}); give a model's folder.") from None
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"tokenizer={folder!r} has no chat template; prepare the model first: "
                "python -m recipe.amft.data.prepare_model."
            )

    def __call__(self, row: Row) -> tuple[int, int]:
        """(prompt tokens, target tokens or 0); a <think> that the template has already written is not counted again."""
        prompt = str(self.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False))
        text = target_text(row)
        for start in ("<think>\n", "<think>"):
            if prompt.endswith(start) and text.startswith(start):
                text = text.removeprefix(start)
                break
        return self._count(prompt), self._count(text) + 1 if row["target"] else 0

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def check_lengths(row: Row, limits: Limits, tokens: tuple[int, int] | None) -> None:
    """BadRow names the length and the limit."""
    prompt = "".join(message["content"] for message in row["prompt"])
    counted = [
        ("prompt", "bytes", len(prompt.encode()), limits.max_prompt_bytes),
        ("target", "bytes", len(target_text(row).encode()), limits.max_target_bytes),
    ]
    if tokens is not None:
        counted.append(("prompt", "tokens", tokens[0], limits.max_prompt_tokens))
        counted.append(("target", "tokens", tokens[1], limits.max_target_tokens))
    for what, unit, length, limit in counted:
        if limit is not None and length > limit:
            raise BadRow(f"long_{what}", f"its {what} has {length:,} {unit}; the limit is {limit:,}")


def statistics_of(lengths: Sequence[int]) -> dict[str, float]:
    """Mean, quantiles and extremes of a list of lengths."""
    ordered = sorted(lengths)
    at = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)}
    return {"min": ordered[0], "mean": round(statistics.fmean(ordered), 1), **at, "max": ordered[-1]}


def rejected_targets(rows: Sequence[Row], split: str) -> dict[int, str]:
    """Index -> why, for each demonstration that the row's own reward would not accept; graded in subprocesses."""
    from tqdm import tqdm

    from recipe.amft.tasks.graders import GraderPool

    indices = [index for index, row in enumerate(rows) if row["target"]]
    rejected: dict[int, str] = {}
    if not indices:
        return rejected
    bar = tqdm(total=len(indices), desc=f"grading {split} targets", unit="row", disable=None, leave=False)
    with GraderPool(num_workers=min(os.cpu_count() or 1, MOST_WORKERS)) as pool, bar:
        for start in range(0, len(indices), GRADED_AT_ONCE):
            chunk = indices[start : start + GRADED_AT_ONCE]
            for index, verdict in zip(chunk, _grade(pool, [rows[index] for index in chunk]), strict=True):
                if not verdict.correct:
                    truth = rows[index]["reward_model"]["ground_truth"]
                    rejected[index] = (
                        f"the grader rejects its target ({verdict.reason}: read {verdict.extracted!r}, ground truth "
                        f"{truth!r})"
                    )
            bar.update(len(chunk))
    return rejected


def _grade(pool: Any, rows: Sequence[Row]) -> list[Any]:
    """Verdicts in the order of the rows; those with one grader go to the pool together."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        info = row["extra_info"]
        groups.setdefault((info["env_kwargs"], json.loads(info["options"]).get("choices", "")), []).append(index)
    verdicts: dict[int, Any] = {}
    for (env_kwargs, choices), members in groups.items():
        tasks = [(target_text(rows[index]), rows[index]["reward_model"]["ground_truth"]) for index in members]
        graded = pool.grade_many(tasks, choices=choices, **json.loads(env_kwargs))
        verdicts |= dict(zip(members, graded, strict=True))
    return [verdicts[index] for index in range(len(rows))]
