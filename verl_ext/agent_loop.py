"""One agent loop for every environment: the model acts, the environment answers, until the episode ends.

An environment follows Gymnasium's semantics with text actions (`step`); the recipe's `begin` makes it from a data row
and shows its first observation. Tokens that the model wrote carry mask 1, tokens that the environment or the chat
template wrote carry mask 0, and a trajectory always ends on a model token, because verl puts the reward on the last
token. An environment that resets the context ends one trajectory and begins the next: the episode is then several, with
one reward.
"""

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.import_utils import load_class_from_fqn
from verl.utils.profiler import simple_timer

from verl_ext.images import draw, with_images

# Of an environment's info: of the last turn, where it is given.
LOGGED_INFO = ("per_step_accuracy", "recognition_accuracy")
COUNTED_INFO = ("num_grader_timeouts", "num_grader_crashes", "num_refused_answers")  # summed over the turns


class EnvironmentClock:
    """How long the environments of this process are at work, every moment counted once however many calls overlap.

    Calls overlap where environments wait for a grader. A call is given the time that has passed since it began, or
    since another one ended: the sum over calls is the length of the union.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._num_running = 0
        self._counted_until = 0.0

    @contextmanager
    def running(self, episode: Counter):
        """Adds to `episode["seconds"]` what the call inside is given."""
        if self._num_running == 0:
            self._counted_until = self._now()
        self._num_running += 1
        try:
            yield
        finally:
            now = self._now()
            episode["seconds"] += now - self._counted_until
            self._counted_until = now
            self._num_running -= 1


CLOCK = EnvironmentClock()


class Conversation:
    """The tokens of one trajectory; `messages` are what they say, `images` what they show."""

    def __init__(self, messages: list[dict[str, Any]], images: list[Any], tokens: list[int], keeps_logprobs: bool):
        self.messages = messages
        self.images = images
        self.tokens = tokens
        self.num_prompt_tokens = len(tokens)
        self.mask: list[int] = []
        self.logprobs: list[float] | None = [] if keeps_logprobs else None


class EnvironmentLoop(AgentLoopBase):
    """Drive one episode of an environment with the rollout engine.

    Args:
        begin: import path of `begin(row, default) -> (environment, first observation)`.
        seed_key: where the run's configuration holds a seed or null. With a seed every turn samples with one derived
            from it, the step, the row and the session, so that a run repeats itself as far as the engine is
            deterministic.
        default_key: where it holds the environment of rows that name none, or null.
    """

    def __init__(self, *args, begin: str, seed_key: str, default_key: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.begin = load_class_from_fqn(begin, "environment factory")
        self.seed: int | None = OmegaConf.select(self.config, seed_key)
        self.default = OmegaConf.select(self.config, default_key)
        self.response_length = self.rollout_config.response_length

    async def run(self, sampling_params: dict[str, Any], **row) -> AgentLoopOutput | list[AgentLoopOutput]:
        """One episode: token ids, masks, log-probabilities, the summed reward and what the episode was.

        `extra_fields["environment"]` has the seconds that the environment was at work, and its counts of COUNTED_INFO.
        """
        account: Counter = Counter()
        with CLOCK.running(account):
            environment, observation = self.begin(row, self.default)
        conversation = await self._open(observation, row, account)
        finished: list[Conversation] = []
        metrics: dict[str, Any] = {"num_preempted": -1}
        fields: dict[str, Any] = {}
        info: dict[str, Any] = {}
        reward, num_turns, done = 0.0, 0, False
        while not done:
            text = await self._act(conversation, sampling_params, row, num_turns, metrics, fields)
            with CLOCK.running(account):
                observation, turn_reward, terminated, truncated, info = await self._step(environment, text)
            account.update({name: info[name] for name in COUNTED_INFO if name in info})
            reward += turn_reward
            num_turns += 1
            done = terminated or truncated
            if not done and observation["reset_context"]:
                finished.append(conversation)
                conversation = await self._open(observation, row, account)
            elif not done:
                done = not await self._answer(conversation, text, observation, account)
        success = float(bool(info.get("success", reward > 0)))
        logged = {name: float(info[name]) for name in LOGGED_INFO if name in info}
        counts = {name: float(account[name]) for name in COUNTED_INFO if name in account}
        fields["reward_extra_info"] = {"acc": success, "num_attempts": num_turns, **logged, **counts}
        fields["environment"] = {"seconds": account["seconds"], **counts}
        outputs = [self._output(part, reward, 2 * num_turns, metrics, fields) for part in [*finished, conversation]]
        return outputs if finished else outputs[0]

    async def _open(self, observation: dict[str, Any], row: dict[str, Any], account: Counter) -> Conversation:
        """A new conversation: what the environment shows, after the method's guidance if there is any."""
        messages = observation.get("messages") or [{"role": "user", "content": observation["text"]}]
        guidance = row.get("guidance")
        if guidance:
            last, text = messages[-1], guidance[row["session_id"] % len(guidance)]
            messages = [*messages[:-1], {**last, "content": f"{text}\n\n{last['content']}"}]
        images = await self._draw(observation, account)
        messages = with_images(messages, images)
        tokens = await self.ct_build_initial_tokens(messages, images=images or None)
        return Conversation(messages, images, tokens, self.rollout_config.calculate_log_probs)

    async def _draw(self, observation: dict[str, Any], account: Counter) -> list[Any]:
        """The observation's images, drawn in a thread: other conversations go on meanwhile."""
        pictures = observation.get("images") or []
        self._assert_mm_supported(bool(pictures))
        if not pictures:
            return []
        with CLOCK.running(account):
            return await asyncio.to_thread(draw, pictures)

    async def _act(self, part: Conversation, sampling_params, row, turn: int, metrics: dict, fields: dict) -> str:
        """The model's next text, appended to the conversation."""
        params = self._turn_params(sampling_params, row, turn, self.response_length - len(part.mask))
        with simple_timer("generate_sequences", metrics):
            output = await self.server_manager.generate(
                request_id=uuid4().hex,
                prompt_ids=part.tokens,
                sampling_params=params,
                image_data=part.images or None,
                mm_processor_kwargs=dict(self.mm_processor_kwargs or {}) or None,
            )
        self._merge_extra_fields(fields, output.extra_fields)
        merged, part.mask, part.logprobs = await self.ct_merge_assistant_token(
            part.tokens, output.token_ids, part.mask, part.logprobs, assistant_logprobs=output.log_probs
        )
        part.tokens = merged.token_ids
        return self.tokenizer.decode(output.token_ids, skip_special_tokens=True)

    @staticmethod
    async def _step(environment, text: str):
        """The environment's answer; slow environments offer `step_async`, or name themselves `blocking`."""
        if hasattr(environment, "step_async"):
            return await environment.step_async(text)
        if getattr(environment, "blocking", False):
            return await asyncio.to_thread(environment.step, text)
        return environment.step(text)

    async def _answer(self, part: Conversation, text: str, answer: dict[str, Any], account: Counter) -> bool:
        """Append the environment's answer; False, and nothing appended, when no room is left for a further action."""
        images = await self._draw(answer, account)
        previous = [*part.messages, {"role": "assistant", "content": text}]
        messages = [*previous, *with_images([{"role": "user", "content": answer["text"]}], images)]
        merged, mask, logprobs = await self.ct_merge_context_msg(
            previous, messages, part.tokens, part.mask, part.logprobs
        )
        if len(mask) >= self.response_length:
            return False
        part.messages, part.tokens, part.mask, part.logprobs = messages, merged.token_ids, mask, logprobs
        part.images = [*part.images, *images]
        return True

    @staticmethod
    def _output(part: Conversation, reward: float, num_turns: int, metrics: dict, fields: dict) -> AgentLoopOutput:
        return AgentLoopOutput(
            prompt_ids=part.tokens[: part.num_prompt_tokens],
            response_ids=part.tokens[part.num_prompt_tokens :],
            response_mask=part.mask,
            response_logprobs=part.logprobs,
            reward_score=reward,
            multi_modal_data={"images": part.images} if part.images else None,
            num_turns=num_turns,
            metrics=metrics,
            extra_fields=dict(fields),
        )

    def _turn_params(self, sampling_params: dict[str, Any], row: dict, turn: int, room: int) -> dict[str, Any]:
        params = {**sampling_params, "max_tokens": room}
        if self.seed is not None:
            task = row["extra_info"]
            identity = f"{self.seed}/{row['global_steps']}/{task.get('id', row['index'])}/{row['session_id']}/{turn}"
            params["seed"] = zlib.crc32(identity.encode())
        return params

    @staticmethod
    def _merge_extra_fields(fields: dict[str, Any], new: dict[str, Any]) -> None:
        """Keep the first turn's fields and the latest weight version (verl's staleness tags)."""
        latest = new.get("max_global_steps")
        for key, value in new.items():
            fields.setdefault(key, value)
        if latest is not None:
            fields["max_global_steps"] = latest
