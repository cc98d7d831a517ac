"""Configuration, data and machine are checked before the engine starts, and what is wrong is named with its fix."""

import json
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.amft.data.general_points import write_parquet
from recipe.amft.data.tiny_model import make
from recipe.amft.evaluate import CONFIGS, check, compose, identity_of
from recipe.amft.evaluation.arguments import check_arguments
from recipe.amft.evaluation.engine import check_extra, plan_engine
from recipe.amft.evaluation.settings import Benchmark, EngineSettings, EvaluationSettings, settings_from
from recipe.amft.evaluation.tasks import read_benchmark

SUITES = sorted(path.stem for path in (CONFIGS / "suite").glob("*.yaml"))
PAGE = (CONFIGS.parent / "docs" / "evaluation.md").read_text()
TINY = {"max_position_embeddings": 512, "num_attention_heads": 2, "hidden_size": 64}


def settings(*overrides, suite="math_id"):
    return settings_from(
        OmegaConf.to_container(compose(["model=some/path", f"suite={suite}", *overrides]), resolve=True)
    )


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_is_valid(suite):
    """It composes, has the name of its file, and its keys are known."""
    found = settings(suite=suite)
    assert found.suite == suite
    assert found.benchmarks


def test_the_suites_are_those_of_the_paper():
    """Sampling of AMFT's evaluation: temperature 0.6, top-p 1, 8,192 tokens, 32 samples on the two small sets."""
    found = {item.name: item for suite in ("math_id", "math_ood") for item in settings(suite=suite).benchmarks}
    assert list(found) == ["aime24", "amc", "math500", "minerva", "olympiad_bench", "arc_c", "gpqa", "mmlu_pro"]
    assert {(item.temperature, item.top_p, item.max_tokens) for item in found.values()} == {(0.6, 1.0, 8192)}
    assert {name for name, item in found.items() if item.samples == 32} == {"aime24", "amc"}
    assert {item.samples for item in found.values()} == {1, 32}


def test_the_quickstart_suite_takes_the_data_of_the_training_run():
    """Same recipe as the training configuration: the cached hands are those that the run held out."""
    from recipe.amft.main import compose as compose_training

    training = compose_training([])
    (benchmark,) = settings(suite="quickstart").benchmarks
    assert {"make": benchmark.make, "options": dict(benchmark.options)} == OmegaConf.to_container(
        training.amft.task, resolve=True
    )
    assert benchmark.max_tokens == training.data.max_response_length
    assert benchmark.temperature == training.actor_rollout_ref.rollout.val_kwargs.temperature


@pytest.mark.parametrize("line", re.findall(r"^ {4}python -m recipe\.amft\.evaluate +([^#\n]+)", PAGE, re.MULTILINE))
def test_documented_commands_are_valid(line):
    """Hydra and our checks accept every command line of docs/evaluation.md."""
    words = [word.replace("suite=NAME", "suite=virl") for word in shlex.split(line)]
    assert settings_from(OmegaConf.to_container(compose(words), resolve=True)).model_path


