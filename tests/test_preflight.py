"""What preflight refuses, with which words, and what it lets pass. Data and the tiny model are really made."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.amft.data.general_points import write_parquet
from recipe.amft.main import CONFIGS, compose
from recipe.amft.methods import METHODS
from recipe.amft.preflight import preflight

ROOT = Path(__file__).parents[1]
METHOD_PRESETS = sorted(path.stem for path in Path(CONFIGS, "method").glob("*.yaml"))
SMALL = [
    "hardware=cpu",
    "data.train_batch_size=32",
    "data.max_prompt_length=32",
    "data.max_response_length=96",
    "actor_rollout_ref.rollout.max_model_len=160",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "amft.demonstrations.batch_size=64",
    "amft.utility.num_prompts=32",
    "amft.utility.every=10",
    "amft.task.options.train=80",
    "amft.task.options.demonstrations_per_hand=1",
    "amft.task.options.validation=40",
    "amft.task.options.test=20",
    "amft.model.options.pretraining.steps=0",
    "trainer.total_training_steps=50",
]


@pytest.fixture(scope="module", autouse=True)
def no_gpu():
    """hardware=cpu is refused where GPUs can be seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(cache, no_gpu):
    """The quickstart with a smaller data set, its data and model made."""
    config = compose([*SMALL, f"amft.cache_dir={cache}", f"amft.run_dir={cache / 'run'}", "dry_run=true"])
    preflight(config)
    config.dry_run = False
    return config


