"""General Points data sets: solvable hands with demonstrations, in splits that share no hand.

    python -m recipe.amft.data.general_points --out data/gp --num-cards 3 --ranks 6 --targets 1-24 \
        --train 500 --validation 64 --test 128
    python -m recipe.amft.data.general_points --out data/gp24 --evaluation

The first writes train.parquet, validation.parquet and test.parquet in verl's row schema (that of OpenR1-Math-46k-8192).
The second writes the papers' two evaluations of 234 hands, always the same ones: test_id.parquet, and test_rule.parquet
where J, Q and K count as 11, 12 and 13; with `--modality image` also test_visual.parquet, the first with red suits.
Given together, no hand of test_id is used for anything else.
"""

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recipe.amft.data.command_line import Parser, folder_to_write
from recipe.amft.data.general_points_hands import (
    Disjoint,
    Hand,
    group,
    held_out_hands,
    solvable_hands,
    split_hands,
)
from recipe.amft.data.general_points_rows import ENV_ID, numbered, rows_of, turn_into_revisions
from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.general_points.environment import GeneralPoints

SPLITS = ("train", "validation", "test")
BUILD_OPTIONS = ("demonstrations_per_hand", "revisions", "disjoint", "seed")
EVALUATION_HANDS = 234  # of each evaluation set, and the seed that picks them: those of Chu et al.
EVALUATION_SEED = 42
OTHER_RULE = {"ten": "value", "value": "ten"}


