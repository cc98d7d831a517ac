"""The `amft:` node of the configuration: every default of this recipe, checked when it is built.

The dataclasses of `algorithm/` are part of the tree, so that a value and the reason for it live in one place. YAML
files hold only what differs from here. `from_mapping` turns a composed node into the frozen tree and refuses unknown
keys.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe.amft.algorithm.checks import require_choice
from recipe.amft.algorithm.controller import ControllerConfig
from recipe.amft.algorithm.mixture import MixtureConfig
from recipe.amft.algorithm.schedules import ScheduleConfig
from recipe.amft.algorithm.token_losses import DEMONSTRATION_LOSSES, LossSpec
from recipe.amft.hardware import PlanConfig


def require_at_least(name: str, value: int, low: int, fix: str) -> None:
    if value < low:
        raise ValueError(f"{name}={value!r} must be at least {low}; {fix}.")


@dataclass(frozen=True)
class WarmUpConfig:
    """Phase 1 of Algorithm 2: supervised steps before the mixed loop."""

    steps: int = 50  # W (AMFT Table 6)
    learning_rate: float | None = None  # constant during the warm-up; None: the actor's, before its schedule starts
    loss: str | None = None  # one that needs no options, for any method; None: demonstrations.loss
    entropy_batches: int = 8  # demonstration batches that H* is measured on, by a forward pass after the warm-up

    def __post_init__(self) -> None:
        require_at_least("warm_up.steps", self.steps, 0, "0 switches the warm-up off")
        require_at_least("warm_up.entropy_batches", self.entropy_batches, 1, "H* is the mean over these batches")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"warm_up.learning_rate={self.learning_rate!r} must be positive, or null for the actor's.")
        if self.loss is not None:
            require_choice("warm_up.loss", self.loss, DEMONSTRATION_LOSSES)


@dataclass(frozen=True)
class DemonstrationConfig:
    """Where the expert's answers come from and how they are learned."""

    files: tuple[str, ...] = ()  # parquet files with `prompt` and `target`; empty: data.train_files
    batch_size: int = 128  # demonstrations per training step, split over the mini-batches
    loss: str = "sft"  # one of algorithm/token_losses.py: DEMONSTRATION_LOSSES
    loss_options: dict[str, Any] = field(default_factory=dict)  # that loss's own, such as tau of iw_sft
    on_bad_row: str = "refuse"  # refuse | drop: a row without target, or longer than the limits
    seed: int = 0  # order of the rows

    def __post_init__(self) -> None:
        require_at_least("demonstrations.batch_size", self.batch_size, 1, "one demonstration is the least")
        require_choice("demonstrations.loss", self.loss, DEMONSTRATION_LOSSES)
        LossSpec(self.loss, self.loss_options)  # refuses unknown options
        require_choice("demonstrations.on_bad_row", self.on_bad_row, ("refuse", "drop"))


@dataclass(frozen=True)
class UtilityConfig:
    """The rollouts that U(theta) is estimated on (Eq. 4, Algorithm 2 line 24).

    validation: rollouts of prompts that are kept for it, in every K-th step. rollouts: those that the step generates to
    learn from, before it does, in every step and for free; they know nothing of the updates so far unless a prompt
    comes again. both: validation in every K-th step, rollouts in the others.
    """

    source: str = "both"
    files: tuple[str, ...] = ()  # parquet files; must share no prompt with training or evaluation
    num_prompts: int = 128
    rollouts_per_prompt: int = 8  # at least 2: the baseline is the mean of the others
    every: int = 20  # K (AMFT Table 7)

    def __post_init__(self) -> None:
        require_choice("utility.source", self.source, ("both", "validation", "rollouts"))
        require_at_least("utility.every", self.every, 1, "K counts training steps between two meta-updates")
        require_at_least("utility.num_prompts", self.num_prompts, 1, "the meta-gradient needs validation prompts")
        require_at_least(
            "utility.rollouts_per_prompt", self.rollouts_per_prompt, 2, "a leave-one-out baseline needs another rollout"
        )