def changed(config, **values):
    """A copy of `config` with the values at dotted keys (`__` for a dot) replaced."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


def message_of(config) -> str:
    with pytest.raises(ValueError) as error:
        preflight(config)
    text = str(error.value)
    assert "\n" not in text
    return text


ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
# The quickstart's own: of the tests' base, method=ppo and method=grpo read none of them.
NO_UTILITY = {"amft.utility.files": [], "amft.utility.num_prompts": 8, "amft.utility.every": 5}
REFUSED = [
    # (values, what the message must hold: the value, what is allowed, the fix)
    ({"model_engine": "megatron"}, ["model_engine='megatron'", "'dp'"]),
    ({f"{ACTOR}.strategy": "fsdp"}, [f"{ACTOR}.strategy='fsdp'", "only 'fsdp2'", "FSDP1"]),
    ({f"{ACTOR}.strategy": "megatron"}, ["'megatron'", "only 'fsdp2'", "Megatron"]),
    ({f"{ACTOR}.fsdp_config.use_orig_params": True}, ["use_orig_params=True", "only False"]),
    ({f"{ACTOR}.fsdp_config.dtype": "float16"}, ["'float16'", "'bfloat16' or 'float32'", "fp16"]),
    ({f"{ACTOR}.fsdp_config.mixed_precision.param_dtype": "fp16"}, ["'fp16'", "'bf16'"]),
    ({f"{ACTOR}.ppo_epochs": 2}, ["ppo_epochs=2", "only 1", "ppo_mini_batch_size"]),
    ({f"{ACTOR}.grad_clip": 0.5}, ["grad_clip=0.5", "optim.clip_grad"]),
    ({f"{ACTOR}.optim.clip_grad": 0}, ["clip_grad=0", "greater than 0", "1e9"]),
    ({f"{MODEL}.lora_rank": 8}, ["lora_rank=8", "only 0", "LoRA"]),
    ({"trainer.v1.trainer_mode": "colocate_async"}, ["'colocate_async'", "only 'sync'"]),
    ({f"{ACTOR}.optim.optimizer": "SGD"}, ["torch.optim.SGD", "torch.optim.AdamW", "meta.inner=clipped"]),
    ({"amft.method.name": "amtf"}, ["'amtf'", "amft", "fixed_mu"]),
    ({"amft.method.weight": 0.3}, ["amft.method.weight=0.3", "default 0.5", "method=fixed_mu"]),
    ({"amft.method.schedule.peak": 0.7}, ["amft.method.schedule.peak=0.7", "method=scheduled_mu"]),
    (
        {"amft.method.name": "fixed_mu", "amft.controller.entropy.sign": "equation"},
        ["amft.controller.entropy.sign='equation'", "default 'prose'", "method=amft"],
    ),
    ({"amft.method.name": "sft", "amft.mixture.scale": "none"}, ["amft.mixture.scale='none'", "mixes two gradients"]),
    ({"amft.warm_up.steps": 0, "amft.warm_up.learning_rate": 1e-4}, ["learning_rate=0.0001", "default 0.001"]),
    ({"amft.warm_up.steps": 0, "amft.warm_up.loss": "dft"}, ["warm_up.loss='dft'", "amft.warm_up.steps of at least 1"]),
    ({"amft.warm_up.loss": "stf"}, ["warm_up.loss='stf'", "sft, dft"]),
    (
        {"amft.controller.meta.horizon": "one", "amft.controller.meta.trace_decay": 0.5},
        ["trace_decay=0.5", "horizon=trace"],
    ),
    ({"amft.method.name": "ppo"} | NO_UTILITY, ["'grpo'", "method=ppo", "choose 'gae'"]),
    ({"amft.method.name": "grpo", "algorithm.adv_estimator": "gae"} | NO_UTILITY, ["'gae'", "method=grpo", "'rloo'"]),
    ({"algorithm.adv_estimator": "remax"}, ["'remax'", "'gae'", "'grpo'"]),
    ({"amft.method.name": "dpo", f"{ROLLOUT}.n": 1} | NO_UTILITY, [f"{ROLLOUT}.n=1", "method=dpo", "at least 2"]),
    ({f"{ROLLOUT}.n": 1}, [f"{ROLLOUT}.n=1", "at least 2", "method=ppo"]),
    ({"algorithm.rollout_correction.bypass_mode": True}, ["bypass_mode=True", "only False"]),
    ({"data.train_batch_size": 0}, ["data.train_batch_size=0", "at least 1"]),
    ({f"{ACTOR}.ppo_mini_batch_size": 20}, ["data.train_batch_size=32", "ppo_mini_batch_size=20", "20 or 40"]),
    ({"trainer.n_gpus_per_node": 3}, ["=256", "=3", "255 or 258"]),
    (
        {"trainer.n_gpus_per_node": 2, "amft.demonstrations.batch_size": 63},
        ["amft.demonstrations.batch_size=63", "=2", "62 or 64"],
    ),
    (
        {"trainer.n_gpus_per_node": 2, f"{ROLLOUT}.tensor_model_parallel_size": 4},
        ["(2 ranks)=2", "=4", "multiple of 4"],
    ),
    (
        {"trainer.n_gpus_per_node": 2, f"{ROLLOUT}.tensor_model_parallel_size": 2},
        ["tensor_model_parallel_size=2", "UniProcExecutor", "=mp"],
    ),
    ({"data.gen_batch_size": 16}, ["data.gen_batch_size=16", "data.train_batch_size=32", "null"]),
    ({"data.max_response_length": 200}, ["data.max_response_length=200", "max_model_len=160", "232"]),
    ({f"{ACTOR}.ppo_max_token_len_per_gpu": 100}, ["ppo_max_token_len_per_gpu=100", "128", "at least"]),
    ({f"{ROLLOUT}.max_model_len": 4096}, ["max_position_embeddings=512", "max_model_len=4096", "longer context"]),
    ({"trainer.device": "cuda"}, ["'cuda'", "no GPU", "hardware=cpu"]),
    ({"trainer.nnodes": 2}, ["trainer.nnodes=2", "address=None", "RAY_ADDRESS"]),
    ({f"{MODEL}.override_config.attn_implementation": "flash_attention_2"}, ["flash-attn", "hardware=gpu_sdpa"]),
    ({f"{MODEL}.path": "/no/such/model"}, ["/no/such/model", "does not exist", "model folder"]),
    ({f"{MODEL}.path": "meta-llama/Llama-3.2-11B-Vision"}, ["mllama", "Qwen2.5-VL", "Qwen3-VL"]),
    ({f"{MODEL}.path": None, "amft.model.make": "no.such.maker"}, ["no.such.maker", "amft.model"]),
    ({"data.train_files": None, "amft.task.options.cards": 9}, ["amft.task", "cards", "options"]),
    ({"trainer.total_training_steps": 10}, ["amft.utility.every=10", "10 training steps", "method=amft_no_meta"]),
    (
        {"trainer.total_training_steps": None, "trainer.total_epochs": None},
        ["total_training_steps=None", "total_epochs=None", "set trainer.total_training_steps"],
    ),
    ({"trainer.total_training_steps": 0}, ["trainer.total_training_steps=0", "at least 1"]),
    ({"amft.utility.files": []}, ["amft.utility.files=[]", "parquet"]),
    ({"amft.utility.num_prompts": 64}, ["40 rows", "amft.utility.num_prompts=64", "smaller batch"]),
    ({"data.train_files": "/no/file.parquet"}, ["/no/file.parquet", "does not exist", "task=general_points_small"]),
    ({"data.val_files": []}, ["data.val_files=[]", "parquet"]),
]


@pytest.mark.parametrize(
    ("values", "fragments"), REFUSED, ids=lambda item: "+".join(item) if isinstance(item, dict) else ""
)
def test_refused_with_value_choice_and_fix(base, values, fragments):
    """The message holds the value received, what is allowed, and the fix."""
    config = changed(base)
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    message = message_of(config)
    assert all(fragment in message for fragment in fragments), message


# ---- data files ------------------------------------------------------------------------------------------------------


def row(text: str, **changes) -> dict:
    return {
        "data_source": "test",
        "agent_name": "single_turn_agent",
        "prompt": [{"role": "user", "content": text}],
        "target": [{"role": "assistant", "content": "4"}],
    } | changes


@pytest.fixture
def with_files(base, tmp_path):
    """A configuration on files of its own; returns `write(split, rows)` and the configuration."""
    config = changed(base, data__train_files=str(tmp_path / "train"), data__val_files=str(tmp_path / "val"))
    OmegaConf.update(config, "amft.utility.files", [str(tmp_path / "utility")])

    def write(split: str, rows: list[dict]) -> None:
        write_parquet(rows, tmp_path / split)

    write("train", [row(f"train {index}") for index in range(64)])
    write("utility", [row(f"utility {index}") for index in range(32)])
    write("val", [row("val")])
    return write, config


def test_plain_files_pass(with_files):
    """Rows that name their agent loop need no environment; a path needs no brackets."""
    _, config = with_files
    config.dry_run = True
    _, _, plan = preflight(config)
    assert plan.findings == ()
    assert config.data.train_files == [str(Path(config.data.train_files[0]))]


def test_only_runs_that_read_demonstrations_need_them(with_files):
    """Without a warm-up GRPO and PPO run on rows without a target, however many; the warm-up, or AMFT, needs it."""
    write, config = with_files
    write("train", [{k: v for k, v in row(f"train {i}").items() if k != "target"} for i in range(40)])
    OmegaConf.update(config, "amft.utility", {"files": [], "num_prompts": 8, "every": 5})
    config.amft.method.name = "grpo"
    assert "no column target" in message_of(config)
    config.amft.warm_up.steps = 0
    # 40 rows fill no batch of amft.demonstrations.batch_size=64, which is the task's here and drawn by nobody.
    config.amft.demonstrations.batch_size = 96
    config.dry_run = True
    assert preflight(config)[2].findings == ()
    config.amft.method.name = "relift"
    assert "no column target" in preflight(config)[2].findings[0]


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("sft_then_rl", "sft_steps", 50),
        ("rft", "sample_steps", 50),
        ("dpo", "sample_steps", 51),
        ("relift", "every", 51),
    ],
)
def test_a_run_that_ends_before_a_part_of_its_method_is_refused(base, method, key, value):
    """50 training steps, and the second stage would start after them; one step less leaves it one."""
    least = value if method == "relift" else value + 1
    config = changed(base, amft__method__name=method, dry_run=True)
    OmegaConf.update(config, "amft.utility", {"files": [], "num_prompts": 8, "every": 5})
    config.amft.method.options = {key: value} | ({"trigger": "every"} if method == "relift" else {})
    message = message_of(config)
    for text in (f"amft.method.options.{key}={value}", "50 training steps", f"at least {least} steps"):
        assert text in message
    config.trainer.total_training_steps = least
    assert preflight(config)[2].findings == ()


@pytest.mark.parametrize(
    ("split", "rows", "fragments"),
    [
        ("train", [row(f"train {i}") for i in range(31)], ["31 rows", "data.train_batch_size=32"]),
        ("train", [row(f"train {i}") for i in range(63)], ["63 rows", "amft.demonstrations.batch_size=64"]),
        ("train", [{"prompt": "1+1", "data_source": "x"}] * 64, ["column prompt", "string", "{role, content}"]),
        ("val", [{"question": "1+1"}], ["no column prompt, data_source", "only question"]),
        ("utility", [row("u")] * 40 + [row("u", prompt=[])] * 2, ["2 of 42 rows", "empty prompt", "row 40"]),
        ("val", [{k: v for k, v in row("v").items() if k != "agent_name"}], ["env_id", "agent_name"]),
        ("val", [row("TRAIN  3\n")], ["1 prompts", "data.train_files", "data.val_files", "'train 3'", "remove"]),
        ("utility", [row(f"train {i}") for i in range(32)], ["32 prompts", "amft.utility.files", "(64 distinct)"]),
        ("utility", [row(t) for t in ["val", *map(str, range(31))]], ["amft.utility.files", "data.val_files", "'val'"]),
    ],
)
def test_files_that_cannot_serve(with_files, split, rows, fragments):
    """Too few rows, wrong columns, empty prompts, and prompts shared between splits are refused and counted."""
    write, config = with_files
    write(split, rows)
    message = message_of(config)
    assert all(fragment in message for fragment in fragments), message


def test_a_file_that_is_no_parquet(with_files):
    """A damaged file is named."""
    _, config = with_files
    Path(config.data.val_files).write_text("not parquet")
    message = message_of(config)
    assert "data.val_files" in message
    assert "cannot be read as parquet" in message


def test_demonstrations_may_lie_elsewhere(with_files, tmp_path):
    """With files of their own, the demonstrations are checked and the training rows need no target."""
    write, config = with_files
    plain = [{k: v for k, v in row(f"train {i}").items() if k != "target"} for i in range(64)]
    write("train", plain)
    assert "no column target" in message_of(config)
    write("demonstrations", [row(f"demonstration {i}") for i in range(63)] + [row("val")])
    config.amft.demonstrations.files = [str(tmp_path / "demonstrations")]
    assert "amft.demonstrations.files" in message_of(config)


def test_utility_files_are_needed_only_by_methods_that_measure_utility(with_files):
    """Without the meta-gradient no validation prompts are asked for."""
    _, config = with_files
    config.amft.utility.files = []
    assert "amft.utility.files" in message_of(config)
    config.amft.controller.meta.learning_rate = 0.0
    config.amft.utility.num_prompts, config.amft.utility.every = 8, 5
    config.dry_run = True
    assert preflight(config)[2].findings == ()


# ---- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", METHOD_PRESETS)
def test_every_method_preset_passes(base, cache, preset):
    """Each preset runs on generated data: no finding, a plan, the paths filled in."""
    measures_utility = preset.startswith("amft") and preset != "amft_no_meta"
    small = [item for item in SMALL if measures_utility or not item.startswith("amft.utility.")]
    run = [f"amft.cache_dir={cache}", f"amft.run_dir={cache / 'run'}", "trainer.total_training_steps=300"]
    config = compose([*small[:-1], *run, f"method={preset}", "dry_run=true"])
    settings, _, plan = preflight(config)
    assert plan.findings == ()
    assert settings.method.name in METHODS
    assert plan.counts.training_steps == 300
    assert Path(config.actor_rollout_ref.model.path, "config.json").is_file()
    assert Path(settings.utility.files[0]).name == "validation.parquet"


def test_verl_agrees(base):
    """The quickstart passes verl's own validation, and what verl alone refuses is a ValueError too."""
    preflight(changed(base))
    message = message_of(changed(base, actor_rollout_ref__actor__loss_agg_mode="median"))
    assert "verl refuses" in message
    assert "median" in message


