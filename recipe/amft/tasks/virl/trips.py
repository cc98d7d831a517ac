"""Routes of a synthetic city in V-IRL's schema: shortest walks from a panorama to a shop, with landmarks at the turns.

A leg may cross streets straight on; its panoramas keep away from those crossings, so that "You observe an intersection"
is said exactly where the agent stands at one. Landmark texts come from the geometry: the sign is seen from there.
"""

import dataclasses
import heapq
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from recipe.amft.tasks.virl import instructions
from recipe.amft.tasks.virl.city import City, Panorama, Shop, crossings
from recipe.amft.tasks.virl.geography import Point, heading_change, plane_distance, plane_heading
from recipe.amft.tasks.virl.routes import NO_LANDMARK, compass, format_blocks, parse_route
from recipe.amft.tasks.virl.streets import neighbours

MIN_END_LEG = 15.0  # metres of the first and of the last leg
MAX_LENGTH = 700.0  # metres of a route
MIN_TURN, MAX_BEND = 25, 12  # degrees: from here on a turn; up to here straight on. Routes in between are not taken
LANDMARK_RADIUS = 20.0  # metres
TRIES = 4000  # random walks for one route


@dataclass(frozen=True)
class Walk:
    """A shortest way: its points, and for each inner one the node; the goal stands at the last point."""

    start: Panorama
    nodes: tuple[int, ...]
    end: Panorama
    goal: Shop


def sample_routes(city: City, count: int, seed: int, turns: tuple[int, int] = (1, 5)) -> list[dict[str, Any]]:
    """`count` distinct routes with `turns[0]` to `turns[1]` turns between their legs, in V-IRL's schema.

    The number of turns is drawn first, uniformly. Raises ValueError where the city has too few such routes.
    """
    if not 0 <= turns[0] <= turns[1]:
        raise ValueError(f"turns must be [least, most], 0 or more; got {turns!r}")
    rng = random.Random(f"{city.options}/{seed}")
    routes: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(count):
        wanted = rng.randint(*turns)
        for _ in range(TRIES):
            walk = _random_walk(city, rng)
            if walk is None or (walk.start.id, walk.goal.name) in seen:
                continue
            legs = _legs(city, walk)
            if legs is not None and len(legs) - 1 == wanted:
                break
        else:
            raise ValueError(
                f"the city {city.options} has no further route with {wanted} turns in {TRIES} tries; "
                "ask for fewer routes, fewer turns, or a larger size"
            )
        seen.add((walk.start.id, walk.goal.name))
        routes.append(_route(city, walk, legs, rng.randint(1, 359)))
    return routes


def _random_walk(city: City, rng: random.Random) -> Walk | None:
    """The shortest way from a random panorama to a random shop on another street; equal lengths are tied at random."""
    start = rng.choice(city.panoramas)
    goal = rng.choice(city.shops)
    if start.street is None or start.street == goal.street:
        return None
    on_street = [panorama for panorama in city.panoramas if panorama.street == goal.street]
    end = min(on_street, key=lambda panorama: abs(panorama.along - goal.along))
    nodes, length = _shortest(city, start, end, rng)
    ends_are_long = (
        plane_distance(start.position, city.nodes[nodes[0]]) >= MIN_END_LEG
        and plane_distance(city.nodes[nodes[-1]], end.position) >= MIN_END_LEG
    )
    return Walk(start, nodes, end, goal) if ends_are_long and length <= MAX_LENGTH else None


def _shortest(city: City, start: Panorama, end: Panorama, rng: random.Random) -> tuple[tuple[int, ...], float]:
    """Dijkstra over the nodes, from both ends of the start's street to both ends of the end's street."""
    assert start.street is not None
    assert end.street is not None
    lengths = {street: city.length(street) + rng.uniform(0, 1e-3) for street in range(len(city.streets))}
    by_nodes = {frozenset(street): lengths[index] for index, street in enumerate(city.streets)}
    table = neighbours(city.streets)
    first, second = city.streets[start.street]
    last_first, last_second = city.streets[end.street]
    finish = {last_first: end.along, last_second: lengths[end.street] - end.along}
    waiting: list[tuple[float, tuple[int, ...], bool]] = [
        (start.along, (first,), False),
        (lengths[start.street] - start.along, (second,), False),
    ]
    done = set()
    while True:
        length, path, is_whole = heapq.heappop(waiting)
        if is_whole:
            return path, length
        node = path[-1]
        if node in done:
            continue
        done.add(node)
        if node in finish:
            heapq.heappush(waiting, (length + finish[node], path, True))
        for other in table[node]:
            if other not in done:
                heapq.heappush(waiting, (length + by_nodes[frozenset((node, other))], (*path, other), False))


