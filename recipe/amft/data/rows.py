"""The row schema of prepared data (that of OpenR1-Math-46k-8192, with what the environment loop reads), and its checks.

data_source    str
prompt         [{role, content}]
target         [{role: assistant, content}]; absent in files without demonstrations
ability        "math"
reward_model   {style: "rule", ground_truth: str}
extra_info     {id, env_id, env_kwargs: JSON, seed, options: JSON, split, index}
"""

import hashlib
import json
import random
from dataclasses import dataclass
from typing import Any

from recipe.amft.data.choices import LETTERS, render_choices, shuffled
from recipe.amft.data.normalise import prompt_key
from recipe.amft.tasks.graders import check_task
from recipe.amft.tasks.graders.answers import THINK_CLOSE

ENV_ID = "math"
SPLITS = ("train", "validation", "test")

# The system message of the OpenR1-Math-46k-8192 and benchmark rows (LUFFY's), word for word: scores depend on it.
THINK_SYSTEM = (
    "Your task is to follow a systematic, thorough reasoning process before providing the final solution. This "
    "involves analyzing, summarizing, exploring, reassessing, and refining your thought process through "
    "multiple iterations. Structure your response into two sections: Thought and Solution. In the Thought "
    'section, present your reasoning using the format: "<think>\n {thoughts} </think>\n". Each thought should '
    'include detailed analysis, brainstorming, verification, and refinement of ideas. After "</think>\n," in '
    "the Solution section, provide the final, logical, and accurate answer, clearly derived from the "
    "exploration in the Thought section. If applicable, include the answer in \\boxed{} for closed-form "
    "results like multiple choices or mathematical solutions."
)

Message = dict[str, str]


class BadRow(ValueError):
    """A row that cannot be used; `kind` is the name under which it is counted, the message says what is wrong."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


@dataclass(frozen=True)
class Problem:
    """One problem as a source has it.

    Attributes:
        messages: the chat that poses it, without a system message; options are in `choices`, not here.
        answer: the ground truth; for multiple choice unused.
        target: the demonstration, "" without one.
        system: the source's own system message.
        own_id: the source's own stable id, "" without one.
        choices, correct: the options and the position of the right one.
        has_order: whether the source shows the options in an order of its own.
    """

    messages: tuple[Message, ...]
    answer: str = ""
    target: str = ""
    system: str | None = None
    own_id: str = ""
    choices: tuple[str, ...] = ()
    correct: int = 0
    has_order: bool = True


@dataclass(frozen=True)
class RowOptions:
    """How problems become rows.

    Attributes:
        system: own (the source's own message; where it has none, `think` or `none` by the style), think, none, or text.
        style: think (a demonstration reasons between tags) or plain.
        require_think: whether the reward requires the think tags; None: with style think.
        shuffle_choices: whether options get a new order, drawn from `seed` and the row's id.
    """

    system: str = "own"
    style: str = "think"
    require_think: bool | None = None
    shuffle_choices: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.style not in ("think", "plain"):
            raise ValueError(f"style={self.style!r} is unknown; choose think or plain.")
        if not self.system.strip():
            raise ValueError("system='' is empty; choose own, think, none, or give the text of the system message.")

    @property
    def requires_think(self) -> bool:
        return self.style == "think" if self.require_think is None else self.require_think

    def system_text(self, own: str | None) -> str | None:
        if self.system == "own":
            return own or (THINK_SYSTEM if self.style == "think" else None)
        return {"think": THINK_SYSTEM, "none": None}.get(self.system, self.system)


def build_row(problem: Problem, source: str, split: str, options: RowOptions) -> dict[str, Any]:
    """The row of `problem`; BadRow where it has no question, no answer, or options that do not fit the letters."""
    _check(problem)
    messages = [dict(message) for message in problem.messages]
    identity = f"{source}/{problem.own_id or _digest(prompt_key(_posed(messages, problem.choices)))}"
    grader: dict[str, Any] = {"grader": "math_verify", "require_think": options.requires_think}
    answer, letters = problem.answer.strip(), ""
    if problem.choices:
        choices, correct = problem.choices, problem.correct
        if options.shuffle_choices:
            rng = random.Random(f"{options.seed}/{identity}")
            choices, correct = shuffled(choices, correct, rng, problem.has_order)
        messages = _posed(messages, choices)
        answer, letters, grader["grader"] = LETTERS[correct], LETTERS[: len(choices)], "letter"
    try:
        check_task(answer, grader["grader"], letters)
    except ValueError as error:
        raise BadRow("no_answer", str(error)) from None
    system = options.system_text(problem.system)
    prompt = [*([{"role": "system", "content": system}] if system else []), *messages]
    row_options = {"prompt": prompt, "ground_truth": answer} | ({"choices": letters} if letters else {})
    return {
        "data_source": source,
        "prompt": prompt,
        "target": [{"role": "assistant", "content": problem.target}] if problem.target else [],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {
            "id": identity,
            "env_id": ENV_ID,
            "env_kwargs": json.dumps(grader, sort_keys=True),
            "seed": 0,
            "options": json.dumps(row_options, sort_keys=True, ensure_ascii=False),
            "split": split,
            "index": 0,
        },
    }


def row_id(row: dict[str, Any]) -> str:
    return str(row["extra_info"]["id"])


def target_text(row: dict[str, Any]) -> str:
    """The demonstration; "" without one."""
    return str(row["target"][0]["content"]) if row["target"] else ""


def require_target(row: dict[str, Any], requires_think: bool) -> None:
    """BadRow for a training row without a demonstration, or without the tags that its reward requires."""
    text = target_text(row)
    if not text.strip():
        raise BadRow("no_target", "it has no target")
    if requires_think and THINK_CLOSE not in text:
        raise BadRow("no_think_tag", f"its target has no {THINK_CLOSE}, which the reward requires (--no-require-think)")


def _check(problem: Problem) -> None:
    if not problem.messages or not problem.messages[-1]["content"].strip():
        raise BadRow("no_question", "its question is empty")
    if problem.messages[-1]["role"] != "user":
        raise BadRow(
            "no_question", f"its prompt ends with a message of role {problem.messages[-1]['role']!r}, not user"
        )
    if not problem.choices:
        if not problem.answer.strip():
            raise BadRow("no_answer", "its answer is empty")
        return
    if not 2 <= len(problem.choices) <= len(LETTERS):
        raise BadRow("bad_choices", f"it has {len(problem.choices)} options; 2 to {len(LETTERS)} are possible")
    if not all(choice.strip() for choice in problem.choices):
        raise BadRow("bad_choices", "one of its options is empty")
    if not 0 <= problem.correct < len(problem.choices):
        raise BadRow("no_answer", "its answer is none of the options")


def _posed(messages: list[Message], choices: tuple[str, ...]) -> list[Message]:
    """The chat with the options under its last message."""
    if not choices:
        return messages
    return [*messages[:-1], {"role": "user", "content": render_choices(messages[-1]["content"], choices)}]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
