"""The rail: the expert's path along a route, as the locations at which an action is due."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from recipe.amft.tasks.virl import instructions
from recipe.amft.tasks.virl.geography import Geocode, distance_metres, interpolate
from recipe.amft.tasks.virl.instructions import Mode, Turn
from recipe.amft.tasks.virl.routes import Milestone, Panorama, Route

NOTHING_NEARBY = "No landmarks nearby"
AT_INTERSECTION = "You observe an intersection"
SHORT_LEG = 5.0  # metres; a leg up to this length has no forward points
END_CLEARANCE = 8.0  # metres that a forward point keeps from both ends of its leg
SNAP_RADIUS = 20.0  # metres within which a forward point finds its panorama


@dataclass(frozen=True)
class Location:
    """Where one action is due.

    Attributes:
        geocode, heading: where the agent stands, and where it looks before it acts.
        landmark: landmark text, or that nothing is nearby.
        intersection: whether the observation speaks of an intersection.
        turn: the expert's turn; None for `forward()` and `stop()`.
        is_last: the expert stops here.
        sentence: index of the instruction's sentence to be executed, from 0.
        panorama: id of the view, if the route has panoramas.
    """

    geocode: Geocode
    heading: int
    landmark: str
    intersection: bool
    turn: Turn | None
    is_last: bool
    sentence: int
    panorama: str | None

    @property
    def observation(self) -> str:
        """The text observation, e.g. `Nori Cafe is on your left; You observe an intersection`."""
        return f"{self.landmark}; {AT_INTERSECTION}" if self.intersection else f"{self.landmark};"

    def action(self, action_space: str) -> str:
        """The expert's action in the `absolute` or the `relative` vocabulary."""
        if self.turn is None:
            return "stop()" if self.is_last else "forward()"
        return f"turn_direction({self.turn.direction if action_space == 'absolute' else self.turn.label})"


@dataclass(frozen=True)
class Rail:
    """A route's instruction and its locations, first to last."""

    sentences: tuple[str, ...]
    turns: tuple[Turn, ...]
    milestones: tuple[Milestone, ...]
    locations: tuple[Location, ...]


def build_rail(route: Route, rng: random.Random, mode: Mode, straight_points: int, drop_rate: float) -> Rail:
    """The rail of `route`; `rng` draws the initial heading (where the route has none) and the dropped points.

    On a leg of more than 5 m there are `straight_points` evenly spaced points, each dropped with `drop_rate`, moved to
    the nearest panorama, and kept if more than 8 m from both ends. In mode `upstream` a leg of up to 5 m leaves the
    sentence index one behind, as in the public code.
    """
    init_heading = route.init_heading or rng.randint(0, 359)
    turns = instructions.turns(route.milestones, init_heading, mode)
    last = len(route.milestones) - 1
    first_panorama = route.panoramas[0][0].id if route.panoramas else None
    locations = [Location(route.start, init_heading, NOTHING_NEARBY, False, turns[0], False, 0, first_panorama)]
    start, lag = route.start, 0
    for leg, (end, milestone) in enumerate(zip(route.leg_ends, route.milestones, strict=True)):
        panoramas = route.panoramas[leg] if route.panoramas else ()
        if distance_metres(start, end) > SHORT_LEG:
            for point, panorama in _forward_points(start, end, panoramas, rng, straight_points, drop_rate):
                sentence = 2 * leg + 1 - lag
                facing = milestone.heading
                locations.append(Location(point, facing, NOTHING_NEARBY, False, None, False, sentence, panorama))
        elif mode == "upstream":
            lag += 1
        at_end = leg == last
        locations.append(
            Location(
                geocode=end,
                heading=milestone.heading,
                landmark=milestone.landmark,
                intersection=not at_end,
                turn=None if at_end else turns[leg + 1],
                is_last=at_end,
                sentence=(2 * leg + 1 if at_end else 2 * leg + 2) - lag,
                panorama=panoramas[-1].id if panoramas else None,
            )
        )
        start = end
    return Rail(instructions.sentences(route.milestones, turns), turns, route.milestones, tuple(locations))


def _forward_points(
    start: Geocode,
    end: Geocode,
    panoramas: tuple[Panorama, ...],
    rng: random.Random,
    straight_points: int,
    drop_rate: float,
) -> Iterator[tuple[Geocode, str | None]]:
    """(geocode, panorama id) of the places between the ends of a leg, each once."""
    seen = set()
    for index in range(1, straight_points + 1):
        dropped = rng.random() < drop_rate
        point, panorama = interpolate(start, end, index / straight_points), None
        if panoramas:
            nearest = min(panoramas, key=lambda candidate: distance_metres(candidate.geocode, point))
            if distance_metres(nearest.geocode, point) >= SNAP_RADIUS:
                continue
            panorama, point = nearest
        clear = distance_metres(start, point) > END_CLEARANCE and distance_metres(end, point) > END_CLEARANCE
        if clear and not dropped and point not in seen:
            seen.add(point)
            yield point, panorama