def _legs(city: City, walk: Walk) -> list[tuple[int, ...]] | None:
    """The walk cut at its turns: for each leg the indices of its points; None for a walk that is not to be used."""
    points = _points(city, walk)
    headings = [plane_heading(a, b) for a, b in pairwise(points)]
    turning = []
    for index, (before, after) in enumerate(pairwise(headings), 1):
        change = abs(heading_change(before, after))
        if change <= MAX_BEND:
            continue
        if change < MIN_TURN or walk.nodes[index - 1] not in crossings(city):
            return None
        turning.append(index)
    cuts = [0, *turning, len(points) - 1]
    return [tuple(range(a, b + 1)) for a, b in pairwise(cuts)]


def _points(city: City, walk: Walk) -> list[Point]:
    return [walk.start.position, *(city.nodes[node] for node in walk.nodes), walk.end.position]


def _route(city: City, walk: Walk, legs: list[tuple[int, ...]], init_heading: int) -> dict[str, Any]:
    points = _points(city, walk)
    blocks, landmarks, distances, heading = [], [], [], init_heading
    for number, leg in enumerate(legs, 1):
        here, last = points[leg[-1]], number == len(legs)
        human_heading, heading = heading, round(plane_heading(points[leg[0]], here)) % 360
        shop = walk.goal if last else _landmark(city, here, walk.goal)
        landmarks.append(None if shop is None else _place(city, shop, here, heading, last))
        distances.append(round(sum(plane_distance(points[a], points[b]) for a, b in pairwise(leg))))
        blocks.append(
            {
                "intersection_idx": str(number),
                "landmarks": landmarks[-1]["expression"] if landmarks[-1] else NO_LANDMARK,
                "distance": f"{distances[-1]} meters",
                "human_heading": str(human_heading),
                "to_next_intersection_heading": f"{heading} ({compass(heading)})",
            }
        )
    start, end = city.geocode(walk.start.position), city.geocode(walk.end.position)
    destination = landmarks.pop() or {}
    route: dict[str, Any] = {
        "dest_place": destination | {"relocated_geocode": end},
        "start_place": {"name": f"Start in {city.name}", "geocode": start, "relocated_geocode": start},
        "route_results": {
            "geocode_list": [city.geocode(points[leg[-1]]) for leg in legs],
            "distance_list": distances,
            "distance": sum(distances),
            "n_landmarks": sum(place is not None for place in landmarks),
            "landmark_list": landmarks,
            "panorama_list": [_panoramas(city, walk, points, leg) for leg in legs],
        },
        "init_heading": init_heading,
        "milestone_info": format_blocks(blocks),
        "city": dataclasses.asdict(city.options),
    }
    parsed = parse_route(route)
    turns = instructions.turns(parsed.milestones, init_heading, "paper")
    return route | {"instruction": "\n".join(instructions.sentences(parsed.milestones, turns))}


def _landmark(city: City, here: Point, goal: Shop) -> Shop | None:
    """The most reviewed shop within LANDMARK_RADIUS whose sign is seen from `here`; not the destination."""
    near = [shop for shop in city.shops if shop != goal and plane_distance(shop.position, here) <= LANDMARK_RADIUS]
    return max((shop for shop in near if city.sees(here, shop)), key=lambda shop: shop.num_reviews, default=None)


def _place(city: City, shop: Shop, here: Point, heading: int, is_destination: bool) -> dict[str, Any]:
    """A shop as a place of the schema, with its relation to somebody who stands `here` and faces `heading`."""
    direction = plane_heading(here, shop.position)
    side = instructions.relation(heading, direction)
    return {
        "name": shop.name,
        "geocode": city.geocode(shop.position),
        "place_id": f"{city.options.names}-{city.options.seed}-{city.shops.index(shop)}",
        "distance": round(plane_distance(here, shop.position), 2),
        "n_reviews": shop.num_reviews,
        "heading": round(direction, 2),
        "place_types": [shop.kind.lower()],
        "region": city.name,
        "spatial_relation": side,
        "expression": instructions.landmark_text(shop.name, side, is_destination),
    }


def _panoramas(city: City, walk: Walk, points: list[Point], leg: tuple[int, ...]) -> list[list[Any]]:
    """[id, latitude, longitude] along a leg: both its ends, and between them only places that are at no crossing."""
    stops = [walk.start, *(city.panoramas[node] for node in walk.nodes), walk.end]  # node panoramas come first
    clear = city.half_width + 3
    found = [stops[leg[0]]]
    for a, b in pairwise(leg):
        for panorama in _between(city, points[a], points[b]):
            away = (plane_distance(panorama.position, points[inner]) > clear for inner in leg[1:-1])
            if all(away) and panorama.id not in (found[-1].id, stops[leg[-1]].id):
                found.append(panorama)
    return [[panorama.id, *city.geocode(panorama.position)] for panorama in (*found, stops[leg[-1]])]


def _between(city: City, start: Point, end: Point) -> list[Panorama]:
    """The panoramas on the straight line from `start` to `end`, in order."""
    whole = plane_distance(start, end)
    on_line = []
    for panorama in city.panoramas:
        before, after = plane_distance(start, panorama.position), plane_distance(panorama.position, end)
        if before + after - whole < 1e-6:
            on_line.append((before, panorama))
    return [panorama for _, panorama in sorted(on_line, key=lambda item: item[0])]
