"""What a configuration may not ask for: contradictions, and keys that would have no effect.

Each check takes a `Run` and raises ValueError: the value received, what is allowed, the fix.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from recipe.amft.config import AMFTConfig
from recipe.amft.methods import METHODS, StepPlan
from recipe.amft.methods.base import Method
from recipe.amft.shape import Shape


@dataclass(frozen=True)
class Run:
    """What the checks look at.

    Attributes:
        config: verl's nodes of the composed configuration.
        settings: its `amft:` node.
        shape: its sizes.
        needs: everything that the method ever asks of a step.
    """

    config: Any
    settings: AMFTConfig
    shape: Shape
    needs: StepPlan

    def value(self, key: str) -> Any:
        return OmegaConf.select(self.config, key)

    @property
    def uses_critic(self) -> bool:
        """verl's rule: `critic.enable`, else whether the advantages are GAE."""
        enable = self.config.critic.enable
        return self.config.algorithm.adv_estimator == "gae" if enable is None else bool(enable)


# ---- what is supported -----------------------------------------------------------------------------------------------

ACTOR = "actor_rollout_ref.actor"
MODEL = "actor_rollout_ref.model"
ROLLOUT = "actor_rollout_ref.rollout"
FP16 = "fp16 scales losses, which would scale the two gradients by different factors"
IGNORED = "AMFT's own training loop would ignore it"
# (key, allowed values, why). A key that is absent from the configuration is not checked.
SUPPORTED: tuple[tuple[str, tuple, str], ...] = (
    ("model_engine", ("dp",), "the two gradients are FSDP2 shards; Megatron and the others keep other ones"),
    (f"{ACTOR}.strategy", ("fsdp2",), "the two gradients are FSDP2 shards; FSDP1 and Megatron keep others"),
    ("critic.strategy", ("fsdp2",), "it shares the actor's processes"),
    (f"{ACTOR}.fsdp_config.use_orig_params", (False,), "that is an FSDP1 option; FSDP2 needs none"),
    (f"{ACTOR}.fsdp_config.dtype", ("bfloat16", "float32"), FP16),
    (f"{ACTOR}.fsdp_config.model_dtype", ("fp32", "float32", "bf16", "bfloat16"), FP16),
    (f"{ACTOR}.fsdp_config.mixed_precision.param_dtype", (None, "bf16", "bfloat16", "fp32", "float32"), FP16),
    (f"{ACTOR}.ppo_epochs", (1,), f"{IGNORED}; lower {ACTOR}.ppo_mini_batch_size for more optimiser steps"),
    (f"{ACTOR}.grad_clip", (1.0,), f"verl 0.9.1 reads it nowhere; set {ACTOR}.optim.clip_grad"),
    (f"{MODEL}.lora_rank", (0,), "LoRA is untested with the two-phase update; train all parameters"),
    (f"{MODEL}.lora.rank", (0,), "LoRA is untested with the two-phase update; train all parameters"),
    (f"{MODEL}.lora_adapter_path", (None,), "LoRA is untested with the two-phase update; merge the adapter first"),
    (f"{ROLLOUT}.name", ("vllm",), "the other rollout engines are untested"),
    ("algorithm.filter_groups.enable", (False,), IGNORED),
    ("reward.reward_model.enable", (False,), f"{IGNORED}; rewards come from the agent loop or a reward function"),
    ("distillation.enabled", (False,), IGNORED),
    ("trainer.use_v1", (True,), "the trainer is verl's v1"),
    ("trainer.v1.trainer_mode", ("sync",), "a meta-update needs rollouts of the current policy"),
    ("trainer.v1.sampler.sync_refill_failed_groups", (False,), IGNORED),
    ("trainer.v1.sampler.custom_sampler.path", (None,), IGNORED),
    ("trainer.critic_warmup", (0,), IGNORED),
    ("trainer.val_only", (False,), IGNORED),
    ("trainer.device", ("cpu", "cuda"), "choose hardware=cpu or hardware=gpu"),
)