@dataclass(frozen=True)
class MethodConfig:
    """Which method decides the weight mu; `schedule` and `weight` are read only by the methods that have them."""

    name: str = "amft"  # a key of methods.METHODS
    weight: float = 0.5  # fixed_mu
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # scheduled_mu
    options: dict[str, Any] = field(default_factory=dict)  # the method's own keys: the Options of its class

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"method.weight={self.weight!r} is the share of imitation; choose a number in [0, 1].")


@dataclass(frozen=True)
class LimitsConfig:
    """How long the driver waits before it ends a run whose workers have stopped answering, in seconds."""

    rollout_seconds: float = 3600.0
    phase_seconds: float = 1800.0
    cluster_seconds: float = 300.0  # until all nodes of a Ray cluster that the run joins are there
    poll_seconds: float = 0.5  # pause between two looks at the replay buffer


@dataclass(frozen=True)
class AMFTConfig:
    """Everything under `amft:`."""

    run_dir: str = "runs/quickstart"
    overwrite: bool = False  # allow a finished run folder to be written again
    keep_checkpoints: int | None = 2  # None keeps all
    cache_dir: str = "runs/cache"  # where generated data sets and tiny models are kept
    gpu_memory_gib: float | None = None  # of one GPU, for the plan; None: plan.gpu's, or this machine's first GPU's
    rollout_seed: int | None = 0  # seeds every generation; None: the engine's own randomness
    task: dict[str, Any] = field(default_factory=dict)  # how to prepare the data when data.train_files do not exist
    model: dict[str, Any] = field(default_factory=dict)  # how to make the model when model.path does not exist
    method: MethodConfig = field(default_factory=MethodConfig)
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        if self.keep_checkpoints is not None:
            require_at_least("keep_checkpoints", self.keep_checkpoints, 1, "null keeps all of them")


def defaults() -> dict[str, Any]:
    """The tree of defaults as plain containers, for Hydra's config store."""
    return dataclasses.asdict(AMFTConfig())


def from_mapping(values: Mapping[str, Any]) -> AMFTConfig:
    """Build the checked tree; ValueError names an unknown key and its nearest known ones, or a value of wrong type."""
    return _build(AMFTConfig, values, path="amft")


def build_options(cls: type, values: Mapping[str, Any], method: str) -> Any:
    """A method's own options, checked; a method without any refuses every key."""
    if cls is type(None):
        if values:
            raise ValueError(f"amft.method.options={dict(values)!r}: method={method} has no options of its own.")
        return None
    return _build(cls, values, path="amft.method.options")


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}={values!r} is not a mapping; it holds {', '.join(_field_types(cls))}.")
    types_of_fields = _field_types(cls)
    for key in values:
        if key not in types_of_fields:
            near = difflib.get_close_matches(str(key), types_of_fields, n=3) or list(types_of_fields)
            raise ValueError(f"{path}.{key} is not a known key; did you mean {', '.join(near)}?")
    built = {key: _convert(types_of_fields[key], value, f"{path}.{key}") for key, value in values.items()}
    try:
        return cls(**built)
    except ValueError as error:
        raise ValueError(f"In amft: {error}" if not str(error).startswith("In amft") else str(error)) from None


def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def _convert(expected: Any, value: Any, path: str) -> Any:
    """`value` as the declared type; integers pass as floats, lists as tuples, nothing else is coerced."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is types.UnionType:
        return None if value is None else _convert(next(a for a in arguments if a is not types.NoneType), value, path)
    if dataclasses.is_dataclass(expected):
        return _build(expected, value, path)
    if origin is tuple:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple):
            return tuple(_convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    elif origin is dict or expected is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        return value
    name = getattr(expected, "__name__", str(expected))
    raise ValueError(f"{path}={value!r} is of type {type(value).__name__}; a value of type {name} is needed.")
