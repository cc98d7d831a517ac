"""ReLIFT: reinforcement, and now and then a supervised step on the prompts that reinforcement failed on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipe.amft.algorithm.checks import require_choice, require_positive, require_unchanged
from recipe.amft.methods.base import Choice, Groups, Measurements, Method, Rehearsal, StepPlan, Sum


@dataclass(frozen=True)
class ReliftOptions:
    trigger: str = "buffer"  # when the buffer holds buffer_size prompts; every: after every `every` steps (AMFT's text)
    buffer_size: int = 128
    every: int = 50
    learning_rate: float = 1e-6  # of the supervised step, which has an AdamW of its own
    clip_grad: float = 1.0  # of the supervised step

    def __post_init__(self) -> None:
        require_choice("method.options.trigger", self.trigger, ("buffer", "every"))
        if self.buffer_size < 1 or self.every < 1:
            raise ValueError(
                f"method.options.buffer_size={self.buffer_size} and every={self.every} must be at least 1."
            )
        for name in ("learning_rate", "clip_grad"):
            require_positive(f"method.options.{name}", getattr(self, name), "it is that of the supervised step")
        unread, other = ("every", "every") if self.trigger == "buffer" else ("buffer_size", "buffer")
        require_unchanged("method.options", self, (unread,), f"method.options.trigger={other}")


class Relift(Method):
    """GRPO; prompts without a correct rollout enter a buffer, newest first, whose demonstrations make one SFT step."""

    Options = ReliftOptions

    @property
    def least_steps(self) -> tuple[int, str]:
        return (self.options.every, "amft.method.options.every") if self.options.trigger == "every" else (1, "")

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan(demonstrations=False, rehearsal=True)

    def initial_state(self) -> tuple[str, ...]:
        return ()

    def choose(self, state: tuple[str, ...], step: int, groups: Groups) -> tuple[tuple[str, ...], Choice]:
        failed = (groups.num_correct() == 0).tolist()
        new = [row_id for row_id, has_failed in zip(groups.row_ids, failed, strict=True) if has_failed]
        buffer = tuple(dict.fromkeys((*new, *state)))
        rehearsed = self._due(step, buffer)
        metrics = {"relift/buffer": float(len(buffer)), "relift/rehearsed": float(len(rehearsed))}
        return buffer[len(rehearsed) :], Choice(rehearsed=rehearsed, metrics=metrics)

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Sum, dict[str, float]]:
        return state, Sum(), {}

    @property
    def rehearsal(self) -> Rehearsal:
        return Rehearsal(self.options.learning_rate, optimizer="relift", clip_grad=self.options.clip_grad)

    def state_to_dict(self, state: tuple[str, ...]) -> dict[str, Any]:
        return {"buffer": list(state)}

    def state_from_dict(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(values["buffer"])

    def _due(self, step: int, buffer: tuple[str, ...]) -> tuple[str, ...]:
        options = self.options
        if options.trigger == "every":
            return buffer if (step + 1) % options.every == 0 else ()
        return buffer[: options.buffer_size] if len(buffer) >= options.buffer_size else ()
