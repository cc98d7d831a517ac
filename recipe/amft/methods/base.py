"""What a method says about a training step, and what it is told.

A step asks the method four questions, in this order, and tells it the outcome:

    plan      what data does the step need?
    choose    now that the rollouts have rewards: which rollouts and demonstrations are learned from, how strongly?
    combine   now that both gradients are known: how do they make one update?
    observe   what came out of it?

Shapes: N rollouts, P prompts of the step, D demonstrations.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config import AMFTConfig, build_options


@dataclass(frozen=True)
class StepPlan:
    """What a training step needs.

    Attributes:
        rollouts: generate with the policy and compute L_RL.
        demonstrations: compute L_SFT.
        paired: the demonstrations are those of the step's own prompts, and `choose` says which of them are learned;
            otherwise they are the next ones of their own stream.
        utility: generate for validation prompts too, and measure the meta-gradient before mu is decided.
        rollout_utility: measure it on the step's own rollouts, with the gradients of L_RL: for this step, unless
            `utility` does, and for the next one.
        track_tangent: keep d theta / d mu of this step's update for a later meta-update.
        rehearsal: `choose` may ask for a further supervised update after the step's own.
        learns: make an update; a step that does not only collects rollouts (`Choice.collect`).
        collected: the demonstrations are rollouts that earlier steps collected.
        preferences: they are pairs of them, a better and a worse one of a prompt (`Method.pairs`), weighed before each
            update by the log-probabilities of both under the policy and the reference policy (`Method.pair_weights`).
    """

    rollouts: bool = True
    demonstrations: bool = True
    paired: bool = False
    utility: bool = False
    rollout_utility: bool = False
    track_tangent: bool = False
    rehearsal: bool = False
    learns: bool = True
    collected: bool = False
    preferences: bool = False


@dataclass(frozen=True)
class Groups:
    """The step's rollouts by prompt.

    Attributes:
        prompts: (N,) int64, the prompt of each rollout, from 0 to P - 1.
        rewards: (N,) float64.
        row_ids: (P,) stable ids of the prompts' rows; a prompt whose rollouts all failed is still here.
        demonstration_rewards: (P,) what the environment gives for the prompts' demonstrations; None unless the method
            asks for it (`Method.scores_demonstrations`).
    """

    prompts: Tensor
    rewards: Tensor
    row_ids: Sequence[str]
    demonstration_rewards: Tensor | None = None

    @property
    def num_prompts(self) -> int:
        return len(self.row_ids)

    def sums(self, values: Tensor) -> Tensor:
        """Sum of `values` (N,) over each prompt's rollouts, (P,)."""
        return values.new_zeros(self.num_prompts).index_add_(0, self.prompts, values)

    @property
    def sizes(self) -> Tensor:
        """Rollouts of each prompt, (P,) float64."""
        return self.sums(self.rewards.new_ones(len(self.rewards)))

    def num_correct(self, threshold: float = 0.0) -> Tensor:
        """Rollouts of each prompt with a reward above `threshold`, (P,) float64."""
        return self.sums((self.rewards > threshold).to(self.rewards.dtype))


@dataclass(frozen=True)
class Choice:
    """What a step learns from. The default: all rollouts with verl's advantages, and the next demonstrations.

    Attributes:
        keep: (N,) bool, rollouts that are learned from; None keeps all.
        advantages: (N,) in place of those of `algorithm.adv_estimator`.
        demonstrated: the prompts (indices) whose demonstrations are learned, for a `paired` plan.
        demonstration_weights: (D,) weight or advantage of each of them; None is 1.
        collect: (N,) bool, rollouts to keep for later steps.
        rehearsed: ids of rows whose demonstrations make one more supervised update after the step's own.
        metrics: scalars to log.
    """

    keep: Tensor | None = None
    advantages: Tensor | None = None
    demonstrated: Sequence[int] = ()
    demonstration_weights: Tensor | None = None
    collect: Tensor | None = None
    rehearsed: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurements:
    """What the step measured before the gradients are combined; None or absent where the plan did not ask for it.

    Attributes:
        entropy: mean policy entropy by source ("demonstration", "rollout"), nats per token.
        utility: dot, utility_norm and tangent_norm of the meta-gradient (`AMFTTrainingWorker.validation_gradient`, or
            `backward_rollouts` for a plan with `rollout_utility`).
        learning_rate: of the policy's next optimiser step.
        num_tokens: learned tokens of the whole step by source ("demonstration", "rollout").
        num_sequences: likewise.
    """

    entropy: Mapping[str, float]
    utility: Mapping[str, float] | None = None
    learning_rate: float = 0.0
    num_tokens: Mapping[str, int] = field(default_factory=dict)
    num_sequences: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Mix:
    """(1 - mu) g_RL + mu g_SFT (Eq. 3), each scaled as `mixture.scale` says."""

    mu: float


@dataclass(frozen=True)
class Sum:
    """rl g_RL + sft g_SFT; a gradient that is absent counts as zero. No step when the norm is above `skip_above`."""

    sft: float = 1.0
    rl: float = 1.0
    skip_above: float | None = None


