"""Keys that nothing would read with the chosen method and settings: set on purpose, they are refused.

A key counts as set when it differs from what the chosen files of the groups (`hardware`, `model`, `task`, `scale`,
`method`, `experiment`) compose without any further override: what those files say passes, even where a method has no
use for it.
`sft_loss` is an override by another name, so that a method without such a loss refuses it.

Who reads a key of verl is said in verl 0.9.1's `workers/utils/losses.py` (the policy loss), `trainer/ppo/core_algos.py`
and `trainer/ppo/v1/trainer_base.py` (advantages); what takes their place here reads none of them.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

if TYPE_CHECKING:
    from recipe.amft.config_checks import Run

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
ABSENT = "not set"


@dataclass(frozen=True)
class Reader:
    """Who reads some keys.

    Attributes:
        keys: leaves of the configuration, or nodes with all that is under them.
        reads: whether it does in this run.
        name: what to choose so that it does.
    """

    keys: tuple[str, ...]
    reads: Callable[["Run"], bool]
    name: str


def of_method(node: str, name: str) -> Reader:
    """A node of `amft` that methods name in `Method.reads`."""
    return Reader((f"amft.{node}",), lambda run: node in run.method.reads, name)


def normalises_by_std(run: "Run") -> bool:
    return run.needs.advantages and run.config.algorithm.adv_estimator in ("grpo", "grpo_passk")


def discounts(run: "Run") -> bool:
    return run.needs.advantages and run.config.algorithm.adv_estimator in ("gae", "reinforce_plus_plus")


def uses_gae(run: "Run") -> bool:
    return run.needs.advantages and run.config.algorithm.adv_estimator == "gae"


def clips_symmetrically(run: "Run") -> bool:
    actor = run.config.actor_rollout_ref.actor
    return run.needs.policy_loss and None in (actor.clip_ratio_low, actor.clip_ratio_high)


def has_reference(run: "Run") -> bool:
    return bool(run.config.actor_rollout_ref.actor.use_kl_loss or run.config.algorithm.use_kl_in_reward)


def under(node: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{node}.{name}" for name in names)


# Of two readers of one key the first that does not read it is named.
READERS: tuple[Reader, ...] = (
    of_method("method.weight", "method=fixed_mu"),
    of_method("method.schedule", "method=scheduled_mu"),
    of_method("controller", "method=amft"),
    of_method("mixture", "a method that mixes two gradients, such as method=fixed_mu"),
    Reader(
        under("amft.controller.meta", "inner", "horizon", "trace_decay", "scale", "rms_decay"),
        lambda run: run.needs.utility or run.needs.rollout_utility,
        "amft.controller.meta.learning_rate above 0",
    ),
    Reader(
        ("amft.controller.meta.trace_decay",),
        lambda run: run.settings.controller.meta.horizon == "trace",
        "amft.controller.meta.horizon=trace",
    ),
    Reader(
        ("amft.controller.meta.rms_decay",),
        lambda run: run.settings.controller.meta.scale == "rms",
        "amft.controller.meta.scale=rms",
    ),
    Reader(
        under("amft.controller.entropy", "sign", "target"),
        lambda run: run.settings.controller.entropy.learning_rate > 0,
        "amft.controller.entropy.learning_rate above 0",
    ),
    Reader(
        ("amft.mixture.decay",), lambda run: run.settings.mixture.scale != "none", "amft.mixture.scale=capped"
    ),
    Reader(
        under("amft.warm_up", "learning_rate", "loss"),
        lambda run: run.settings.warm_up.steps > 0,
        "amft.warm_up.steps of at least 1",
    ),
    Reader(
        ("amft.warm_up.entropy_batches",),
        lambda run: run.settings.warm_up.steps > 0 or "controller" in run.method.reads,
        "amft.warm_up.steps of at least 1, or method=amft",
    ),
    Reader(
        under("amft.demonstrations", "loss", "loss_options"),
        lambda run: run.needs.demonstration_loss,
        "a method with an SFT part, or before any other amft.warm_up.steps with amft.warm_up.loss=null",
    ),
    Reader(
        under("amft.demonstrations", "batch_size", "seed"),
        lambda run: run.needs.expert_batches or run.needs.collected,
        "amft.warm_up.steps of at least 1, or a method that draws demonstrations independently of its prompts",
    ),
    Reader(
        under("amft.demonstrations", "files", "on_bad_row"),
        lambda run: run.needs.expert,
        "amft.warm_up.steps of at least 1, or a method that learns demonstrations",
    ),
    Reader(
        ("amft.utility.source",),
        lambda run: run.needs.utility or run.needs.rollout_utility,
        "method=amft with amft.controller.meta.learning_rate above 0",
    ),
    Reader(
        under("amft.utility", "files", "num_prompts", "rollouts_per_prompt", "every"),
        lambda run: run.needs.utility,
        "method=amft with amft.controller.meta.learning_rate above 0 and amft.utility.source other than rollouts",
    ),
    Reader(
        under(ROLLOUT, "n", "temperature", "top_p", "top_k"),
        lambda run: run.needs.rollouts,
        "a method with rollouts, such as method=grpo",
    ),
    Reader(
        under("algorithm", "adv_estimator", "use_kl_in_reward", "rollout_correction"),
        lambda run: run.needs.advantages,
        "a method that learns rollouts with verl's advantages, such as method=grpo",
    ),
    Reader(
        ("algorithm.norm_adv_by_std_in_grpo",),
        normalises_by_std,
        "a method that learns rollouts with verl's advantages, and algorithm.adv_estimator=grpo",
    ),
    Reader(
        under("algorithm", "kl_ctrl", "kl_penalty"),
        lambda run: run.needs.advantages and run.config.algorithm.use_kl_in_reward,
        "algorithm.use_kl_in_reward=true with a method that has verl's advantages",
    ),
    Reader(("algorithm.gamma",), discounts, "algorithm.adv_estimator=gae or reinforce_plus_plus"),
    Reader(under("algorithm", "lam", "use_pf_ppo", "pf_ppo"), uses_gae, "algorithm.adv_estimator=gae"),
    Reader(
        (f"{ACTOR}.entropy_coeff",),
        lambda run: run.needs.entropy_bonus,
        "a method that learns rollouts by verl's policy loss, such as method=grpo",
    ),
    Reader(
        under(
            ACTOR, "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "policy_loss", "loss_agg_mode",
            "loss_scale_factor", "tau_pos", "tau_neg", "use_kl_loss",
        ),
        lambda run: run.needs.policy_loss,
        "a method that learns rollouts by verl's policy loss, such as method=grpo",
    ),
    Reader(
        (f"{ACTOR}.clip_ratio",),
        clips_symmetrically,
        f"verl's policy loss where {ACTOR}.clip_ratio_low or clip_ratio_high is null; set those two instead",
    ),
    Reader(
        under(ACTOR, "kl_loss_coef", "kl_loss_type"),
        lambda run: run.needs.policy_loss and run.config.actor_rollout_ref.actor.use_kl_loss,
        f"{ACTOR}.use_kl_loss=true with a method that learns rollouts by verl's policy loss",
    ),
    Reader(("actor_rollout_ref.ref",), has_reference, f"{ACTOR}.use_kl_loss=true or algorithm.use_kl_in_reward=true"),
    Reader(("critic",), lambda run: run.uses_critic, "algorithm.adv_estimator=gae, as in method=ppo"),
)  # fmt: skip


@dataclass(frozen=True)
class Unread:
    """A key that was set and that nothing would read."""

    key: str
    value: Any
    default: Any
    reader: str


def unread_keys(run: "Run") -> list[Unread]:
    """All of them, in the order of READERS, each once."""
    given = OmegaConf.to_container(run.config, resolve=False)
    usual = without_overrides(tuple(run.config.get("presets") or ()))
    found: dict[str, Unread] = {}
    for reader in READERS:
        changes = [change for key in reader.keys for change in _differences(_at(given, key), _at(usual, key), key)]
        if changes and not reader.reads(run):
            for key, value, default in changes:
                found.setdefault(key, Unread(key, value, default, reader.name))
    return list(found.values())


def check_every_key_is_read(run: "Run") -> None:
    """ValueError naming every key that was set and would be ignored."""
    unread = unread_keys(run)
    if unread:
        raise ValueError(
            " ".join(
                f"{item.key}={item.value!r} has no effect with method={run.settings.method.name} and these settings; "
                f"leave it at its default {item.default!r}, or choose what reads it: {item.reader}."
                for item in unread
            )
        )


@functools.cache
def without_overrides(presets: tuple[str, ...]) -> Mapping[str, Any]:
    """What the chosen files of the groups compose, interpolations as they stand."""
    from recipe.amft.main import compose

    return OmegaConf.to_container(compose(list(presets)), resolve=False)  # type: ignore[return-value]


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name, ABSENT) if isinstance(tree, Mapping) else ABSENT
    return tree


def _differences(value: Any, default: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        for name in value:
            yield from _differences(value[name], default.get(name, ABSENT), f"{key}.{name}")
    elif value != default:
        yield key, value, default
