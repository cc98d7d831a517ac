"""The texts of V-IRL: prompt, answer and feedback, in the paper's style and in a compact one for tiny models.

`paper` has the blocks of Chu et al. (arXiv 2501.17161) in our words; `compact` says the same in few characters, and its
answer has the action alone. One verifier reads the answers of both.
"""

import json
from typing import Literal

from recipe.amft.tasks.environment import IMAGE
from recipe.amft.tasks.virl.instructions import TURN_LABELS, parse_landmark
from recipe.amft.tasks.virl.rail import AT_INTERSECTION, NOTHING_NEARBY, Location, Rail
from recipe.amft.tasks.virl.routes import COMPASS, NO_LANDMARK
from recipe.amft.tasks.virl.verifier import ActionSpace, Verdict

PromptStyle = Literal["paper", "compact"]
Modality = Literal["text", "image"]

_PAPER_PROMPT = """[Task Description]
You are an expert in navigation. You will receive a sequence of instructions to follow, and your observations and \
actions so far as text{current}.
Your goal is to take the right action, given the current observation and the instruction.

[Instruction]
{instruction}
{format}
[Action space]
- "forward()": move forward one step
- "turn_direction(x)": turn to x, one of [{directions}]
- "stop()": the navigation is finished

[Observations and actions sequence]
{sequence}

{output}"""
_OUTPUT = """[Output]
Your answer is a JSON object in this format:
{
  "current observation": the latest observation,
  "current instruction": the sentence of the instruction that is to be executed now,
  "action": an action of the action space
}"""
_FOUR_VIEWS = "You observe an image of 4 views"
_VIEW_FORMAT = """
[Observation format]
The image shows what is around you, a grid of four views relative to your heading:
[front, right
 back, left]
"""
_FAILED = "You failed this trial because "
_COMPACT_REASONS = {"wrong_action": "wrong action", "misread": "misread observation"}


def prompt(rail: Rail, index: int, action_space: ActionSpace, style: PromptStyle, modality: Modality = "text") -> str:
    """The user message at location `index`: instruction, everything observed and done before, current observation.

    With modality `image` the current observation is the picture before the text, and the earlier ones stay text.
    """
    lines = [_history(rail.locations[i], i, action_space, style) for i in range(index)]
    lines.append(_current(rail.locations[index], index, style, modality))
    sequence = "\n".join(lines)
    picture = IMAGE if modality == "image" else ""
    if style == "compact":
        return f"{picture}{_compact_instruction(rail)}\n{sequence}"
    words = COMPASS if action_space == "absolute" else TURN_LABELS
    return picture + _PAPER_PROMPT.format(
        current="; the current observation is an image" if picture else "",
        format=_VIEW_FORMAT if picture else "",
        instruction="\n".join(f"{number}. {sentence}" for number, sentence in enumerate(rail.sentences, 1)),
        directions=", ".join(f"'{word}'" for word in words),
        sequence=sequence,
        output=_OUTPUT,
    )


def observation(location: Location, index: int, style: PromptStyle, modality: Modality = "text") -> str:
    """The lines at which an action is due: the current observation (or its picture) and an empty action."""
    picture = IMAGE if modality == "image" else ""
    return picture + _current(location, index, style, modality)


def _current(location: Location, index: int, style: PromptStyle, modality: Modality) -> str:
    if style == "compact":
        seen = _compact_observation(location) if modality == "text" else _compact_views(location)
        return f"{seen} >"
    seen = location.observation
    if modality == "image":
        seen = f"{_FOUR_VIEWS}; {AT_INTERSECTION}" if location.intersection else f"{_FOUR_VIEWS};"
    return f"O_{index + 1}: {seen}\nA_{index + 1}:"


def demonstration(rail: Rail, index: int, action_space: ActionSpace, style: PromptStyle) -> str:
    """The expert's answer at location `index`."""
    location = rail.locations[index]
    action = location.action(action_space)
    if style == "compact":
        return json.dumps({"action": action})
    answer = {
        "current observation": location.observation.removesuffix(";"),
        "current instruction": rail.sentences[location.sentence],
        "action": action,
    }
    return json.dumps(answer, indent=2, ensure_ascii=False)


def feedback(verdict: Verdict, style: PromptStyle) -> str:
    """The user message after a wrong answer."""
    if style == "compact":
        return f"{_FAILED}{_COMPACT_REASONS[verdict.name]}"
    return f"{_FAILED}{verdict.reason}. Try again in the same format:\n{_OUTPUT}"


def _history(location: Location, index: int, action_space: ActionSpace, style: PromptStyle) -> str:
    action = location.action(action_space)
    short = action.removeprefix("turn_direction(").rstrip("()") if style == "compact" else action
    return f"{observation(location, index, style)} {short}"


def _compact_instruction(rail: Rail) -> str:
    """`Turn left to east, go to Nori Cafe right, turn right to north, go to end Ulmo Deli left.`"""
    parts = []
    for turn, milestone in zip(rail.turns, rail.milestones, strict=True):
        absent = "end" if milestone is rail.milestones[-1] else "crossing"
        parts.append(f"turn {turn.label} to {turn.direction}")
        parts.append(f"go to {_compact_landmark(milestone.landmark, absent)}")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _compact_observation(location: Location) -> str:
    landmark = _compact_landmark(location.landmark, "none")
    return f"{landmark} crossing" if location.intersection else landmark


def _compact_views(location: Location) -> str:
    return "views crossing" if location.intersection else "views"


def _compact_landmark(text: str, absent: str) -> str:
    landmark = parse_landmark(text)
    if landmark is None:
        return absent if text in (NO_LANDMARK, NOTHING_NEARBY) else text
    return f"{'end ' if landmark.is_destination else ''}{landmark.name} {landmark.relation}"