def test_keys_at_the_top_override_every_benchmark():
    """samples=4 holds for all, `only` keeps the suite's order."""
    found = settings("samples=4", "pass_at=[2]", "temperature=1.0", "only=[amc,aime24]")
    assert [item.name for item in found.benchmarks] == ["aime24", "amc"]
    assert {(item.samples, item.pass_at, item.temperature) for item in found.benchmarks} == {(4, (2,), 1.0)}
    assert settings("seed=null").seed is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["samples=0"], "samples=0 must be an integer of at least 1"),
        (["samples=4"], r"pass@8 needs 8 samples per prompt and samples=4; give samples=8 or more"),
        (["temperature=-1"], "temperature=-1 must be a number of at least 0"),
        (["temperature=0"], "gives the same answer 32 times; give samples=1"),
        (["top_p=1.5"], "top_p=1.5 must be a number"),
        (["only=[]"], "the suite has no benchmark left"),
        (["only=aime"], r"no such benchmark; it has (aime24|amc), "),
        (["engine.dtype=fp8"], "engine.dtype='fp8' is unknown; choose bfloat16"),
        (["engine.tensor_parallel_size=0"], "engine.tensor_parallel_size=0 must be"),
        (["concurrency=0"], "concurrency=0 must be"),
        (["+suite.benchmarks.amc.sample=4"], r"suite\.benchmarks\.amc\.sample is not a known key; known: samples"),
        (["limit=0"], "limit=0 must be"),
        (["pass_at=5"], r"pass_at=5 must be a list: pass_at=\[5\]"),
        (["++suite.benchmarks.amc.files=a.parquet"], r"files='a.parquet' must be a list"),
        (["top_p=0"], "top_p=0 leaves no token"),
        (["chat_template_kwargs=3"], "chat_template_kwargs=3 must be a mapping"),
        (["engine.extra=3"], "engine.extra=3 must be a mapping"),
        (["+suite.common.env_kwargs=lenient"], "env_kwargs='lenient' must be a mapping"),
        (["overwrite=perhaps"], "overwrite='perhaps' must be true or false"),
    ],
)
def test_bad_values_are_refused_with_the_fix(overrides, message):
    """The key, the value, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        settings(*overrides)


def test_model_and_suite_are_asked_for():
    """Without them the error shows how they are given."""
    for overrides, message in ((["suite=virl"], "add model=PATH"), (["model=x"], "add suite=NAME")):
        with pytest.raises(ValueError, match=message):
            settings_from(OmegaConf.to_container(compose(overrides), resolve=True))


def test_an_unknown_suite_is_answered_with_the_nearest_names():
    """The most similar name comes first."""
    with pytest.raises(SystemExit, match=r"suite=math_odd is unknown; known, the nearest first: math_ood, math_id"):
        check_arguments(["model=x", "suite=math_odd"])
    check_arguments(["suite=math_ood"])
    check_arguments(["--multirun", "suite=math_id,virl"])
    check_arguments(["--config-dir=mine", "suite=my_own"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample=4"], r"sample=4: there is no key 'sample'; the nearest: samples, "),
        (["suites=virl"], r"there is no key 'suites'; the nearest: suite, "),
        (
            ["engine.gpu_memory=0.5"],
            r"engine has no key 'gpu_memory'; the nearest: gpu_memory_utilization, .*engine.extra",
        ),
        (["suite.benchmarks.aime24.sample=4"], r"a benchmark has no key 'sample'; the nearest: samples, "),
        (["suite=[virl,code]"], r"one suite; several follow each other with -m suite=ONE,TWO"),
        (["--samples=4"], r"--samples=4 is no option; keys are given without dashes: samples=4\."),
        (["--max-tokens", "4"], r"keys are given without dashes: max_tokens=VALUE"),
        (["samples"], r"'samples' is no key=value; the nearest keys: samples, "),
        (["model", "=x"], r"'model' is no key=value; the nearest keys: model, "),
    ],
)
def test_a_misspelt_argument_is_answered_with_the_nearest_keys(arguments, message):
    """Before Hydra, whose answer names neither."""
    with pytest.raises(SystemExit, match=message):
        check_arguments(["model=x", "suite=virl", *arguments])


def test_arguments_that_are_hydra_s_pass():
    """Additions, deletions, groups, flags with values, and every key that there is."""
    check_arguments(["--cfg", "job", "-m", "model=x", "+suite.benchmarks.amc.limit=3", "~suite.benchmarks.gpqa"])
    check_arguments(
        ["task@suite.training=gsm8k", "suite.benchmarks.amc.samples=4", "engine.extra={a:1}", "hydra.run.dir=x"]
    )
    check_arguments([f"{key}=1" for key in settings_keys()])


def settings_keys():
    return [key for key in compose(["model=x", "suite=virl"]) if key != "suite"]


def test_the_engine_fits_the_machine():
    """On a CPU: float32, eager, seeded requests without chunked prefill; on a GPU: bfloat16 and its memory."""
    cpu = plan_engine(EngineSettings(), TINY, has_gpu=False, seeded=True)
    assert (cpu.dtype, cpu.max_model_len, cpu.arguments["enforce_eager"]) == ("float32", 512, True)
    assert cpu.arguments["enable_chunked_prefill"] is False
    assert cpu.arguments["kv_cache_memory_bytes"] == 2**28
    unseeded = plan_engine(EngineSettings(), TINY, has_gpu=False, seeded=False)
    assert "enable_chunked_prefill" not in unseeded.arguments
    gpu = plan_engine(EngineSettings(tensor_parallel_size=2), TINY, has_gpu=True, seeded=True)
    assert (gpu.dtype, gpu.arguments["enforce_eager"], gpu.arguments["tensor_parallel_size"]) == ("bfloat16", False, 2)
    assert gpu.arguments["gpu_memory_utilization"] == 0.85
    assert "kv_cache_memory_bytes" not in gpu.arguments
    long = plan_engine(EngineSettings(), {**TINY, "max_position_embeddings": 16384}, has_gpu=False, seeded=True)
    assert long.arguments["max_num_batched_tokens"] == 16384  # without chunks a prompt is one batch


@pytest.mark.parametrize(
    ("engine", "model", "message"),
    [
        (EngineSettings(), {**TINY, "hidden_size": 40}, "head_dim=20; vLLM's CPU attention takes multiples of 32"),
        (EngineSettings(max_model_len=1024), TINY, r"engine.max_model_len=1024 is longer than the model's context"),
        (EngineSettings(), {}, "give engine.max_model_len=N"),
    ],
)
def test_a_model_that_does_not_fit_the_engine_is_refused(engine, model, message):
    """Before vLLM is imported."""
    with pytest.raises(ValueError, match=message):
        plan_engine(engine, model, has_gpu=False, seeded=True)


def test_an_unknown_argument_of_the_engine_is_refused():
    """With the nearest of vLLM's own; a known one passes."""
    check_extra({"data_parallel_size": 2})
    with pytest.raises(ValueError, match=r"engine\.extra\.data_paralel_size .*nearest: data_parallel_size"):
        check_extra({"data_paralel_size": 2})


