"""A key that the chosen method ignores is refused, whoever's it is; what the presets themselves say passes."""

import copy
import functools
from typing import Any

import pytest
from omegaconf import OmegaConf

from recipe.amft.config_checks import Run
from recipe.amft.key_checks import ABSENT, READERS, _at, check_every_key_is_read, unread_keys
from recipe.amft.main import compose
from recipe.amft.methods import make_method
from recipe.amft.needs import everything_asked
from recipe.amft.preflight import read_settings
from recipe.amft.shape import Shape

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
NO_WARM_UP = {"amft.warm_up.steps": 0}
DRAWN = {"amft.demonstrations.batch_size": 48, "amft.demonstrations.seed": 1}
POLICY_LOSS = {
    f"{ACTOR}.clip_ratio_low": 0.1,
    f"{ACTOR}.clip_ratio_high": 0.3,
    f"{ACTOR}.clip_ratio_c": 5.0,
    f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
    f"{ACTOR}.policy_loss.loss_mode": "gspo",
    f"{ACTOR}.use_kl_loss": True,
}
ENTROPY = {f"{ACTOR}.entropy_coeff": 0.01}
ADVANTAGES = {"algorithm.adv_estimator": "rloo", "algorithm.use_kl_in_reward": True}
STD = {"algorithm.norm_adv_by_std_in_grpo": False}
ROLLOUTS = {f"{ROLLOUT}.n": 4, f"{ROLLOUT}.temperature": 0.7}
UTILITY = {"amft.utility.num_prompts": 4, "amft.utility.every": 3, "amft.utility.files": ["mine.parquet"]}
LOSS = {"amft.demonstrations.loss": "dft"}
OWN_LOSS = {"amft.method.options.clip_on_policy": False}


@functools.cache
def composed(*overrides: str) -> Any:
    return compose(list(overrides))


def run_of(*overrides: str) -> Run:
    return run_on(composed(*overrides))


def run_on(config) -> Run:
    settings = read_settings(config)
    return Run(config, settings, Shape.from_config(config), everything_asked(make_method(settings), settings))


def unread(method: str, *values: dict[str, Any]) -> set[str]:
    config = copy.deepcopy(composed(f"method={method}"))
    for key, value in (item for some in values for item in some.items()):
        OmegaConf.update(config, key, value, force_add=True)
    return {item.key for item in unread_keys(run_on(config))}


# (method, what else is set and read, what is set and ignored)
IGNORED = [
    ("srft", {}, POLICY_LOSS | ENTROPY | ADVANTAGES | STD),  # own loss, own advantages
    ("luffy", OWN_LOSS, POLICY_LOSS | ADVANTAGES | STD),
    ("luffy", {}, ADVANTAGES | STD | UTILITY | LOSS),  # own advantages, own loss on demonstrations, verl's on rollouts
    ("sft", {}, POLICY_LOSS | ENTROPY | ADVANTAGES | STD | ROLLOUTS | UTILITY),
    ("dft", {}, ROLLOUTS | UTILITY),
    ("rft", ROLLOUTS, POLICY_LOSS | ENTROPY | ADVANTAGES | STD | UTILITY),  # its rollouts are samples
    ("dpo", ROLLOUTS | NO_WARM_UP | DRAWN, LOSS | {"amft.demonstrations.on_bad_row": "drop"}),
    ("grpo", NO_WARM_UP, LOSS | DRAWN | {"amft.demonstrations.files": ["mine.parquet"]} | UTILITY),
    ("ppo", NO_WARM_UP, LOSS | DRAWN | STD | UTILITY),
    ("tapo", NO_WARM_UP, LOSS | DRAWN),  # it reads the texts, and learns none
    ("superrl", NO_WARM_UP, DRAWN | UTILITY),
    ("dyme", NO_WARM_UP, DRAWN),
    ("relift", NO_WARM_UP, DRAWN),
    ("amft_no_meta", {}, UTILITY | {"amft.controller.meta.inner": "sgd"}),
    ("amft_no_entropy", {}, {"amft.controller.entropy.sign": "equation"}),
    ("amft", {"amft.mixture.scale": "none"}, {"amft.mixture.decay": 0.5}),
    ("hpt", {}, {"amft.mixture.scale": "none", "amft.method.weight": 0.3, "amft.controller.mu_init": 0.4}),
    ("grpo", {}, {f"{ACTOR}.clip_ratio": 0.1, f"{ACTOR}.kl_loss_coef": 0.1, "algorithm.kl_ctrl.kl_coef": 0.1}),
    ("grpo", {}, {"algorithm.gamma": 0.9, "algorithm.lam": 0.9, "critic.optim.lr": 1e-4}),
    ("grpo", {"algorithm.adv_estimator": "rloo"}, STD),
]
READ = [
    ("grpo", POLICY_LOSS | ENTROPY | ADVANTAGES | ROLLOUTS | LOSS | DRAWN),  # its warm-up learns demonstrations
    ("grpo", STD | {f"{ACTOR}.clip_ratio_low": None, f"{ACTOR}.clip_ratio": 0.1}),
    ("grpo", {f"{ACTOR}.use_kl_loss": True, f"{ACTOR}.kl_loss_coef": 0.1, "actor_rollout_ref.ref.strategy": "fsdp"}),
    ("ppo", {"algorithm.gamma": 0.9, "algorithm.lam": 0.9, "critic.optim.lr": 1e-4} | POLICY_LOSS),
    ("luffy", POLICY_LOSS | ENTROPY | ROLLOUTS),
    ("sft", LOSS | DRAWN | NO_WARM_UP),
    ("rft", LOSS | DRAWN | NO_WARM_UP | ROLLOUTS),
    ("superrl", LOSS | NO_WARM_UP | STD | POLICY_LOSS),
    ("superrl", LOSS | DRAWN),
    ("relift", LOSS | NO_WARM_UP),
    ("amft", UTILITY | STD | POLICY_LOSS | LOSS | DRAWN | ROLLOUTS),
    ("amft", NO_WARM_UP | {"amft.warm_up.entropy_batches": 2}),
    ("fixed_mu", {"amft.method.weight": 0.3, "amft.mixture.scale": "none"}),
    ("chord_mu", {"amft.method.schedule.peak": 0.7}),
]


