"""The routes of V-IRL data sets, and their rows: one for the start of a route, or one for each of its locations.

Every row replays by itself: the route stands in its options, and its seed gives the rail. A row of a later location has
the expert's way there as its history (options.location, and extra_info.location as the flag; 0 is a route's start).
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.virl.city import CityOptions, make_city
from recipe.amft.tasks.virl.names import NameSet
from recipe.amft.tasks.virl.routes import compact_route, read_route_file
from recipe.amft.tasks.virl.trips import sample_routes

ENV_ID = "virl"
ROUTES_PER_CITY: dict[NameSet, int] = {"train": 200, "validation": 200, "test": 200, "cities": 2}

Row = dict[str, Any]


@dataclass(frozen=True)
class NamedRoute:
    """A route, and what is its own in ids of rows."""

    id: str
    route: dict[str, Any]


def synthetic_routes(
    names: NameSet, count: int, seed: int, size: int = 7, turns: tuple[int, int] = (1, 5)
) -> list[NamedRoute]:
    """`count` routes through cities of a name set: grids, or irregular cities (two routes each) for `cities`."""
    routes: list[NamedRoute] = []
    while len(routes) < count:
        per_city = min(ROUTES_PER_CITY[names], count - len(routes))
        city_seed = seed + len(routes) // ROUTES_PER_CITY[names]
        options = CityOptions("irregular" if names == "cities" else "grid", names, city_seed, size)
        sampled = sample_routes(make_city(options), per_city, seed, turns)
        where = f"city={names}-{city_seed}-{size}/turns={turns[0]}-{turns[1]}/seed={seed}"
        routes += [NamedRoute(f"{where}/route={index}", route) for index, route in enumerate(sampled)]
    return routes


def routes_of_file(path: str | Path) -> list[NamedRoute]:
    """The routes of a file, named by its name and their place in it."""
    stem = Path(path).stem
    return [NamedRoute(f"file={stem}/route={index}", route) for index, route in enumerate(read_route_file(path))]


def deal(routes: Sequence[NamedRoute], sizes: Mapping[str, int], rng: random.Random) -> dict[str, list[NamedRoute]]:
    """Disjoint random splits of the sizes; ValueError where there are too few routes."""
    wanted = sum(sizes.values())
    if wanted > len(routes):
        raise ValueError(f"the route file has {len(routes)} routes, too few for splits of {dict(sizes)}; ask for fewer")
    shuffled = rng.sample(list(routes), wanted)
    splits = {}
    for split, size in sizes.items():
        splits[split], shuffled = shuffled[:size], shuffled[size:]
    return splits


def rows_of(
    named: Sequence[NamedRoute],
    env_kwargs: Mapping[str, Any],
    split: str,
    rng: random.Random,
    data_source: str = ENV_ID,
    all_locations: bool = False,
) -> list[Row]:
    """The rows of routes, numbered: of each route its start, or all its locations in order."""
    environment = make_environment(ENV_ID, dict(env_kwargs))
    space = env_kwargs.get("action_space", "absolute")
    rows: list[Row] = []
    for item in named:
        seed, route = rng.randrange(2**31), compact_route(item.route)
        num_locations = environment.reset(seed, {"route": route})[1]["num_locations"]
        for location in range(num_locations if all_locations else 1):
            options = {"route": route, "location": location}
            observation, info = environment.reset(seed, options)
            opening = [{"role": "user", "content": observation["text"]}]
            extra = {
                "id": f"{ENV_ID}/{item.id}/action_space={space}/rail={seed}/location={location}",
                "env_id": ENV_ID,
                "env_kwargs": json.dumps(dict(env_kwargs), sort_keys=True),
                "seed": seed,
                "options": json.dumps(options, sort_keys=True, ensure_ascii=False, separators=(",", ":")),
                "split": split,
                "index": len(rows),
                "location": location,
                "num_locations": num_locations,
            }
            rows.append(
                {
                    "data_source": data_source,
                    "prompt": observation.get("messages", opening),
                    "target": [{"role": "assistant", "content": environment.expert_action()}],
                    "ability": "navigation",
                    "reward_model": {"style": "rule", "ground_truth": info["destination"]},
                    "extra_info": extra,
                }
            )
    return rows