def test_files_of_the_user_win(base, tmp_path):
    """amft.utility.files is kept when the training data is generated."""
    mine = tmp_path / "mine.parquet"
    write_parquet([row(f"mine {index}") for index in range(32)], mine)
    config = changed(base, data__train_files=None, dry_run=True)
    config.amft.utility.files = [str(mine)]
    assert preflight(config)[0].utility.files == (str(mine),)


def test_steps_from_epochs(base):
    """Without a number of steps, T is epochs times full batches: 80 rows make 2 batches of 32."""
    config = changed(base, trainer__total_training_steps=None, trainer__total_epochs=7, dry_run=True)
    assert preflight(config)[2].counts.training_steps == 14


def test_a_finished_run_is_kept(base, tmp_path):
    """A finished folder is refused with both ways out; a dry run lists it."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "FINISHED").write_text("")
    config = changed(base, amft__run_dir=str(tmp_path))
    message = message_of(config)
    assert str(tmp_path) in message
    assert "amft.overwrite=true" in message
    config.dry_run = True
    assert [str(tmp_path) in finding for finding in preflight(config)[2].findings] == [True]


def test_mllama_is_named_whatever_the_folder(base, tmp_path):
    """The architecture in config.json decides, not the name."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama"}))
    message = message_of(changed(base, actor_rollout_ref__model__path=str(tmp_path)))
    assert "mllama" in message
    assert "Qwen2.5-VL" in message


