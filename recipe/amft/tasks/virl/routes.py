"""Route files of V-IRL: `[[route, ...], int]`, read with checks and with tolerance for the oddities of real files.

Read: start_place.relocated_geocode (else .geocode), dest_place.name, route_results.geocode_list (the end of each leg),
init_heading and milestone_info, which is text and not JSON: `{...}` blocks with one `"key": "value",` per line.
Synthetic cities add route_results.panorama_list (for each leg: [id, latitude, longitude] from its start to its end)
and `city` (what builds the city again).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from recipe.amft.tasks.virl.geography import Geocode, bearing

COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
NO_LANDMARK = "No landmark nearby"

_LINE = re.compile(r'"?(\w+)"?\s*:\s*(.*)')
_HEADING = re.compile(r"(-?\d+(?:\.\d+)?)\s*(?:\(\s*([a-zA-Z]+)\s*\))?")
_NO_LANDMARK = re.compile(r"(none|null|no landmarks? nearby)?", re.IGNORECASE)


class Panorama(NamedTuple):
    """A place from which there is a view."""

    id: str
    geocode: Geocode


@dataclass(frozen=True)
class Milestone:
    """The end of a leg: its landmark text, and the heading (0 to 359) and compass word of the leg towards it."""

    landmark: str
    heading: int
    direction: str


@dataclass(frozen=True)
class Route:
    """A route as the environment needs it: leg i goes to leg_ends[i]; the last leg's end is the destination.

    `init_heading` 0 means that the episode draws one. `panoramas` holds those of each leg, or nothing. `city` builds
    the synthetic city of the route again, None without one.
    """

    start: Geocode
    leg_ends: tuple[Geocode, ...]
    milestones: tuple[Milestone, ...]
    destination: str
    init_heading: int
    panoramas: tuple[tuple[Panorama, ...], ...] = ()
    city: Mapping[str, Any] | None = field(default=None, hash=False)


class RouteError(ValueError):
    """What is wrong with a route, and where."""


def compass(heading: float) -> str:
    """The nearest of the eight directions."""
    return COMPASS[round(heading % 360 / 45) % 8]


def read_route_file(path: str | Path) -> list[dict[str, Any]]:
    """The routes of a file, each checked by `parse_route`; ValueError names the file, the route and the key.

    Accepts `[[route, ...], int]` (the integer need not be right), `[route, ...]`, and one route by itself.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"route file {path} cannot be read ({error}); give a JSON file of routes.") from None
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, list) and content and isinstance(content[0], list):
        content = content[0]
    if not isinstance(content, list) or not content:
        raise ValueError(f"route file {path} holds no routes; its form is [[route, ...], number of routes].")
    for index, route in enumerate(content):
        parse_route(route, f"route {index} of {path}")
    return content


def parse_route(route: Any, where: str = "route") -> Route:
    """Checks one route; RouteError (a ValueError) names the key. `where` begins its message."""
    results = _value(route, "route_results", Mapping, where)
    start_place = _value(route, "start_place", Mapping, where)
    start = start_place.get("relocated_geocode") or start_place.get("geocode")
    start = _geocode(start, f"{where}: start_place.relocated_geocode")
    ends = _value(results, "geocode_list", list, f"{where}: route_results")
    leg_ends = tuple(_geocode(end, f"{where}: route_results.geocode_list[{i}]") for i, end in enumerate(ends))
    blocks = parse_blocks(_value(route, "milestone_info", str, where), where)
    if not leg_ends or len(blocks) != len(leg_ends):
        raise RouteError(
            f"{where}: milestone_info has {len(blocks)} blocks and route_results.geocode_list {len(leg_ends)} points; "
            "there must be one of each for every leg, and at least one leg"
        )
    legs = zip(blocks, (start, *leg_ends), leg_ends, strict=False)
    milestones = tuple(_milestone(block, leg, f"{where}: milestone {i + 1}") for i, (block, *leg) in enumerate(legs))
    destination = _value(route, "dest_place", Mapping, where).get("name")
    return Route(
        start=start,
        leg_ends=leg_ends,
        milestones=milestones,
        destination=str(destination or "destination"),
        init_heading=_init_heading(route.get("init_heading"), where),
        panoramas=_panoramas(results.get("panorama_list"), len(leg_ends), where),
        city=route.get("city"),
    )


