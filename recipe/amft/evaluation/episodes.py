"""One episode of one environment: the model answers, the environment judges, until it ends.

The loop is that of training (verl_ext/agent_loop.py). A policy is any coroutine that turns a prompt of token ids into
an answer of token ids, so that tests drive the same loop with a script.
"""

import asyncio
import copy
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

from recipe.amft.evaluation.conversation import Chat, Context
from recipe.amft.evaluation.tasks import Task
from recipe.amft.tasks.environment import Environment, Observation, make_environment
from verl_ext.images import draw, with_images

STOP_REASONS = (
    "terminated",  # the environment ended the episode
    "truncated",  # it gave up: no attempt left
    "length",  # the last answer was cut at the token limit
    "context",  # no room for another answer
    "turns",  # max_turns answers
    "error",  # the environment raised
)
MAX_INFO_CHARACTERS = 4000


@dataclass(frozen=True)
class Generation:
    """An answer; `cut` when it was ended by the token limit and not by the model."""

    token_ids: Sequence[int]
    cut: bool


class Policy(Protocol):
    async def __call__(self, prompt: Sequence[int], max_tokens: int, turn: int, images: Sequence[Any]) -> Generation:
        """The answer number `turn` (from 0) of at most `max_tokens` tokens; an image is one token of the prompt."""


@dataclass(frozen=True)
class Limits:
    """Tokens of a conversation behind its prompt, tokens of prompt and all, answers of an episode."""

    max_tokens: int
    max_model_len: int
    max_turns: int

    def room(self, context: Context) -> int:
        """How long the next answer may be."""
        return min(self.max_tokens - len(context.mask), self.max_model_len - len(context.tokens))


@dataclass
class Episode:
    """What happened; `contexts` has one entry, and one more for each time the environment reset the conversation."""

    contexts: list[Context] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    turn_lengths: list[int] = field(default_factory=list)
    reward: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)
    stop_reason: str = ""
    error: str = ""
    num_timeouts: int = 0
    verdicts: dict[str, tuple[bool, str]] = field(default_factory=dict)  # of the judges that judged again

    @property
    def success(self) -> bool:
        return not self.error and bool(self.info.get("success"))

    @property
    def token_ids(self) -> list[int]:
        """The model's own tokens, in order."""
        return [
            token
            for context in self.contexts
            for token, own in zip(context.tokens[context.num_prompt_tokens :], context.mask, strict=True)
            if own
        ]

    def info_text(self) -> str:
        """The last info as JSON."""
        return json.dumps(self.info, default=str, ensure_ascii=False)[:MAX_INFO_CHARACTERS]


class EnvironmentFailed(Exception):
    """The environment raised, or broke its contract; the cause says how."""


def pose(task: Task) -> tuple[Environment, Observation]:
    """A new environment for `task`, reset, and what it shows first."""
    environment = make_environment(task.env_id, dict(task.env_kwargs))
    return environment, environment.reset(seed=task.seed, options=copy.deepcopy(dict(task.options)))[0]


def opening(observation: Observation) -> list[dict[str, str]]:
    """The messages of an observation that starts a conversation."""
    messages = observation.get("messages") or [{"role": "user", "content": observation["text"]}]
    return [dict(message) for message in messages]


def images_of(observation: Observation, chat: Chat) -> list[Any]:
    """Its images, drawn; ValueError where the model cannot see them, or its texts mark another number of them."""
    chat.check_images(observation["images"])
    images = draw(observation["images"])
    with_images(opening(observation), images)
    return images


async def run_episode(
    task: Task,
    chat: Chat,
    policy: Policy,
    limits: Limits,
    executor: Executor | None = None,
    judge_again: Mapping[str, Mapping[str, Any]] | None = None,
) -> Episode:
    """Plays `task` to its end. What the environment raises ends this episode only, with reason "error".

    Environments run in `executor` (one thread: they are called one at a time, as in training); those with `step_async`
    in the event loop. `judge_again` maps names to env_kwargs under which the same answers are judged once more.
    """
    episode = Episode()
    try:
        environment, observation = await _in(executor, pose, task)
        images = await _in(executor, images_of, observation, chat)
        episode.contexts.append(chat.open(opening(observation), images))
        await _play(episode, environment, chat, policy, limits, executor)
        for name, kwargs in (judge_again or {}).items():
            episode.verdicts[name] = await _judge(task, kwargs, episode.texts, executor)
    except EnvironmentFailed as failure:
        episode.stop_reason, episode.error, episode.reward = "error", _described(failure.__cause__ or failure), 0.0
    return episode