@pytest.mark.parametrize(("method", "read", "ignored"), IGNORED)
def test_what_a_method_ignores_is_found(method, read, ignored):
    """Exactly the ignored keys, however many there are, and none of those that are read beside them."""
    assert unread(method, read, ignored) == set(ignored)


@pytest.mark.parametrize(("method", "read"), READ)
def test_what_a_method_reads_passes(method, read):
    """No key of those that the method or its warm-up reads is called ignored."""
    assert unread(method, read) == set()


def test_every_key_of_the_table_exists():
    """A key that was renamed, or misspelt in the table, would never be found to be set."""
    tree = OmegaConf.to_container(composed("method=amft"), resolve=False)
    missing = [key for reader in READERS for key in reader.keys if _at(tree, key) == ABSENT]
    assert missing == []


def test_the_error_names_every_key_with_value_default_and_reader():
    """One line that says what to do about each of two keys."""
    config = copy.deepcopy(composed("method=sft"))
    OmegaConf.update(config, f"{ROLLOUT}.n", 4)
    OmegaConf.update(config, "algorithm.adv_estimator", "rloo")
    with pytest.raises(ValueError, match="has no effect with method=sft") as error:
        check_every_key_is_read(run_on(config))
    message = str(error.value)
    for text in (f"{ROLLOUT}.n=4", "default 8", "adv_estimator='rloo'", "default 'grpo'", "method=grpo"):
        assert text in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "overrides",
    [
        ("amft.warm_up.steps=0",),  # the task's learning rate for the warm-up is nobody's mistake
        ("method=grpo", "amft.warm_up.steps=0"),
        ("method=sft", "task=gsm8k"),
        ("experiment=math_amft", "method=dpo"),
        ("experiment=math_amft", "method=sft", "amft.warm_up.steps=0"),
    ],
)
def test_what_task_and_experiment_say_passes(overrides):
    """Only what differs from the chosen files was set, so that switching the warm-up off takes one key."""
    assert unread_keys(run_of(*overrides)) == []


@pytest.mark.parametrize(("method", "refuses"), [("luffy", True), ("dpo", True), ("superrl", False), ("grpo", False)])
def test_the_sft_loss_is_an_override(method, refuses):
    """`sft_loss=dft` is refused where it is no file's but the user's, and nobody reads it."""
    assert bool(unread_keys(run_of(f"method={method}", "sft_loss=dft"))) == refuses


def test_a_preset_of_the_users_own_is_compared_with_itself(tmp_path):
    """A file found by `hydra.searchpath` is a preset like ours: its values are no overrides."""
    (tmp_path / "method").mkdir()
    text = "# @package _global_\nactor_rollout_ref:\n  rollout:\n    n: 3\namft:\n  method:\n    name: sft\n"
    (tmp_path / "method" / "mine.yaml").write_text(text)
    search = f"hydra.searchpath=[pkg://verl.trainer.config,file://{tmp_path}]"
    assert unread_keys(run_of(search, "method=mine")) == []
    assert [item.key for item in unread_keys(run_of(search, "method=mine", f"{ROLLOUT}.n=4"))] == [f"{ROLLOUT}.n"]
