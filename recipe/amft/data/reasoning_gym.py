"""Data sets of reasoning-gym as rows for training and evaluation, in splits that share no question.

    python -m recipe.amft.data.reasoning_gym --dataset basic_arithmetic --config max_terms=2 max_digits=1 \
        --train 500 --validation 64 --test 128 --out data/arithmetic

writes train.parquet, validation.parquet and test.parquet in verl's row schema. Each row holds its whole entry, so that
another version of the package, which may generate others, still poses and scores this one. Demonstrations are the data
set's own answers, where its own scorer accepts them; a data set without answers makes rows without the column `target`.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.amft.data.command_line import Parser, folder_to_write
from recipe.amft.data.files import normalised
from recipe.amft.data.general_points import write_parquet
from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.reasoning_gym.entries import entry_at, to_json

ENV_ID = "reasoning_gym"
SPLITS = ("test", "validation", "train")  # filled in this order: more training rows leave the test rows as they are
ENTRIES_PER_ROW = 20  # entries looked at for each row wanted, before the data set is called too small

Row = dict[str, Any]


def build_splits(
    env_kwargs: dict[str, Any], *, sizes: Mapping[str, int], seed: int
) -> tuple[dict[str, list[Row]], Counter[str]]:
    """Rows of each split of `sizes`, and how many entries were left out: repeated, no_answer, own_answer_fails.

    Args:
        env_kwargs: of ReasoningGym, `dataset` and `config` among them.
        sizes: rows of train, validation and test.
        seed: of the data set's entries.
    """
    if set(sizes) - set(SPLITS) or any(size < 0 for size in sizes.values()):
        raise ValueError(f"sizes must be numbers of rows, 0 or more, of {', '.join(sorted(SPLITS))}; got {dict(sizes)}")
    wanted = sum(sizes.values())
    if not wanted:
        raise ValueError(f"sizes must ask for one row at least; got {dict(sizes)}")
    rows, left_out = _distinct_rows(env_kwargs, wanted, seed)
    if len(rows) < wanted:
        raise ValueError(
            f"dataset {env_kwargs['dataset']!r} gave {len(rows)} usable rows in {wanted * ENTRIES_PER_ROW} entries "
            f"(left out: {dict(left_out)}), too few for disjoint splits of {dict(sizes)}; ask for fewer, or widen its "
            "config"
        )
    splits, start = {}, 0
    for split in SPLITS:
        splits[split] = rows[start : start + sizes.get(split, 0)]
        start += sizes.get(split, 0)
        for index, row in enumerate(splits[split]):
            row["extra_info"] |= {"split": split, "index": index}
    return splits, left_out


def make(options: Mapping[str, Any], folder: Path) -> None:
    """Write train, validation and test parquet files (the `make` of a task's configuration).

    Options: `dataset` and `config` of reasoning-gym, numbers of rows as `train`, `validation` and `test`, `seed`, and
    those of ReasoningGym (answer_format, reward, threshold, seconds).
    """
    missing = [name for name in ("dataset", *SPLITS, "seed") if name not in options]
    if missing:
        raise ValueError(f"the options lack {', '.join(missing)}; they hold {', '.join(options)}")
    env_kwargs = {name: value for name, value in options.items() if name not in (*SPLITS, "seed")}
    sizes = {split: options[split] for split in SPLITS}
    splits, left_out = build_splits(env_kwargs, sizes=sizes, seed=options["seed"])
    for split, rows in splits.items():
        write_parquet(rows, folder / f"{split}.parquet")
    print(f"{options['dataset']}: {', '.join(f'{len(rows)} {split}' for split, rows in splits.items())} rows")
    if left_out:
        print(f"entries left out: {', '.join(f'{count} {reason}' for reason, count in sorted(left_out.items()))}")
    if any("target" not in row for rows in splits.values() for row in rows):
        print(
            f"{options['dataset']} scores answers but gives none: these rows have no demonstrations; name other files "
            "with amft.demonstrations.files"
        )


def _distinct_rows(env_kwargs: dict[str, Any], wanted: int, seed: int) -> tuple[list[Row], Counter[str]]:
    """Up to `wanted` rows with different questions, in the order of the data set's entries."""
    environment = make_environment(ENV_ID, env_kwargs)
    name, config = env_kwargs["dataset"], env_kwargs.get("config") or {}
    size = max(wanted * ENTRIES_PER_ROW, 1)
    has_answers = entry_at(name, config, seed, size, 0)["answer"] is not None
    rows: dict[str, Row] = {}
    left_out: Counter[str] = Counter()
    for index in range(size):
        if len(rows) == wanted:
            break
        entry = entry_at(name, config, seed, size, index)
        options = {"entry": to_json(entry)}
        observation, info = environment.reset(index, options)
        prompt = [{"role": "user", "content": observation["text"]}]
        key = normalised(prompt)
        if key in rows:
            left_out["repeated"] += 1
        elif not has_answers:
            rows[key] = _row(env_kwargs, index, options, prompt, {})
        elif not info["has_answer"]:
            left_out["no_answer"] += 1
        else:
            demonstration = environment.expert_action()
            if environment.step(demonstration)[4]["success"]:
                target = {"target": [{"role": "assistant", "content": demonstration}]}
                rows[key] = _row(env_kwargs, index, options, prompt, target)
            else:
                left_out["own_answer_fails"] += 1
    return list(rows.values()), left_out


def _row(env_kwargs: dict[str, Any], index: int, options: Row, prompt: list[dict[str, str]], target: Row) -> Row:
    name, entry = env_kwargs["dataset"], options["entry"]
    return {
        "data_source": f"{ENV_ID}_{name}",
        "prompt": prompt,
        **target,
        "ability": ENV_ID,
        "reward_model": {"style": "rule", "ground_truth": str(entry["answer"]) if target else ""},
        "extra_info": {
            "id": f"{ENV_ID}/{name}/{hashlib.sha256(entry['question'].encode()).hexdigest()[:16]}",
            "env_id": ENV_ID,
            "env_kwargs": json.dumps(env_kwargs, sort_keys=True),
            "seed": index,
            "options": json.dumps(options, sort_keys=True),
        },
    }


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: give key=value, such as max_terms=2 or 'operators=[\"+\"]'")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _parser() -> Parser:
    parser = Parser(
        prog="python -m recipe.amft.data.reasoning_gym", description="Write a reasoning-gym data set as parquet."
    )
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument("--config", type=_setting, nargs="*", default=[], metavar="KEY=VALUE", help="values as JSON")
    for split in sorted(SPLITS):
        parser.add_argument(f"--{split}", type=int, required=True, metavar="ROWS")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=folder_to_write, required=True, metavar="DIR")
    parser.add_argument("--answer-format", default="tags", help="tags | plain")
    parser.add_argument("--reward", default="score", help="score | success")
    parser.add_argument("--threshold", type=float, default=1.0, help="score that counts as success")
    parser.add_argument("--seconds", type=float, default=5.0, help="limit for scoring one answer")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the top of this file."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    try:
        make(options | {"config": dict(options["config"])}, out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
