"""V-IRL data sets: routes through synthetic cities, or of a route file, with demonstrations for every location.

    python -m recipe.amft.data.virl --out data/virl --train 1000 --validation 48 --test 48
    python -m recipe.amft.data.virl --out data/virl_evaluation --evaluation
    python -m recipe.amft.data.virl --out data/virl_nyc --routes nyc.json --other-routes mini.json \
        --train 900 --validation 40 --evaluation

The first writes train.parquet, validation.parquet and test.parquet in verl's row schema (that of OpenR1-Math-46k-8192),
and the routes of each under routes/ in V-IRL's own format. The second writes the three evaluations, always the same
ones: test_id (48 routes), test_rule (the same routes, the other action space) and test_cities (18 routes, 9 cities).
The third takes the routes from files. docs/virl.md explains every option.
"""

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recipe.amft.data.command_line import Parser, folder_to_write
from recipe.amft.data.general_points import write_parquet
from recipe.amft.data.virl_rows import ENV_ID, NamedRoute, Row, deal, routes_of_file, rows_of, synthetic_routes
from recipe.amft.tasks.virl.environment import CHOICES, Navigation
from recipe.amft.tasks.virl.names import NameSet

SPLITS: tuple[NameSet, ...] = ("train", "validation", "test")
EVALUATION_ROUTES, OTHER_CITY_ROUTES = 48, 18  # those of Chu et al.
EVALUATION_SEED = 42
OTHER_ACTION_SPACE = {"absolute": "relative", "relative": "absolute"}
ENVIRONMENT_OPTIONS = (
    "context",
    "verify_iter",
    "straight_points",
    "drop_rate",
    "mode",
    "reward",
    "prompt_style",
    "modality",
    "view_size",
    "panoramas",
)


@dataclass(frozen=True)
class DataOptions:
    """What a data set is made of; sizes are numbers of routes, None leaves the split out."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None
    evaluation: int = 0  # routes of test_id and of test_rule; they are added to a `test` that is asked for
    other_cities: int = OTHER_CITY_ROUTES  # routes of test_cities, with `evaluation`
    evaluation_seed: int = EVALUATION_SEED
    train_rows: str = "locations"  # a row for each location of a training route, or for its start only (`starts`)
    city_size: int = 7  # crossings per side
    turns: tuple[int, int] = (1, 5)  # least and most, between legs
    routes: str | None = None  # a route file, instead of synthetic cities
    other_routes: str | None = None  # a route file for test_cities
    seed: int = 42
    environment: Mapping[str, Any] = field(default_factory=dict)  # arguments of Navigation

    def __post_init__(self) -> None:
        if self.train_rows not in ("locations", "starts"):
            raise ValueError(f"train_rows must be locations or starts; got {self.train_rows!r}")
        for name in (*SPLITS, "evaluation", "other_cities"):
            size = getattr(self, name)
            if size is not None and size < 0:
                raise ValueError(f"{name} must be a number of routes, 0 or more; got {size}")
        if not self.sizes and not self.evaluation:
            raise ValueError(f"nothing to write; ask for {', '.join(SPLITS)} or evaluation")
        unknown = sorted(set(self.environment) - {*ENVIRONMENT_OPTIONS, "action_space"})
        if unknown:
            own = [item.name for item in fields(self) if item.name != "environment"]
            known = ", ".join([*own, "action_space", *ENVIRONMENT_OPTIONS])
            raise ValueError(f"unknown options {', '.join(unknown)}; known: {known}")
        Navigation(**self.environment)

    @property
    def sizes(self) -> dict[str, int]:
        """Routes of each split that is asked for."""
        asked = {split: getattr(self, split) for split in SPLITS}
        return {split: size for split, size in asked.items() if size is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "DataOptions":
        """From the flat options of a configuration or a command line; those of the environment among them."""
        own = {item.name for item in fields(cls)} - {"environment"}
        mine = {name: value for name, value in values.items() if name in own}
        if "turns" in mine:
            least, most = mine["turns"]
            mine["turns"] = (least, most)
        return cls(**mine, environment={name: value for name, value in values.items() if name not in own})


@dataclass(frozen=True)
class Split:
    """Rows, and the routes that they come from."""

    rows: list[Row]
    routes: list[dict[str, Any]]


def make(options: Mapping[str, Any], folder: Path) -> None:
    """Write the splits of flat `options` (those of DataOptions and of Navigation) into `folder`."""
    write_splits(build_splits(DataOptions.from_mapping(options)), folder)


def build_splits(options: DataOptions) -> dict[str, Split]:
    """The splits that are asked for; those of synthetic cities share no landmark name, those of a file no route.

    test_rule has the routes and the rails of test_id.
    """
    routes, kwargs = _routes(options), dict(options.environment)
    shifted = kwargs | {"action_space": OTHER_ACTION_SPACE[kwargs.get("action_space", "absolute")]}
    splits = {}
    for split in options.sizes:
        rng = random.Random(f"{options.seed}/{split}")
        all_locations = split == "train" and options.train_rows == "locations"
        rows = rows_of(routes[split], kwargs, split, rng, all_locations=all_locations)
        splits[split] = Split(rows, [item.route for item in routes[split]])
    if options.evaluation:
        for kind, used in (("id", kwargs), ("rule", shifted), ("cities", kwargs)):
            source = routes["test_cities" if kind == "cities" else "test_id"]
            rng = random.Random(options.evaluation_seed)
            rows = rows_of(source, used, f"test_{kind}", rng, f"{ENV_ID}_{kind}")
            splits[f"test_{kind}"] = Split(rows, [item.route for item in source])
        if "test" in splits:
            added = [row for kind in ("id", "rule", "cities") for row in splits[f"test_{kind}"].rows]
            splits["test"] = Split([*splits["test"].rows, *added], splits["test"].routes)
    return splits


def _routes(options: DataOptions) -> dict[str, list[NamedRoute]]:
    """The routes of each split that is asked for, and with `evaluation` of test_id and test_cities."""
    if options.routes is not None:
        available = routes_of_file(options.routes)
        held_out = deal(available, {"test_id": options.evaluation}, random.Random(options.evaluation_seed))
        rest = [item for item in available if item not in held_out["test_id"]]
        routes = held_out | deal(rest, options.sizes, random.Random(options.seed))
    else:
        routes = {
            split: synthetic_routes(split, options.sizes[split], options.seed, options.city_size, options.turns)
            for split in SPLITS
            if split in options.sizes
        }
        routes["test_id"] = synthetic_routes(
            "test", options.evaluation, options.evaluation_seed, options.city_size, options.turns
        )
    num_others = options.other_cities if options.evaluation else 0
    if options.other_routes is not None:
        others, rng = routes_of_file(options.other_routes), random.Random(options.evaluation_seed)
        return routes | deal(others, {"test_cities": min(num_others, len(others))}, rng)
    cities = synthetic_routes("cities", num_others, options.evaluation_seed, options.city_size, options.turns)
    return routes | {"test_cities": cities}


def write_splits(splits: Mapping[str, Split], folder: Path) -> None:
    """`{split}.parquet`, and `routes/{split}.json` in V-IRL's format."""
    for split, content in splits.items():
        write_parquet(content.rows, folder / f"{split}.parquet")
        if content.routes:
            write_route_file(content.routes, folder / "routes" / f"{split}.json")