# ---- data ------------------------------------------------------------------------------------------------------------


def hands(num_rows=4, **info):
    rows = []
    for index in range(num_rows):
        extra = {
            "id": f"hand/{index}",
            "env_id": "general_points",
            "env_kwargs": json.dumps({"num_cards": 3, "ranks": 10, "prompt_style": "compact", "verify_iter": 2}),
            "seed": index,
            "options": json.dumps({"cards": [3, 5, 8], "target": 16}),
        }
        extra |= info
        prompt = [{"role": "user", "content": f"question {index}"}]
        truth = {"style": "rule", "ground_truth": str(index)}
        rows.append({"data_source": ("even", "odd")[index % 2], "prompt": prompt, "reward_model": truth})
        rows[-1]["extra_info"] = {name: value for name, value in extra.items() if value is not None}
    return rows


def read(folder: Path, rows, **changes):
    write_parquet(rows, folder / "rows.parquet")
    return read_benchmark(Benchmark("mine", files=("rows.parquet",), **changes), str(folder), str(folder))


def test_rows_become_tasks(tmp_path):
    """Filtered by source, cut to the limit, with the benchmark's arguments over the row's own."""
    found = read(tmp_path, hands(), data_source="odd", env_kwargs={"verify_iter": 5})
    assert [task.row_id for task in found.tasks] == ["hand/1", "hand/3"]
    assert found.tasks[0].env_kwargs["verify_iter"] == 5
    assert len(read(tmp_path, hands(), limit=3).tasks) == 3
    assert read(tmp_path, hands(3)).digests != read(tmp_path, hands(4)).digests


