"""Words for headings and turns, landmark texts, and the sentences of an instruction.

Two sentences per milestone: "Turn {label} to face {direction}." and "Move forward until you reach ...". Both words of
a turn stand in the text in both action spaces.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recipe.amft.tasks.virl.geography import heading_change
from recipe.amft.tasks.virl.routes import NO_LANDMARK, Milestone

Mode = Literal["paper", "upstream"]

RELATIONS = ("front", "right front", "right", "right behind", "behind", "left behind", "left", "left front")
TURN_LABELS = ("left", "right", "slightly left", "slightly right")

_LANDMARK = re.compile(r"(The destination )?(.+) is on your (.+)")


@dataclass(frozen=True)
class Turn:
    """One change of heading, in both vocabularies."""

    label: str  # relative: one of TURN_LABELS
    direction: str  # absolute: one of COMPASS


@dataclass(frozen=True)
class Landmark:
    """The parts of a landmark text."""

    name: str
    relation: str
    is_destination: bool


def relation(heading: float, bearing: float) -> str:
    """Where something at `bearing` is for somebody who faces `heading`: the nearest 45 degrees."""
    return RELATIONS[round((bearing - heading) % 360 / 45) % 8]


def landmark_text(name: str, side: str, is_destination: bool = False) -> str:
    """`{name} is on your {side}`, with a prefix for the destination."""
    return f"{'The destination ' if is_destination else ''}{name} is on your {side}"


def parse_landmark(text: str) -> Landmark | None:
    """The parts of a text that `landmark_text` writes; None for any other text (no landmark)."""
    match = _LANDMARK.fullmatch(text.strip())
    return Landmark(match[2], match[3], match[1] is not None) if match else None


def turn_label(heading: float, next_heading: float, mode: Mode = "paper") -> str:
    """left (< -45), right (> 45), slightly left [-45, 0], slightly right (0, 45].

    `paper` wraps the change of heading at 0/360 into [-180, 180); `upstream` takes the bare difference, so that from
    350 to 10 degrees is "left".
    """
    change = heading_change(heading, next_heading) if mode == "paper" else next_heading - heading
    if abs(change) > 45:
        return "left" if change < 0 else "right"
    return "slightly right" if change > 0 else "slightly left"


def turns(milestones: Sequence[Milestone], init_heading: int, mode: Mode) -> tuple[Turn, ...]:
    """The turn at the start of each leg."""
    headings = [init_heading, *(milestone.heading for milestone in milestones)]
    return tuple(
        Turn(turn_label(heading, milestone.heading, mode), milestone.direction)
        for heading, milestone in zip(headings, milestones, strict=False)
    )


def sentences(milestones: Sequence[Milestone], leg_turns: Sequence[Turn]) -> tuple[str, ...]:
    """Two sentences per milestone; a route of one milestone starts with "Turn", not with "First, turn"."""
    last = len(milestones) - 1
    lines = []
    for index, (milestone, turn) in enumerate(zip(milestones, leg_turns, strict=True)):
        verb = "First, turn" if index == 0 and last > 0 else "Turn"
        goal = "destination" if index == last else "next intersection"
        where = "" if milestone.landmark == NO_LANDMARK else f" where {milestone.landmark}"
        lines.append(f"{verb} {turn.label} to face {turn.direction}.")
        lines.append(f"Move forward until you reach {goal}{where}.")
    return tuple(lines)