def write_route_file(routes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """`[[route, ...], number of routes]`, so that `path` never holds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps([list(routes), len(routes)], ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _turns(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    if not (least.isdigit() and (most or least).isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number such as 2, or a range such as 1-5")
    return int(least), int(most or least)


def _parser() -> Parser:
    defaults, environment = DataOptions(evaluation=1), Navigation()
    parser = Parser(prog="python -m recipe.amft.data.virl", description="Write V-IRL splits as parquet.")
    parser.add_argument("--out", type=folder_to_write, required=True, metavar="DIR")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, metavar="ROUTES")
    parser.add_argument(
        "--evaluation",
        type=int,
        nargs="?",
        const=EVALUATION_ROUTES,
        default=0,
        metavar="ROUTES",
        help=f"also, or only, test_id and test_rule ({EVALUATION_ROUTES} routes each unless told) and test_cities",
    )
    parser.add_argument("--other-cities", type=int, default=defaults.other_cities, metavar="ROUTES")
    parser.add_argument("--evaluation-seed", type=int, default=defaults.evaluation_seed)
    parser.add_argument("--train-rows", default=defaults.train_rows, help="locations | starts")
    parser.add_argument("--routes", metavar="FILE", help="a route file, instead of synthetic cities")
    parser.add_argument("--other-routes", metavar="FILE", help="a route file for test_cities")
    parser.add_argument("--city-size", type=int, default=defaults.city_size, help="crossings per side, 3 to 9")
    parser.add_argument("--turns", type=_turns, default=defaults.turns, metavar="N|LEAST-MOST")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    for name in ("action_space", *ENVIRONMENT_OPTIONS):
        default = getattr(environment, name)
        choices = " | ".join(CHOICES[name]) if name in CHOICES else None
        kind = str if default is None else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=choices)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the top of this file."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    try:
        splits = build_splits(DataOptions.from_mapping(given))
    except ValueError as error:
        parser.error(str(error))
    write_splits(splits, out)
    for split, content in splits.items():
        print(f"{out / f'{split}.parquet'}: {len(content.rows)} rows of {len(content.routes)} routes")


if __name__ == "__main__":
    main()