def check_supported(config) -> None:
    """Runs first: other engines have other keys."""
    for key, allowed, why in SUPPORTED:
        value = OmegaConf.select(config, key, default=allowed[0])
        if value not in allowed:
            raise ValueError(f"{key}={value!r} is not supported, only {_listed(allowed)}: {why}.")


# ---- keys of the recipe that nothing would read ----------------------------------------------------------------------

# (key under amft, whether it is read, who reads it)
READERS: tuple[tuple[str, Callable[[AMFTConfig], bool], str], ...] = (
    ("method.weight", lambda s: s.method.name == "fixed_mu", "method=fixed_mu"),
    ("demonstrations.loss", lambda s: reads_loss(s.method.name), "a method without a loss of its own"),
    ("method.schedule", lambda s: s.method.name == "scheduled_mu", "method=scheduled_mu"),
    ("controller", lambda s: s.method.name == "amft", "method=amft"),
    ("controller.meta.trace_decay", lambda s: s.controller.meta.horizon == "trace", "controller.meta.horizon=trace"),
    ("controller.meta.rms_decay", lambda s: s.controller.meta.scale == "rms", "controller.meta.scale=rms"),
    ("controller.meta.average_decay", lambda s: s.controller.meta.scale == "rms", "controller.meta.scale=rms"),
    ("mixture", lambda s: s.method.name in ("amft", "fixed_mu", "scheduled_mu"), "a method that mixes two gradients"),
    ("mixture.decay", lambda s: s.mixture.scale == "equal_norm", "amft.mixture.scale=equal_norm"),
    ("warm_up.learning_rate", lambda s: s.warm_up.steps > 0, "amft.warm_up.steps of at least 1"),
)


def reads_loss(method: str) -> bool:
    return METHODS[method].demonstration_loss is Method.demonstration_loss


def check_every_key_is_read(run: Run) -> None:
    values, defaults = dataclasses.asdict(run.settings), dataclasses.asdict(AMFTConfig())
    for key, is_read, reader in READERS:
        if is_read(run.settings):
            continue
        for path, value, default in _differences(_at(values, key), _at(defaults, key), key):
            raise ValueError(
                f"amft.{path}={value!r} has no effect with method={run.settings.method.name} and these settings; leave "
                f"it at its default {default!r}, or choose what reads it: {reader}."
            )