@dataclass(frozen=True)
class Stage:
    """A part of a run. Entering one may go back to the best weights of the stage before, with a fresh optimiser.

    Attributes:
        name: unique in a method; the checkpoint remembers which stage is under way.
        keeps_best: keep the weights of the best validation of this stage.
        from_best: start from the best weights of the stage before; without a validation in it, from its last ones.
        optimizer: whose moments the stage uses; a new name starts with none.
        learning_rate: constant in this stage; None follows the schedule.
    """

    name: str = "main"
    keeps_best: bool = False
    from_best: bool = False
    optimizer: str = "main"
    learning_rate: float | None = None


@dataclass(frozen=True)
class Rehearsal:
    """How the further supervised update of a step is made: its learning rate, whose moments it uses, and its clip."""

    learning_rate: float
    optimizer: str
    clip_grad: float


class Method(ABC):
    """How a training step uses rollouts and demonstrations; pure: what a method remembers is the state it returns.

    `Options` is the dataclass of the method's own keys, `amft.method.options.*`; `reads` names further keys or
    nodes of `amft` that only some methods read; with the others they are refused.
    """

    Options: type = type(None)
    reads: tuple[str, ...] = ()
    reads_demonstrations = False  # whether `read_demonstrations` is called before training
    kinds: tuple[StepPlan, ...] = ()  # plans that only a later state asks for: what is checked before a run
    own_advantages = False  # whether `choose` gives advantages: then there is no critic
    scores_demonstrations = False  # whether `Groups.demonstration_rewards` is needed
    # Which policy is the reference: the "given" model, or the "warmed" policy that the warm-up ended with. None: the
    # one that training with a loss that needs one began from, and only if there is such a loss.
    reference: str | None = None

    def __init__(self, config: AMFTConfig):
        self.config = config
        self.options: Any = build_options(type(self).Options, config.method.options, config.method.name)

    @property
    def least_steps(self) -> tuple[int, str]:
        """The shortest run, in training steps, that has every part of the method, and the key that decides it."""
        return 1, ""

    @abstractmethod
    def plan(self, step: int, state: Any) -> StepPlan:
        """What training step `step` (from 0, warm-up not counted) needs."""

    def choose(self, state: Any, step: int, groups: Groups) -> tuple[Any, Choice]:
        """Which rollouts and demonstrations the step learns from; asked once the rollouts have rewards."""
        return state, Choice()

    @abstractmethod
    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix | Sum, dict[str, float]]:
        """How the gradients make one update: (new state, combination, metrics); asked once a step."""

    def observe(self, state: Any, step: int, metrics: Mapping[str, float]) -> Any:
        """Told the step's metrics (mini-batch means), after its updates."""
        return state

    @property
    def demonstration_loss(self) -> LossSpec:
        """The token loss of demonstrations; `amft.demonstrations.loss` unless the method has its own."""
        return LossSpec(self.config.demonstrations.loss, self.config.demonstrations.loss_options)

    @property
    def rollout_loss(self) -> LossSpec | None:
        """The token loss of rollouts; None is verl's clipped policy loss."""
        return None

    def pairs(self, row_ids: Sequence[str], rewards: Sequence[float]) -> list[tuple[int, int]]:
        """(better, worse) indices of collected rollouts, for plans with `preferences`."""
        raise NotImplementedError(f"method={self.config.method.name} asks for preferences and makes no pairs")

    def pair_weights(self, policy: Tensor, reference: Tensor) -> Tensor:
        """Weights (D,) of better and worse answers in turn, from their summed log-probabilities (D,) under both."""
        raise NotImplementedError(f"method={self.config.method.name} asks for preferences and does not weigh pairs")

    def stage(self, step: int) -> Stage:
        """The stage that training step `step` belongs to."""
        return Stage()

    def guidance(self, step: int, row_ids: Sequence[str]) -> list[list[str]] | None:
        """Texts to put before each prompt; a prompt's rollouts take them in turn. None: prompts stay as they are."""
        return None

    @property
    def rehearsal(self) -> Rehearsal | None:
        return None

    def read_demonstrations(self, prompts: Mapping[str, str], targets: Mapping[str, str]) -> None:  # noqa: B027
        """Told the texts of all demonstrations by row id, once, before training."""

    def initial_state(self) -> Any:
        return None

    def after_warm_up(self, state: Any, measured: Mapping[str, float]) -> Any:
        """Told once, before step 0: `entropy`, the warmed policy's mean on demonstrations (absent in a run that draws
        none), and `sft_norm`, the norm of the SFT gradient in the last warm-up step (absent without a warm-up)."""
        return state

    def state_to_dict(self, state: Any) -> dict[str, Any]:
        """The state as JSON; the inverse is `state_from_dict`."""
        return {}

    def state_from_dict(self, values: Mapping[str, Any]) -> Any:
        return self.initial_state()
