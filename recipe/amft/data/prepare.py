"""Data sets for training and evaluation, from what their authors publish, in one row schema (recipe/amft/data/rows.py).

    python -m recipe.amft.data.prepare gsm8k --source data/gsm8k --out data/gsm8k_rows --validation 256
    python -m recipe.amft.data.prepare openr1 --source train.parquet --out data/openr1_math --validation 256 \
        --test 256 --hygiene-against data/benchmarks/test.parquet
    python -m recipe.amft.data.prepare benchmarks --source valid.all.parquet --out data/benchmarks

writes train.parquet, validation.parquet and test.parquet (those that the source has or that are drawn from its training
rows) and report.json: counts, what was dropped and why, token lengths, checksums. docs/data.md explains every option.
`general_points`, `virl`, `reasoning_gym` and `humaneval` have commands of their own; their names pass the arguments on.
"""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.amft.data.command_line import Parser, folder_to_write
from recipe.amft.data.output import check_folder, fill_folder, replace_folder, summary
from recipe.amft.data.preparation import Options, check_name, prepare
from recipe.amft.data.row_checks import Limits
from recipe.amft.data.rows import SPLITS, RowOptions
from recipe.amft.data.sources import SOURCES

OTHER_COMMANDS = ("general_points", "virl", "reasoning_gym", "humaneval")


def make(options: Mapping[str, Any], folder: Path) -> None:
    """What `amft.task.make` calls: prepare with flat `options` (those of the command line) and write into `folder`."""
    chosen = options_from(options)
    try:
        prepared = prepare(chosen)
    except ValueError as error:
        if Path(chosen.source).exists():
            raise
        variable = " or with the environment variable AMFT_GSM8K" if chosen.name == "gsm8k" else ""
        raise ValueError(f"{error} The source is set with amft.task.options.source{variable}.") from None
    fill_folder(prepared.splits, prepared.report, folder)
    print(summary(prepared.report))


def options_from(values: Mapping[str, Any]) -> Options:
    """`Options` from flat names; ValueError names an unknown one."""
    own = {item.name for item in dataclasses.fields(Options)} - {"rows", "limits"}
    in_rows = {item.name for item in dataclasses.fields(RowOptions)}
    in_limits = {item.name for item in dataclasses.fields(Limits)}
    unknown = sorted(set(values) - own - in_rows - in_limits)
    if unknown:
        raise ValueError(
            f"unknown options {', '.join(unknown)}; known: {', '.join(sorted(own | in_rows | in_limits))}."
        )
    missing = [name for name in ("name", "source") if not values.get(name)]
    if missing:
        raise ValueError(f"options {' and '.join(missing)} are missing; give the name of a data set and where it lies.")
    given = dict(values)
    given["hygiene_against"] = tuple(given.get("hygiene_against") or ())
    return Options(
        rows=RowOptions(**{name: given.pop(name) for name in list(given) if name in in_rows}),
        limits=Limits(**{name: given.pop(name) for name in list(given) if name in in_limits}),
        **given,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: see the top of this file. Exit status 2 for a wrong option or source, 1 where writing failed."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in OTHER_COMMANDS:
        importlib.import_module(f"recipe.amft.data.{arguments[0]}").main(arguments[1:])
        return 0
    try:
        if arguments and not arguments[0].startswith("-"):
            check_name(arguments[0], (*SOURCES, *OTHER_COMMANDS))  # whose options differ, so that it comes first
        given = vars(_parser().parse_args(arguments))
        out, overwrite = given.pop("out"), given.pop("overwrite")
        options = options_from(given)
        check_folder(out, overwrite)
        prepared = prepare(options)
        replace_folder(prepared.splits, prepared.report, out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: out={str(out)!r} cannot be written ({error}); give another folder.", file=sys.stderr)
        return 1
    print(summary(prepared.report))
    print(f"written to {out}: {', '.join(f'{split}.parquet' for split in prepared.splits)}, report.json")
    return 0


def _parser() -> Parser:
    names = f"{', '.join(SOURCES)}; with options of their own (NAME --help): {', '.join(OTHER_COMMANDS)}"
    parser = Parser(
        prog="python -m recipe.amft.data.prepare", description="Write a data set as parquet files with a report."
    )
    parser.add_argument("name", metavar="NAME", help=names)
    parser.add_argument("--source", required=True, help="file, folder, hub, or hub:owner/name[:config]")
    parser.add_argument("--out", type=folder_to_write, required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier preparation in DIR")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, metavar="ROWS", help="default: what the source has")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn rows and of the order of options")
    parser.add_argument("--system", default="own", metavar="own|think|none|TEXT", help="the system message")
    parser.add_argument(
        "--style", default="think", help="think | plain: the form of demonstrations made from solutions"
    )
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--require-think", action=flag, help="the reward requires </think>; default: with style think")
    parser.add_argument("--shuffle-choices", action=flag, default=True, help="multiple choice: a seeded order")
    parser.add_argument("--check-targets", action=flag, default=True, help="grade every demonstration")
    parser.add_argument("--on-bad-row", default="refuse", help="refuse | drop")
    parser.add_argument("--tokenizer", metavar="DIR", help="count lengths in tokens of this model")
    for limit in dataclasses.fields(Limits):
        parser.add_argument(f"--{limit.name.replace('_', '-')}", type=int, metavar="N")
    parser.add_argument("--hygiene-against", nargs="+", default=(), metavar="FILE", help="evaluation files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
