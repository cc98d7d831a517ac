"""One interface for every environment (Gymnasium semantics, text actions), and how a data row names one."""

import difflib
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, Protocol, TypedDict, cast

# env_id -> import path. A user's own environment needs no entry here: its import path is its env_id.
ENVIRONMENTS = {
    "card_reading": "recipe.amft.tasks.card_reading.environment:CardReading",
    "general_points": "recipe.amft.tasks.general_points.environment:GeneralPoints",
    "math": "recipe.amft.tasks.math.environment:MathProblem",
    "virl": "recipe.amft.tasks.virl.environment:Navigation",
    "code": "recipe.amft.tasks.code.environment:CodeProblem",
    "reasoning_gym": "recipe.amft.tasks.reasoning_gym:ReasoningGym",
}


IMAGE = "<image>"  # where a text shows the next of its observation's images


class Picture(Protocol):
    """An image that is drawn when it is needed, away from the event loop; a PIL image serves as well."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def draw(self) -> Any:
        """The PIL image, RGB; the same each time."""


class Observation(TypedDict):
    """What the model sees next: a user message; `reset_context` drops the conversation before it.

    The first observation, and one that resets the context, may carry `messages`, a whole opening chat (with a system
    message, say), which then stands in place of `text`. `images` (pictures, or PIL images) stand where the texts say
    IMAGE, in order.
    """

    text: str
    images: list[Any]
    reset_context: bool
    messages: NotRequired[list[dict[str, str]]]


class Environment(Protocol):
    """`reset`, then `step` until terminated (solved) or truncated. Picklable; every draw comes from `seed`."""

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode that `seed` and `options` name; returns the first observation and an info dict."""

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes the model's text; returns observation, reward, terminated, truncated, info (with `success`: bool)."""

    def expert_action(self) -> str:
        """The demonstration for the current state: a text that `step` rewards."""


def make_environment(env_id: str, env_kwargs: dict[str, Any]) -> Environment:
    """Builds the environment named `env_id` (a key of ENVIRONMENTS, or `package.module:Class`) with `env_kwargs`."""
    environment_class = _environment_class(env_id)
    allowed = list(inspect.signature(environment_class).parameters)
    for name in env_kwargs:
        if name not in allowed:
            raise ValueError(
                f"env_kwargs of {env_id!r}: unknown key {name!r}; allowed: {_nearest_first(name, allowed)}"
            )
    return environment_class(**env_kwargs)


def begin(row: Mapping[str, Any], default: Mapping[str, Any] | None = None) -> tuple[Environment, Observation]:
    """The environment that a data row names, after `reset`.

    `row["extra_info"]` has env_id, env_kwargs and options (JSON objects) and seed. A row without env_id is played in
    `default` (env_id and env_kwargs), with its prompt and ground truth as options: a plain OpenR1 row needs no more.
    """
    task = row["extra_info"]
    if task.get("env_id"):
        environment = make_environment(task["env_id"], json.loads(task["env_kwargs"]))
        return environment, environment.reset(int(task["seed"]), json.loads(task["options"]))[0]
    if not default:
        raise ValueError(
            "a data row names no environment: give extra_info env_id, env_kwargs, seed and options, or set "
            "amft.task.environment.env_id for all rows"
        )
    environment = make_environment(default["env_id"], dict(default.get("env_kwargs") or {}))
    prompt = row["raw_prompt"] if "raw_prompt" in row else row["prompt"]
    options = {"prompt": [dict(message) for message in prompt], "ground_truth": row["reward_model"]["ground_truth"]}
    return environment, environment.reset(int(task.get("seed") or 0), options)[0]


def _environment_class(env_id: str) -> type[Environment]:
    import_path = ENVIRONMENTS.get(env_id, env_id)
    module_name, separator, class_name = import_path.partition(":")
    if not (separator and module_name and class_name):
        known = _nearest_first(env_id, ENVIRONMENTS)
        raise ValueError(f"unknown env_id {env_id!r}; known: {known}, or an import path 'package.module:Class'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"env_id {env_id!r}: cannot import {module_name!r} ({error}); is it installed?") from error
    classes = {name: value for name, value in inspect.getmembers(module, inspect.isclass) if hasattr(value, "step")}
    if class_name not in classes:
        known = _nearest_first(class_name, classes) or "none"
        raise ValueError(f"env_id {env_id!r}: {module_name!r} has no environment {class_name!r}; it has: {known}")
    return cast(type[Environment], classes[class_name])


def _nearest_first(name: str, known: Iterable[str]) -> str:
    return ", ".join(sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()))