def compact_route(route: Mapping[str, Any]) -> dict[str, Any]:
    """Only what `parse_route` reads, and what builds the city again: small enough for a data row."""
    start_place, results = route["start_place"], route["route_results"]
    kept = {name: results[name] for name in ("geocode_list", "panorama_list") if name in results}
    compact = {
        "start_place": {"relocated_geocode": start_place.get("relocated_geocode") or start_place.get("geocode")},
        "dest_place": {"name": route["dest_place"].get("name")},
        "route_results": kept,
        "init_heading": route.get("init_heading"),
        "milestone_info": route["milestone_info"],
    }
    return compact | ({"city": route["city"]} if "city" in route else {})


def parse_blocks(text: str, where: str = "route") -> list[dict[str, str]]:
    """milestone_info as dictionaries. A line of braces separates blocks; names may hold quotes, colons and braces."""
    blocks: list[dict[str, str]] = [{}]
    for line in text.splitlines():
        bare = line.strip()
        if not bare.strip("{}, "):
            if blocks[-1] and bare:
                blocks.append({})
            continue
        match = _LINE.fullmatch(bare)
        if match is None:
            raise RouteError(f'{where}: milestone_info: line {line[:80]!r} is not of the form "key": "value",')
        blocks[-1][match[1]] = _unquoted(match[2])
    return [block for block in blocks if block]


def format_blocks(blocks: Sequence[Mapping[str, str]]) -> str:
    """milestone_info as V-IRL writes it."""
    return "".join(
        "\n{\n" + "".join(f'"{key}": "{value}",\n' for key, value in block.items()) + "}\n" for block in blocks
    )


def _unquoted(value: str) -> str:
    value = value.strip().removesuffix(",").strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _milestone(block: Mapping[str, str], leg: Sequence[Geocode], where: str) -> Milestone:
    """Without a heading, that of the straight line of the leg; without a compass word, that of the heading."""
    text = block.get("to_next_intersection_heading", "")
    match = _HEADING.match(text.strip())
    if match is None and text.strip().lower() not in ("", "none", "null"):
        raise RouteError(f'{where}: to_next_intersection_heading is {text!r}; its form is "298 (northwest)"')
    heading = round(float(match[1]) if match else bearing(*leg)) % 360
    word = (match[2] or "").lower() if match else ""
    landmark = block.get("landmarks", "").strip()
    if _NO_LANDMARK.fullmatch(landmark):
        landmark = NO_LANDMARK
    return Milestone(landmark, heading, word if word in COMPASS else compass(heading))


def _value(container: Any, key: str, kind: type, where: str) -> Any:
    value = container.get(key) if isinstance(container, Mapping) else None
    if not isinstance(value, kind):
        raise RouteError(f"{where}: {key} is {type(value).__name__}, must be {kind.__name__}; see docs/virl.md")
    return value


def _geocode(value: Any, where: str) -> Geocode:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or not all(isinstance(part, int | float) and abs(part) <= 360 for part in value):
        raise RouteError(f"{where} is {value!r}, must be [latitude, longitude]")
    return (float(value[0]), float(value[1]))


def _init_heading(value: Any, where: str) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RouteError(f"{where}: init_heading is {value!r}, must be degrees (0: drawn from the seed)")
    return round(value) % 360


def _panoramas(value: Any, num_legs: int, where: str) -> tuple[tuple[Panorama, ...], ...]:
    if not value:
        return ()
    try:
        legs = tuple(tuple(Panorama(str(i), (float(lat), float(lon))) for i, lat, lon in leg) for leg in value)
    except (TypeError, ValueError):
        legs = ()
    if len(legs) != num_legs or not all(legs):
        raise RouteError(
            f"{where}: route_results.panorama_list must hold a list of [id, latitude, longitude] for each of the "
            f"{num_legs} legs"
        )
    return legs