def build_splits(
    env_kwargs: dict[str, Any],
    *,
    targets: Sequence[int],
    sizes: dict[str, int],
    seed: int,
    demonstrations_per_hand: int = 1,
    revisions: float = 0.0,
    disjoint: Disjoint = "pair",
    held_out: Sequence[Hand] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Rows for each split of `sizes` (in hands); splits share no (multiset of numbers, target), or no multiset at all.

    Hands that show the same numbers (10 and K under face_rule=ten) stay in one split; hands that do so with one of
    `held_out` are in none. Training hands have up to `demonstrations_per_hand` rows, one for each distinct
    demonstration; the others one. A share `revisions` of the training rows demonstrates the answer after one or two
    failed attempts, as the environment poses it then.
    """
    _check_arguments(sizes, demonstrations_per_hand, revisions, disjoint)
    environment = _environment(env_kwargs)
    rng = random.Random(seed)
    left_out = {group(environment, hand, disjoint) for hand in held_out}
    playable = [
        hand for hand in solvable_hands(environment, targets) if group(environment, hand, disjoint) not in left_out
    ]
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, hands in split_hands(environment, playable, sizes, disjoint, rng).items():
        demonstrations = demonstrations_per_hand if split == "train" else 1
        rows = [row for hand in hands for row in rows_of(environment, env_kwargs, hand, demonstrations, rng)]
        if split == "train" and revisions:
            turn_into_revisions(environment, rows, revisions, rng)
        splits[split] = numbered(rows, split)
    return splits


def build_evaluation(
    env_kwargs: dict[str, Any],
    *,
    targets: Sequence[int] = (24,),
    num_hands: int = EVALUATION_HANDS,
    seed: int = EVALUATION_SEED,
    disjoint: Disjoint = "pair",
) -> tuple[dict[str, list[dict[str, Any]]], list[Hand]]:
    """Rows of `test_id` (the game of `env_kwargs`) and `test_rule` (the other face rule); the hands of `test_id`.

    Each has `num_hands` solvable hands, those of `test_rule` with a J, Q or K. With modality `image` there is also
    `test_visual`: the hands of `test_id` in red. Their `data_source` is general_points_id, general_points_rule and
    general_points_visual, so that verl reports them apart.
    """
    shifted = env_kwargs | {"face_rule": OTHER_RULE[_environment(env_kwargs).face_rule], "require_face": True}
    rng = random.Random(seed)
    rows, hands = {}, {}
    for split, kwargs in {"test_id": env_kwargs, "test_rule": shifted}.items():
        environment = _environment(kwargs)
        hands[split] = held_out_hands(environment, solvable_hands(environment, targets), num_hands, disjoint, rng)
        rows[split] = numbered(
            [row for hand in hands[split] for row in rows_of(environment, kwargs, hand, 1, rng)], split
        )
        for row in rows[split]:
            row["data_source"] = f"{ENV_ID}_{split.removeprefix('test_')}"
    if env_kwargs.get("modality") == "image":
        rows["test_visual"] = [_in_red(row) for row in rows["test_id"]]
    return rows, hands["test_id"]


def _in_red(row: dict[str, Any]) -> dict[str, Any]:
    """The same hand with red suits: the visual shift of Chu et al."""
    info = row["extra_info"]
    kwargs = json.dumps(json.loads(info["env_kwargs"]) | {"colours": "red"}, sort_keys=True)
    changed = info | {"id": f"{info['id']}/colours=red", "env_kwargs": kwargs, "split": "test_visual"}
    return row | {"data_source": f"{ENV_ID}_visual", "extra_info": changed}


def write_parquet(rows: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes `rows` so that `path` never holds half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pd.DataFrame(rows).to_parquet(temporary, index=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make(options: Mapping[str, Any], folder: Path) -> None:
    """Write the splits of `splits_from_options`, each as a parquet file of its name."""
    for split, rows in splits_from_options(options).items():
        write_parquet(rows, folder / f"{split}.parquet")


def splits_from_options(options: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split for the flat options of a configuration file.

    Options are those of `build_splits` and of the environment. `targets` is [first, last]; `train`, `validation` and
    `test` are numbers of hands; `env_id` may name another environment that plays the same hands (a subclass by import
    path). `evaluation`, a number of hands, adds test_id and test_rule (picked by `evaluation_seed`), which a `test`
    that is asked for holds too, be it of 0 hands.
    """
    options = dict(options)
    env_id = options.pop("env_id", ENV_ID)
    first, last = options.pop("targets")
    evaluation, evaluation_seed = options.pop("evaluation", 0), options.pop("evaluation_seed", EVALUATION_SEED)
    asked = [split for split in SPLITS if split in options or not evaluation]
    sizes = {split: options.pop(split) for split in asked}
    build = {name: options.pop(name) for name in BUILD_OPTIONS if name in options}
    splits = _all_splits(options, range(first, last + 1), sizes, build, evaluation, evaluation_seed)
    for rows in splits.values():
        for row in rows:
            row["extra_info"]["env_id"] = env_id
    return splits


def _all_splits(
    env_kwargs: dict[str, Any],
    targets: Sequence[int],
    sizes: dict[str, int],
    build: dict[str, Any],
    evaluation: int,
    evaluation_seed: int,
) -> dict[str, list[dict[str, Any]]]:
    sets: dict[str, list[dict[str, Any]]] = {}
    held_out: list[Hand] = []
    if evaluation:
        if evaluation < 0:
            raise ValueError(f"evaluation must be a number of hands, 0 or more; got {evaluation}")
        disjoint = build.get("disjoint", "pair")
        sets, held_out = build_evaluation(
            env_kwargs, targets=targets, num_hands=evaluation, seed=evaluation_seed, disjoint=disjoint
        )
    splits = build_splits(env_kwargs, targets=targets, sizes=sizes, **build, held_out=held_out) if sizes else {}
    if "test" in splits:
        splits["test"] = [*splits["test"], *(row for rows in sets.values() for row in rows)]
    return splits | sets


def _environment(env_kwargs: dict[str, Any]) -> GeneralPoints:
    environment = make_environment(ENV_ID, env_kwargs)
    assert isinstance(environment, GeneralPoints)
    return environment


def _check_arguments(sizes: dict[str, int], demonstrations_per_hand: int, revisions: float, disjoint: str) -> None:
    unknown = sorted(set(sizes) - set(SPLITS))
    if unknown:
        raise ValueError(f"unknown splits {unknown}; allowed: {', '.join(SPLITS)}")
    if any(size < 0 for size in sizes.values()):
        raise ValueError(f"sizes must be 0 or more; got {sizes}")
    if demonstrations_per_hand < 1:
        raise ValueError(f"demonstrations_per_hand must be 1 or more; got {demonstrations_per_hand}")
    if not 0 <= revisions <= 1:
        raise ValueError(f"revisions must be a share in [0, 1]; got {revisions}")
    if disjoint not in ("pair", "multiset"):
        raise ValueError(f"disjoint must be 'pair' or 'multiset'; got {disjoint!r}")


def _target_range(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdigit() and (last or first).isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number such as 24, or a range such as 1-24")
    if int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"{text!r} is an empty range; give the smaller number first, {last}-{first}")
    return range(int(first), int(last or first) + 1)


def _parser() -> Parser:
    defaults = GeneralPoints()
    parser = Parser(
        prog="python -m recipe.amft.data.general_points", description="Write General Points splits as parquet."
    )
    parser.add_argument("--out", type=folder_to_write, required=True, metavar="DIR")
    parser.add_argument("--num-cards", type=int, default=defaults.num_cards, help="2 to 5")
    parser.add_argument("--ranks", type=int, default=defaults.ranks, help="highest rank, up to 13 (K)")
    parser.add_argument("--face-rule", default=defaults.face_rule, help="ten | value")
    parser.add_argument("--require-face", action="store_true", help="only hands with a J, Q or K")
    parser.add_argument("--prompt-style", default=defaults.prompt_style, help="paper | compact")
    parser.add_argument("--mode", default=defaults.mode, help="paper | upstream")
    parser.add_argument("--reward", default=defaults.reward, help="success | shaped")
    parser.add_argument("--verify-iter", type=int, default=defaults.verify_iter, help="attempts per hand")
    parser.add_argument("--modality", default=defaults.modality, help="text | image")
    parser.add_argument("--colours", default=defaults.colours, help="of the suits in images: black | red | mixed")
    parser.add_argument("--image-size", type=int, default=defaults.image_size, help="pixels per side")
    parser.add_argument("--targets", type=_target_range, default=range(24, 25), metavar="N|FIRST-LAST")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, metavar="HANDS")
    parser.add_argument(
        "--evaluation",
        type=int,
        nargs="?",
        const=EVALUATION_HANDS,
        default=0,
        metavar="HANDS",
        help=f"also, or only, test_id and test_rule ({EVALUATION_HANDS} hands each unless told)",
    )
    parser.add_argument("--evaluation-seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--demonstrations-per-hand", type=int, default=1)
    parser.add_argument("--revisions", type=float, default=0.0, metavar="SHARE", help="training rows after a failure")
    parser.add_argument("--disjoint", default="pair", help="pair | multiset")
    parser.add_argument("--seed", type=int, default=42)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the top of this file."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    out, targets = options.pop("out"), options.pop("targets")
    evaluation, evaluation_seed = options.pop("evaluation"), options.pop("evaluation_seed")
    sizes = {split: options.pop(split) for split in SPLITS}
    build = {name: options.pop(name) for name in BUILD_OPTIONS}
    missing = [f"--{split}" for split, size in sizes.items() if size is None]
    if missing and not evaluation:
        parser.error(f"the following arguments are required: {', '.join(missing)} (or --evaluation)")
    asked = {split: size for split, size in sizes.items() if size is not None}
    try:
        splits = _all_splits(options, targets, asked, build, evaluation, evaluation_seed)
    except ValueError as error:
        parser.error(str(error))
    for split, rows in splits.items():
        write_parquet(rows, out / f"{split}.parquet")
        print(f"{out / f'{split}.parquet'}: {len(rows)} rows")


if __name__ == "__main__":
    main()