def _at(tree: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _differences(value: Any, default: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, dict):
        for name in value:
            yield from _differences(value[name], default[name], f"{path}.{name}")
    elif value != default:
        yield path, value, default


# ---- method and advantages -------------------------------------------------------------------------------------------

NO_GROUP_ESTIMATORS = ("gae", "reinforce_plus_plus")
GROUP_ESTIMATORS = ("grpo", "grpo_passk", "rloo", "reinforce_plus_plus_baseline", "opo", "gpg")


def check_advantages(run: Run) -> None:
    estimator, name = run.config.algorithm.adv_estimator, run.settings.method.name
    allowed: tuple[str, ...] = NO_GROUP_ESTIMATORS + GROUP_ESTIMATORS
    if name == "ppo":
        allowed = ("gae",)
    elif name == "grpo":
        allowed = tuple(choice for choice in allowed if choice != "gae")
    if METHODS[name].own_advantages:
        allowed = ("grpo",)
    if estimator not in allowed:
        raise ValueError(
            f"algorithm.adv_estimator={estimator!r} does not go with method={name}; choose {_listed(allowed)}, or "
            "another method (method=ppo is GAE with a critic, method=grpo compares the rollouts of a group)."
        )
    if estimator in GROUP_ESTIMATORS and run.needs.rollouts and run.shape.rollouts_per_prompt < 2:
        raise ValueError(
            f"{ROLLOUT}.n={run.shape.rollouts_per_prompt} leaves no group to compare a rollout with, which "
            f"algorithm.adv_estimator={estimator} does; give at least 2 (the paper has 8), or choose method=ppo."
        )


def check_bypass(run: Run) -> None:
    if run.needs.rollouts and run.value("algorithm.rollout_correction.bypass_mode"):
        raise ValueError(
            "algorithm.rollout_correction.bypass_mode=True skips the pass that measures the entropy on rollouts, which "
            f"method={run.settings.method.name} logs or decides by; only False is allowed."
        )


def check_optimizer(run: Run) -> None:
    optimizer = run.config.actor_rollout_ref.actor.optim
    clip = optimizer.clip_grad
    if not isinstance(clip, int | float) or not clip > 0:
        raise ValueError(
            f"{ACTOR}.optim.clip_grad={clip!r} must be a number greater than 0; a large one, such as 1e9, switches "
            "clipping off."
        )
    if not run.needs.track_tangent or run.settings.controller.meta.inner != "adamw":
        return
    kind = f"{optimizer.optimizer_impl}.{optimizer.optimizer}"
    if kind != "torch.optim.AdamW" or (optimizer.override_optimizer_config or {}).get("amsgrad"):
        raise ValueError(
            f"{ACTOR}.optim is {kind} with override_optimizer_config={optimizer.override_optimizer_config}, but "
            "amft.controller.meta.inner=adamw differentiates torch.optim.AdamW without amsgrad; choose that optimizer, "
            "or amft.controller.meta.inner=clipped."
        )


# ---- sizes that must divide ------------------------------------------------------------------------------------------


def check_divisibility(run: Run) -> None:
    shape = run.shape
    demonstrations = run.settings.demonstrations.batch_size
    ranks = f"trainer.nnodes x trainer.n_gpus_per_node ({shape.num_ranks} ranks)"
    # (what must be divided, its value, by what, its value)
    _require_divisible(ranks, shape.num_ranks, f"{ACTOR}.ulysses_sequence_parallel_size", shape.sequence_parallel)
    _require_divisible(ranks, shape.num_ranks, f"{ROLLOUT}.tensor_model_parallel_size", shape.tensor_parallel)
    _require_divisible(
        "data.train_batch_size", shape.train_batch_size, f"{ACTOR}.ppo_mini_batch_size", shape.mini_batch_size
    )
    _require_divisible(
        f"data.train_batch_size x {ROLLOUT}.n", shape.rollouts_per_step, "the data-parallel ranks", shape.data_parallel
    )
    _require_divisible(
        "amft.demonstrations.batch_size",
        demonstrations,
        f"mini-batches ({shape.num_mini_batches}) x data-parallel ranks ({shape.data_parallel})",
        shape.num_mini_batches * shape.data_parallel,
    )
    generated = run.value("data.gen_batch_size")
    if generated not in (None, shape.train_batch_size):
        raise ValueError(
            f"data.gen_batch_size={generated!r} differs from data.train_batch_size={shape.train_batch_size}: a step "
            "generates what it trains on; leave it null."
        )


def _require_divisible(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        below = value - value % divisor
        near = f"{below} or {below + divisor}" if below else str(divisor)
        raise ValueError(
            f"{name}={value} is not divisible by {divisor_name}={divisor}; choose a multiple of {divisor} (such as "
            f"{near}), or change the divisor."
        )


def check_lengths(run: Run) -> None:
    actor = run.config.actor_rollout_ref.actor
    if (
        actor.use_dynamic_bsz
        and actor.ppo_max_token_len_per_gpu * run.shape.sequence_parallel < run.shape.sequence_length
    ):
        raise ValueError(
            f"{ACTOR}.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} holds no sequence of "
            f"data.max_prompt_length + data.max_response_length={run.shape.sequence_length}; raise it to at least that."
        )
    limit = run.value(f"{ROLLOUT}.max_model_len")
    if limit is not None and run.shape.sequence_length > limit:
        raise ValueError(
            f"data.max_prompt_length={run.shape.prompt_length} + data.max_response_length={run.shape.response_length} "
            f"exceed {ROLLOUT}.max_model_len={limit}; raise it to at least {run.shape.sequence_length} or shorten them."
        )


CONFIGURATION_CHECKS = (
    check_every_key_is_read,
    check_advantages,
    check_bypass,
    check_optimizer,
    check_divisibility,
    check_lengths,
)


def _listed(values: tuple) -> str:
    return " or ".join(map(repr, values)) if len(values) < 3 else ", ".join(map(repr, values))
