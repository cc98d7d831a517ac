"""What a configuration may not ask for: contradictions; key_checks.py adds the keys that would have no effect.

Each check takes a `Run` and raises ValueError: the value received, what is allowed, the fix.
"""

import functools
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from recipe.amft.config import AMFTConfig
from recipe.amft.key_checks import ACTOR, ROLLOUT, check_every_key_is_read
from recipe.amft.methods import Method, make_method
from recipe.amft.needs import Needs
from recipe.amft.shape import Shape


@dataclass(frozen=True)
class Run:
    """What the checks look at.

    Attributes:
        config: verl's nodes of the composed configuration.
        settings: its `amft:` node.
        shape: its sizes.
        needs: everything that the method ever asks of a step, and what follows from it.
    """

    config: Any
    settings: AMFTConfig
    shape: Shape
    needs: Needs

    @functools.cached_property
    def method(self) -> Method:
        return make_method(self.settings)

    def value(self, key: str) -> Any:
        return OmegaConf.select(self.config, key)

    @property
    def uses_critic(self) -> bool:
        """verl's rule: `critic.enable`, else whether the advantages are GAE."""
        enable = self.config.critic.enable
        return self.config.algorithm.adv_estimator == "gae" if enable is None else bool(enable)


# ---- what is supported -----------------------------------------------------------------------------------------------

MODEL = "actor_rollout_ref.model"
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
    if not run.needs.advantages:
        allowed = ("grpo",)  # nobody asks for it, and "gae" would make a critic
    if estimator not in allowed:
        raise ValueError(
            f"algorithm.adv_estimator={estimator!r} does not go with method={name}; choose {_listed(allowed)}, or "
            "another method (method=ppo is GAE with a critic, method=grpo compares the rollouts of a group)."
        )
    compares = run.needs.policy_gradient or run.needs.preferences
    if estimator in GROUP_ESTIMATORS and compares and run.shape.rollouts_per_prompt < 2:
        raise ValueError(
            f"{ROLLOUT}.n={run.shape.rollouts_per_prompt} leaves no group to compare a rollout with, as "
            f"method={name} does with algorithm.adv_estimator={estimator}; give at least 2 (the paper has 8), or "
            "choose method=ppo."
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
    ranks = f"trainer.nnodes x trainer.n_gpus_per_node ({shape.num_ranks} ranks)"
    # (what must be divided, its value, by what, its value)
    _require_divisible(ranks, shape.num_ranks, f"{ACTOR}.ulysses_sequence_parallel_size", shape.sequence_parallel)
    _require_divisible(ranks, shape.num_ranks, f"{ROLLOUT}.tensor_model_parallel_size", shape.tensor_parallel)
    _require_divisible(
        "data.train_batch_size", shape.train_batch_size, f"{ACTOR}.ppo_mini_batch_size", shape.mini_batch_size
    )
    if run.needs.rollouts:
        product, size = f"data.train_batch_size x {ROLLOUT}.n", shape.rollouts_per_step
        _require_divisible(product, size, "the data-parallel ranks", shape.data_parallel)
    if run.needs.expert_batches or run.needs.collected:
        _require_divisible(
            "amft.demonstrations.batch_size",
            run.settings.demonstrations.batch_size,
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


def check_executor(run: Run) -> None:
    """The CPU default of vLLM's executor holds one rank."""
    key = f"{ROLLOUT}.engine_kwargs.vllm.distributed_executor_backend"
    executor = str((run.value(f"{ROLLOUT}.engine_kwargs.vllm") or {}).get("distributed_executor_backend"))
    if run.shape.tensor_parallel > 1 and executor.endswith("UniProcExecutor"):
        raise ValueError(
            f"{ROLLOUT}.tensor_model_parallel_size={run.shape.tensor_parallel} needs one process per rank, but "
            f"{key}={executor} is a single one; give {key}=mp."
        )


CONFIGURATION_CHECKS = (
    check_every_key_is_read,
    check_advantages,
    check_bypass,
    check_optimizer,
    check_divisibility,
    check_lengths,
    check_executor,
)


def _listed(values: tuple) -> str:
    return " or ".join(map(repr, values)) if len(values) < 3 else ", ".join(map(repr, values))