def test_a_critic_of_a_vision_model_is_refused(base, tmp_path):
    """There is no vision-language model with a value head; the message says which estimators need none."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": {}}))
    model = {"actor_rollout_ref__model__path": str(tmp_path)}
    message = message_of(changed(base, algorithm__adv_estimator="gae", **model))
    assert "value head" in message
    assert "algorithm.adv_estimator=grpo" in message


# ---- the command line ------------------------------------------------------------------------------------------------

COMMANDS = {
    "amft.utility.every=0": ["utility.every=0", "at least 1"],
    "+amft.contoller.mu_min=0.1": ["amft.contoller", "controller"],
    "data.train_files=/no/file.parquet": ["/no/file.parquet", "does not exist"],
    "method=lufy": ["method=lufy is unknown; choose one of luffy, "],
}


def test_the_command_line_prints_one_paragraph(base, cache, tmp_path):
    """A user's mistake is `error: ...` on one line, exit status 1, no traceback, no run folder and no Ray session."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "recipe.amft.main", f"amft.cache_dir={cache}", *SMALL]
    processes = {
        override: subprocess.Popen(
            [*command, override],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        for override in COMMANDS
    }
    for override, process in processes.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 1, errors[-2000:]
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1, errors
        assert all(fragment in errors for fragment in COMMANDS[override]), errors
        assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob("amft-*"))
