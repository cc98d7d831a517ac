"""The `amft:` tree: defaults, unknown keys and wrong values; the configuration files that ship."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.amft.config import AMFTConfig, defaults, from_mapping
from recipe.amft.main import CONFIGS, check_names, compose
from recipe.amft.methods import METHODS

METHOD_PRESETS = sorted(path.stem for path in Path(CONFIGS, "method").glob("*.yaml"))
HARDWARE = sorted(path.stem for path in Path(CONFIGS, "hardware").glob("*.yaml"))


def settings_of(*overrides: str) -> AMFTConfig:
    return from_mapping(OmegaConf.to_container(compose(list(overrides)).amft, resolve=True))


def test_defaults_survive_the_config_store():
    """The plain containers given to Hydra build the very defaults of the dataclasses."""
    assert from_mapping(defaults()) == AMFTConfig()


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"run_dri": "x"}, ["amft.run_dri", "run_dir"]),
        ({"controller": {"meta": {"learning_rat": 0.1}}}, ["amft.controller.meta.learning_rat", "learning_rate"]),
        ({"utility": 3}, ["amft.utility=3", "num_prompts"]),
        ({"utility": {"every": "ten"}}, ["amft.utility.every='ten'", "int"]),
        ({"overwrite": 1}, ["amft.overwrite=1", "bool"]),
        ({"utility": {"every": True}}, ["amft.utility.every=True", "int"]),
        ({"utility": {"every": 0}}, ["utility.every=0", "at least 1"]),
        ({"utility": {"rollouts_per_prompt": 1}}, ["rollouts_per_prompt=1", "at least 2", "baseline"]),
        ({"controller": {"mu_init": 0.995}}, ["mu_init=0.995", "mu_min <= mu_init <= mu_max"]),
        ({"controller": {"entropy": {"sign": "plus"}}}, ["'plus'", "equation, prose"]),
        ({"demonstrations": {"loss": "stf"}}, ["'stf'", "sft"]),
        ({"method": {"weight": 1.5}}, ["method.weight=1.5", "[0, 1]"]),
    ],
)
def test_bad_values_are_named(values, fragments):
    """An error holds the key and value received, and what is allowed or nearest."""
    with pytest.raises(ValueError) as error:
        from_mapping(values)
    assert all(fragment in str(error.value) for fragment in fragments), error.value
    assert "\n" not in str(error.value)


def test_integers_pass_as_floats_and_one_file_as_a_list():
    """`1` is a valid weight, and a single path needs no brackets."""
    settings = from_mapping({"method": {"weight": 1}, "utility": {"files": "a.parquet"}})
    assert settings.method.weight == 1.0
    assert isinstance(settings.method.weight, float)
    assert settings.utility.files == ("a.parquet",)


def test_every_method_has_a_preset():
    """`method=NAME` works for each name of METHODS."""
    assert set(METHODS) <= set(METHOD_PRESETS)


@pytest.mark.parametrize("hardware", HARDWARE)
def test_every_hardware_file_composes(hardware):
    """Each describes a device and FSDP2 with the dtypes of that device."""
    config = compose([f"hardware={hardware}"])
    is_cpu = hardware == "cpu"
    assert config.trainer.device == ("cpu" if is_cpu else "cuda")
    assert config.actor_rollout_ref.actor.strategy == config.critic.strategy == "fsdp2"
    assert config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype == ("fp32" if is_cpu else "bf16")


def test_the_papers_run():
    """`experiment=math_amft` carries the numbers of Tables 6 and 7."""
    config = compose(["experiment=math_amft"])
    actor, settings = config.actor_rollout_ref.actor, settings_of("experiment=math_amft")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (8, 8)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (1024, 8192)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, config.actor_rollout_ref.rollout.n) == (
        128,
        128,
        8,
    )
    assert config.trainer.total_training_steps == 500
    assert (actor.optim.lr, config.critic.optim.lr) == (1e-6, 5e-6)
    assert (list(actor.optim.betas), actor.optim.weight_decay) == ([0.9, 0.95], 0.1)
    assert (actor.optim.lr_scheduler_type, actor.optim.lr_warmup_steps_ratio) == ("cosine", 0.1)
    assert (settings.warm_up.steps, settings.utility.every) == (50, 20)
    controller = settings.controller
    assert (controller.mu_init, controller.mu_min, controller.mu_max) == (0.5, 0.05, 0.95)
    assert (controller.meta.learning_rate, controller.entropy.learning_rate) == (1e-4, 5e-4)


@pytest.mark.parametrize(
    ("method", "rollouts", "warm_up"),
    [("luffy", 7, 50), ("dpo", 4, 50), ("amft_no_warmup", 8, 0), ("amft", 8, 50), ("grpo", 8, 50)],
)
def test_an_experiment_leaves_a_method_its_own_numbers(method, rollouts, warm_up):
    """`experiment=math_amft` is read after the method, and the method's rollouts and warm-up are what they are."""
    config = compose(["experiment=math_amft", f"method={method}"])
    assert config.actor_rollout_ref.rollout.n == rollouts
    assert config.amft.warm_up.steps == warm_up
    assert config.trainer.total_training_steps == 500


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        ("method=lufy", ["method=lufy is unknown", "choose one of luffy, "]),
        ("sft_loss=dff", ["sft_loss=dff is unknown", "choose one of dft, "]),
        ("scale=micro", ["scale=micro is unknown", "micro/general_points"]),
        ("+experiment=math", ["experiment=math is unknown", "choose one of math_amft"]),
    ],
)
def test_an_unknown_name_of_a_group_lists_the_known_ones(argument, fragments):
    """In one line, the nearest first, before Hydra lists them by the alphabet."""
    with pytest.raises(SystemExit) as error:
        check_names(["amft.run_dir=runs/x", argument])
    assert all(fragment in str(error.value) for fragment in fragments), error.value
    assert "\n" not in str(error.value)


def test_known_names_and_other_keys_pass():
    """Neither a known name, nor none, nor a key of the tree, nor names of the user's own folder are refused."""
    check_names(["method=luffy", "sft_loss=null", "amft.method.name=lufy", "dry_run=true", "experiment="])
    check_names(["scale=micro/general_points", "method=grpo"])
    check_names(["--config-dir=mine", "method=mine"])


def test_the_command_line_wins_over_an_experiment():
    """An experiment's choice of method or hardware can be replaced."""
    config = compose(["experiment=math_amft", "method=grpo", "hardware=gpu"])
    assert config.amft.method.name == "grpo"
    assert config.trainer.nnodes == 1
