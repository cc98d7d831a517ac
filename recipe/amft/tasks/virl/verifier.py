"""The verdict on an answer at one location: the expert's action, another one, or one after a misread observation."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from recipe.amft.tasks.general_points.answer import MAX_CHARACTERS
from recipe.amft.tasks.virl.instructions import Mode, parse_landmark
from recipe.amft.tasks.virl.rail import Location

ActionSpace = Literal["absolute", "relative"]
Name = Literal["correct", "wrong_action", "misread", "truncated"]

REWARDS: dict[Name, float] = {"correct": 1.0, "wrong_action": -1.0, "misread": -1.5, "truncated": -1.0}
NOT_AT_INTERSECTION = "you are not at any intersection"
AT_INTERSECTION = "you are at an intersection"
WRONG_ACTION = "you chose an incorrect action"
ALIASES = {"very slightly right": "slightly right"}  # the word of AMFT C.1
MAX_FIELD = 2_000  # characters of a field that are looked at
MAX_ACTION = 80  # characters of an action that are kept

_STRING = r'"%s"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"'
_FIELDS = {name: re.compile(_STRING % name, re.DOTALL) for name in ("action", "current observation")}
_UPSTREAM_FIELDS = {name: re.compile(f'"{name}": "(.*?)"') for name in _FIELDS}
_ACTION = re.compile(r"(\w+) ?\( ?['\"]?([\w ]*?)['\"]? ?\)")
_NO_INTERSECTION = re.compile(r"\b(?:no|(?:not|n't) (?:at|near|in|on|observe|see)(?: an| any| the)?) intersections?\b")


@dataclass(frozen=True)
class Verdict:
    """`reason` goes back to the model; `action` is what was read, None where there was no action."""

    name: Name
    reward: float
    reason: str
    action: str | None = None

    @property
    def success(self) -> bool:
        """Whether the agent moves on."""
        return self.name == "correct"


def verdict(name: Name, reason: str, action: str | None = None) -> Verdict:
    """A verdict with the table's reward; of the action only the beginning, and no lone surrogates, are kept."""
    shown = None if action is None else action[:MAX_ACTION].encode("utf-8", "replace").decode()
    return Verdict(name, REWARDS[name], reason, shown)


def verify(
    output: str, location: Location, action_space: ActionSpace, names: Collection[str] = (), mode: Mode = "paper"
) -> Verdict:
    """Judges the first answer in `output` at `location`; `names` are the route's landmarks (mode `paper`).

    `paper`: a wrong action is a misread when the reported observation has an intersection where there is none (or the
    other way round), lacks the location's landmark, or names another landmark of the route. An answer that reports no
    observation is no misread. `upstream`: only the word "intersection" counts, and it is looked for in the landmark
    text, which never has it: every wrong answer that speaks of an intersection is a misread, even at one.
    """
    if mode == "upstream":
        return _upstream(output, location, action_space)
    action = _field(output, "action")
    if action is None:
        return verdict("wrong_action", 'the answer has no "action"')
    action = normalised_action(action)
    if action == location.action(action_space):
        return verdict("correct", "Correct action", action)
    observation = _field(output, "current observation")
    problem = None if observation is None else _misread(observation, location, names)
    return verdict("misread", problem, action) if problem else verdict("wrong_action", WRONG_ACTION, action)


def recognized(output: str, location: Location, names: Collection[str] = ()) -> bool:
    """Whether the observation reported in `output` is that of `location`, whatever its action; no report is not."""
    observation = _field(output, "current observation")
    return observation is not None and _misread(observation, location, names) is None


def normalised_action(text: str) -> str:
    """Lower case, single spaces, no quotes around the direction, aliases resolved: `turn_direction(slightly right)`."""
    bare = " ".join(text[:MAX_FIELD].lower().split())
    match = _ACTION.fullmatch(bare)
    if match is None:
        return bare
    name, argument = match[1], match[2].strip()
    return f"{name}({ALIASES.get(argument, argument)})"


def _field(output: str, name: str) -> str | None:
    """The first string value of `name` in JSON, nearly JSON, or either one inside other text."""
    if len(output) > MAX_CHARACTERS:
        return None
    match = _FIELDS[name].search(output)
    if match is None:
        return None
    try:
        return str(json.loads(f'"{match[1]}"', strict=False))[:MAX_FIELD]
    except ValueError:
        return match[1][:MAX_FIELD]


def _misread(observation: str, location: Location, names: Collection[str]) -> str | None:
    """Why the reported observation is not that of `location`; None where it is."""
    report = " ".join(observation.lower().split())
    speaks_of_intersection = "intersection" in report and not _NO_INTERSECTION.search(report)
    if speaks_of_intersection != location.intersection:
        return AT_INTERSECTION if location.intersection else NOT_AT_INTERSECTION
    landmark = parse_landmark(location.landmark)
    here = landmark.name if landmark else ""
    if here and not _mentions(report, here):
        return "you did not report the landmark that you observe"
    others = [name for name in names if name.lower() not in here.lower()]
    if any(_mentions(report, name) for name in others):
        return "you reported a landmark that is not here"
    return None


def _mentions(report: str, name: str) -> bool:
    name = " ".join(name.lower().split())
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", report) is not None


def _upstream(output: str, location: Location, action_space: ActionSpace) -> Verdict:
    action = _upstream_field(output, "action")
    if action == location.action(action_space):
        return verdict("correct", "Correct action", action)
    reported = "intersection" in _upstream_field(output, "current observation")
    shown = "intersection" in location.landmark
    if reported != shown:
        return verdict("misread", NOT_AT_INTERSECTION if reported else AT_INTERSECTION, action)
    return verdict("wrong_action", WRONG_ACTION, action)


def _upstream_field(output: str, name: str) -> str:
    """The whole output as JSON, else the first exact `"name": "..."` on one line, else "None"."""
    if len(output) > MAX_CHARACTERS:
        return "None"
    try:
        value = json.loads(output)[name]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        match = _UPSTREAM_FIELDS[name].search(output)
        value = match[1] if match else "None"
    return value if isinstance(value, str) else "None"