async def _play(
    episode: Episode, environment: Environment, chat: Chat, policy: Policy, limits: Limits, executor: Executor | None
) -> None:
    while True:
        context, turn = episode.contexts[-1], len(episode.texts)
        room = limits.room(context)
        if room < 1 or turn == limits.max_turns:
            episode.stop_reason = "context" if room < 1 else "turns"
            return
        generation = await policy(chat.one_token_for_each_image(context.tokens), room, turn, context.images)
        text = chat.answer(context, generation.token_ids)
        episode.texts.append(text)
        episode.turn_lengths.append(len(generation.token_ids))
        observation, reward, terminated, truncated, info = await _step(environment, text, executor)
        episode.reward += reward
        episode.info = info
        episode.num_timeouts += int(info.get("num_grader_timeouts", 0))
        if terminated or truncated:
            ended = "terminated" if terminated else "truncated"
            episode.stop_reason = "length" if generation.cut and not info["success"] else ended
            return
        if not await _continue(episode, context, chat, observation, limits, executor):
            episode.stop_reason = "length" if generation.cut else "context"
            return


async def _continue(
    episode: Episode,
    context: Context,
    chat: Chat,
    observation: Observation,
    limits: Limits,
    executor: Executor | None,
) -> bool:
    """Shows the environment's answer to the model; False where no room is left."""
    images = await _in(executor, images_of, observation, chat)
    if observation["reset_context"]:
        episode.contexts.append(chat.open(opening(observation), images))
    elif not chat.tell(context, observation["text"], limits.max_tokens, images):
        return False
    episode.observations.append(observation["text"])
    return True


async def _step(
    environment: Environment, text: str, executor: Executor | None
) -> tuple[Observation, float, bool, bool, Mapping[str, Any]]:
    """`step_async` where there is one, else `step`; EnvironmentFailed for whatever they raise."""
    step_async = getattr(environment, "step_async", None)
    if step_async is None:
        result = await _in(executor, environment.step, text)
    else:
        try:
            result = await step_async(text)
        except Exception as error:
            raise EnvironmentFailed from error
    if (result[2] or result[3]) and "success" not in result[4]:
        raise EnvironmentFailed(f"the info of its last step has no `success`, only {', '.join(result[4]) or 'nothing'}")
    outcome: tuple[Observation, float, bool, bool, Mapping[str, Any]] = result
    return outcome


async def _in(executor: Executor | None, function: Any, *arguments: Any) -> Any:
    value, error = await asyncio.get_running_loop().run_in_executor(executor, _attempt, function, arguments)
    if error is not None:
        raise EnvironmentFailed from error
    return value


def _attempt(function: Any, arguments: Sequence[Any]) -> tuple[Any, Exception | None]:
    """Exceptions as values: a StopIteration cannot pass through a future, which would wait for ever."""
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error


async def _judge(
    task: Task, kwargs: Mapping[str, Any], texts: Sequence[str], executor: Executor | None
) -> tuple[bool, str]:
    """Success and verdict of the same answers in an environment with other arguments; a failure is a wrong answer."""
    info: Mapping[str, Any] = {}
    try:
        environment, _ = await _in(executor, pose, replace_kwargs(task, kwargs))
        for text in texts:
            _, _, terminated, truncated, info = await _step(environment, text, executor)
            if terminated or truncated:
                break
    except EnvironmentFailed as failure:
        return False, f"error: {_described(failure.__cause__ or failure)}"
    return bool(info.get("success")), str(info.get("verdict", ""))


def replace_kwargs(task: Task, kwargs: Mapping[str, Any]) -> Task:
    """The same task with `kwargs` over its own arguments."""
    merged = {**task.env_kwargs, **kwargs}
    return Task(task.benchmark, task.row_id, task.env_id, merged, task.seed, task.options)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_INFO_CHARACTERS]