def test_a_plain_openr1_row_is_posed_by_the_environment_that_the_benchmark_names(tmp_path):
    """Without env_id: prompt and ground truth become the options; without a name of an environment it is an error."""
    plain = hands(env_id=None, env_kwargs=None, options=None, seed=None)
    (first, *_) = read(tmp_path, plain, env_id="math", env_kwargs={"grader": "oat"}).tasks
    assert (first.env_id, first.seed, dict(first.env_kwargs)) == ("math", 0, {"grader": "oat"})
    assert first.options == {"prompt": [{"role": "user", "content": "question 0"}], "ground_truth": "0"}
    with pytest.raises(ValueError, match=r"names no environment .*suite\.benchmarks\.mine\.env_id=math"):
        read(tmp_path, plain)


def test_bad_files_are_named_with_what_to_do(tmp_path):
    """Missing, no parquet, no such source, repeated ids, options that are no JSON."""
    missing = Benchmark("mine", files=("gone.parquet",), prepare="make it so")
    with pytest.raises(ValueError, match=r"gone\.parquet.*does not exist.*prepare it: make it so; or name other files"):
        read_benchmark(missing, str(tmp_path), "")
    (tmp_path / "gone.parquet").write_text("text")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_benchmark(missing, str(tmp_path), "")
    with pytest.raises(ValueError, match=r"no row of data_source 'prime', only of even, odd"):
        read(tmp_path, hands(), data_source="prime")
    with pytest.raises(ValueError, match=r"two rows with the id 'same'"):
        read(tmp_path, hands(id="same"))
    with pytest.raises(ValueError, match=r"extra_info\.options of row 0 of .* is not JSON"):
        read(tmp_path, hands(options="{"))


# ---- the whole check -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 1}
    make({**shape, "max_position_embeddings": 256}, folder)
    return folder


@pytest.fixture
def checked(model, tmp_path):
    """`check` on a suite of one file of hands, with overrides."""
    write_parquet(hands(), tmp_path / "hands.parquet")

    def run(*overrides):
        mine = "+suite.benchmarks.hands={files:[hands.parquet],max_tokens:100,samples:2}"
        places = [f"model={model}", f"data_dir={tmp_path}", f"out={tmp_path / 'out'}", f"cache_dir={tmp_path}"]
        return check(compose(["suite=quickstart", "only=hands", mine, *places, *overrides]))

    return run


def test_a_dry_run_counts_rows_samples_and_tokens(checked, tmp_path):
    """4 rows x 2 samples of at most 100 tokens; nothing is written."""
    report = checked().report()
    assert "4 rows x 2 = 8 samples" in report
    assert "in all 8 samples, at most 800 tokens" in report
    assert not (tmp_path / "out").exists()


def test_prompts_that_leave_too_little_room_are_refused(checked):
    """The longest prompt decides; the error says which max_tokens would fit."""
    longest = max(checked().prompt_lengths["hands"])
    with pytest.raises(
        ValueError, match=rf"prompt has {longest} tokens.*context of 256; give max_tokens={256 - longest} "
    ):
        checked("max_tokens=250")
    assert checked(f"max_tokens={256 - longest}")


def test_a_row_that_cannot_be_posed_is_refused(checked):
    """A wrong argument of the environment is found before the engine starts."""
    with pytest.raises(ValueError, match=r"row hand/0 of hands cannot be posed by general_points .*verify_iter"):
        checked("+suite.benchmarks.hands.env_kwargs={verify_iter:0}")


def test_what_decides_the_samples_decides_the_settings(checked):
    """Seed, sampling, judges and data are in the identity; concurrency, memory, intervals and pass@k are not."""

    def identity(*overrides):
        item = checked(*overrides)
        return identity_of(item.settings, item.model, item.plan, item.content)

    first = identity()
    harmless = ["concurrency=3", "bootstrap=200", "pass_at=[2]", "engine.max_num_seqs=4", "engine.kv_cache_gib=1"]
    assert identity(*harmless) == first
    for change in ("seed=1", "samples=3", "temperature=1.0", "max_tokens=50", "limit=2", "engine.dtype=bfloat16"):
        assert identity(change) != first, change
    assert isinstance(json.dumps(first), str)
    assert EvaluationSettings("m", "s", ()).seed == 0
