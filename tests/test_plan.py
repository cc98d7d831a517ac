"""The plan of a run: parameter counts against real models, memory and step counts against arithmetic by hand."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from recipe.amft.data.tiny_vlm import make_model, make_vision_tokenizer
from recipe.amft.hardware import recognise
from recipe.amft.machine_checks import hardware_of
from recipe.amft.main import compose
from recipe.amft.memory import GIB, Architecture, Memory, estimate, total, training_items
from recipe.amft.methods import make_method
from recipe.amft.plan import count, num_due, shares_of
from recipe.amft.preflight import Run, everything_asked, preflight, read_settings
from recipe.amft.shape import Shape
from recipe.amft.speed import Speed, estimate_speed

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
QWEN_7B = 7_615_616_512  # the model card says 7.61 B


def run_of(*overrides: str) -> Run:
    config = compose(list(overrides))
    settings = read_settings(config)
    return Run(config, settings, Shape.from_config(config), everything_asked(make_method(settings), settings))


def architecture_of(run: Run) -> Architecture:
    return Architecture.from_mapping(run.settings.model["architecture"])


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES),
        Qwen2Config(**SIZES, tie_word_embeddings=True),
        Qwen3Config(**SIZES, head_dim=16),
        Qwen3Config(**SIZES, head_dim=16, attention_bias=True),
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, attention_bias=True),
        MistralConfig(**SIZES),
    ],
    ids=["qwen2", "qwen2-tied", "qwen3", "qwen3-bias", "llama", "llama-bias", "mistral"],
)
def test_parameters_are_those_of_the_real_model(config):
    """P from config.json equals the number of parameters that transformers allocates."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert Architecture.from_mapping(config.to_dict()).num_parameters == real


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_parameters_of_a_vision_model(family):
    """The vision tower is counted as well."""
    model = make_model(make_vision_tokenizer(), family=family, vision_layers=3)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert Architecture.from_mapping(model.config.to_dict()).num_parameters == real


def test_the_4b_vision_model_has_its_published_size():
    """4.4 billion parameters, as its publishers say."""
    settings = compose(["model=qwen3_vl_4b"]).amft.model.architecture
    values = OmegaConf.to_container(settings, resolve=True)
    assert round(Architecture.from_mapping(values).num_parameters / 1e9, 2) == 4.44


def test_activations_are_those_that_autograd_keeps():
    """6h + 3a + 4k + 4f elements per token and layer, within 5 % of what a real layer saves for backward."""
    num_tokens = 256
    sizes = {**SIZES, "hidden_size": 96, "intermediate_size": 240}

    def saved_bytes(num_layers: int) -> int:
        config = Qwen2Config(**{**sizes, "num_hidden_layers": num_layers})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(input_ids=torch.arange(num_tokens)[None] % 97, use_cache=False).logits
        assert output.requires_grad
        return sum(item.untyped_storage().nbytes() for pointer, item in storages.items() if pointer not in weights)

    h, f, a = 96, 240, 96
    k = a // 3
    expected = 2 * num_tokens * (6 * h + 3 * a + 4 * k + 4 * f)
    assert saved_bytes(3) - saved_bytes(2) == pytest.approx(expected, rel=0.05)


def test_the_papers_memory_by_hand():
    """Qwen2.5-Math-7B on 64 GPUs: shards of P x 4 bytes, activations and logits of 4 x 9,216 tokens."""
    run = run_of("experiment=math_amft")
    architecture = architecture_of(run)
    assert architecture.num_parameters == QWEN_7B
    memory = estimate(run, architecture, total_gib=79)
    sizes = {item.name: item.size for item in memory.training}
    shard = QWEN_7B * 4 / 64
    tokens = 4 * 9216
    assert sizes["weights"] == sizes["gradient"] == sizes["gradient set aside"] == shard
    assert sizes["AdamW moments"] == 2 * shard
    assert sizes["tangent d theta / d mu"] == shard  # amft_literal differentiates plain SGD
    assert sizes["gathered layers"] == 3 * 152064 * 3584 * 2
    assert sizes["activations"] == tokens * 2 * (28 * 3584 + 6 * 3584 + 3 * 3584 + 4 * 512 + 4 * 18944)
    assert sizes["logits and entropy"] == 2 * tokens * 152064 * 2
    generation = {item.name: item.size for item in memory.generation}
    assert generation["vLLM weights"] == QWEN_7B * 2
    cache = 39.5 * GIB - QWEN_7B * 2 - 8192 * (4 * 3584 + 2 * 18944) * 2 - 256 * 152064 * 8
    assert generation["KV cache"] == memory.cache.size == pytest.approx(cache)
    # Weights, moments and the tangent stay on the GPU while vLLM generates with its half of it.
    assert total(memory.generation) == pytest.approx(4 * shard + 3 * GIB + 39.5 * GIB)
    per_token = 2 * 28 * 512 * 2  # keys and values of 28 layers, 4 heads of 128, bf16
    assert memory.cache.bytes_per_token == per_token
    assert memory.cache.sequences(9216) == pytest.approx(cache / (9216 * per_token))
    memory.check()


def test_micro_batches_of_a_fixed_number_of_rows():
    """Without dynamic batches N is rows times the longest sequence, and never more rows than a rank has."""

    def logits(rows: int) -> float:
        actor = "actor_rollout_ref.actor"
        overrides = [f"{actor}.use_dynamic_bsz=false", f"{actor}.ppo_micro_batch_size_per_gpu={rows}"]
        run = run_of("experiment=math_amft", *overrides)
        return next(i.size for i in estimate(run, architecture_of(run), 79).training if i.name == "logits and entropy")

    assert logits(2) == 2 * 2 * 9216 * 152064 * 2
    assert logits(16) == logits(999)  # 128 x 8 rollouts on 64 ranks


def test_an_entropy_that_is_kept_outweighs_the_logits():
    """Without checkpointing the softmax and its product with the logits, in fp32, replace the gradient at the peak."""
    run = run_of("experiment=math_amft", "actor_rollout_ref.actor.fsdp_config.entropy_checkpointing=false")
    sizes = {item.name: item.size for item in estimate(run, architecture_of(run), 79).training}
    assert sizes["logits and entropy"] == 36864 * 152064 * (2 + 4 + 4)


def test_what_the_backward_pass_begins_with():
    """Padded logits are copied: 4 N V b, and the softmax of an entropy that is kept; a small vocabulary gives way to
    the gradients within a layer."""

    def training(vocab_size: int, *overrides: str) -> dict[str, float]:
        run = run_of("experiment=math_amft", "actor_rollout_ref.model.use_remove_padding=false", *overrides)
        architecture = dataclasses.replace(architecture_of(run), vocab_size=vocab_size)
        return {item.name: item.size for item in training_items(run, architecture)}

    tokens, kept = 36864, "actor_rollout_ref.actor.fsdp_config.entropy_checkpointing=false"
    assert training(152064)["logits and entropy"] == tokens * 152064 * 4 * 2
    assert training(152064, kept)["logits and entropy"] == tokens * 152064 * (4 * 2 + 4)
    small = training(1000)
    assert small["gradients in a layer"] == tokens * 2 * (2 * 18944 + 2 * 3584)
    assert "logits and entropy" not in small


def test_what_a_method_holds():
    """Three more shards for AdamW's tangent; one loss alone holds neither second gradient nor tangent; PPO a critic."""

    def names_and_sizes(*overrides):
        run = run_of("experiment=math_amft", *overrides)
        return {item.name: item.size for item in estimate(run, architecture_of(run), 79).training}

    adamw = names_and_sizes("method=amft", "amft.controller.meta.inner=adamw")
    assert adamw["tangent d theta / d mu"] == 3 * adamw["weights"]
    ppo = names_and_sizes("method=ppo")
    assert ppo["critic"] == 3 * ppo["weights"]
    assert not {"gradient set aside", "tangent d theta / d mu"} & set(ppo)
    fixed = names_and_sizes("method=fixed_mu")
    assert "gradient set aside" in fixed
    assert not {"critic", "tangent d theta / d mu"} & set(fixed)


@pytest.mark.parametrize(
    ("override", "knob"),
    [
        ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=147456", "lower actor_rollout_ref.actor.ppo_max_token_len"),
        (
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.97",
            "lower actor_rollout_ref.rollout.gpu_memory_utilization",
        ),
        ("actor_rollout_ref.actor.fsdp_config.fsdp_size=2", "more GPUs"),
    ],
)
def test_what_does_not_fit_names_the_knob(override, knob):
    """A phase above the GPU's memory is refused with the largest part and the key that shrinks it."""
    run = run_of("experiment=math_amft", override)
    with pytest.raises(ValueError, match="needs about") as error:
        estimate(run, architecture_of(run), total_gib=79).check()
    assert knob in str(error.value)
    assert "79" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        (["actor_rollout_ref.rollout.gpu_memory_utilization=0.19"], "0.0 GiB"),  # less than the weights take
        (["actor_rollout_ref.rollout.gpu_memory_utilization=0.2", "data.max_response_length=30000"], "0.5 GiB"),
    ],
)
def test_a_cache_that_holds_no_sequence_is_refused(overrides, size):
    """vLLM would refuse to start; here it is said before anything is loaded, with the keys that help."""
    lengths = [
        "actor_rollout_ref.rollout.max_model_len=40000",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=40000",
    ]
    run = run_of("experiment=math_amft", *lengths, *overrides)
    with pytest.raises(ValueError, match=f"{size} per GPU for keys and values") as error:
        estimate(run, architecture_of(run), total_gib=79).check()
    assert "tensor_model_parallel_size" in str(error.value)


def time_of(*overrides: str) -> Speed:
    """The estimate for the paper's run with `overrides`, 500 training steps and 100 validation rows."""
    run = run_of("experiment=math_amft", *overrides)
    counts = count(run, make_method(run.settings), 500, num_validation_rows=100)
    memory = estimate(run, architecture_of(run), 79)
    return estimate_speed(run, architecture_of(run), memory.cache, hardware_of(run), shares_of(run, counts), 100)


def test_the_papers_step_by_hand():
    """64 A100: 16 rollouts of 9,216 tokens a GPU, 8 P + attention per token with checkpointing, at 0.35 of the peak."""
    speed = time_of()
    seconds = {part.name: part.seconds for part in speed.step}
    compute = 312e12 * 0.35
    forward = 16 * 9216 * (2 * QWEN_7B + 28 * 2 * 3584 * 9216) / compute
    assert seconds["old log-probabilities"] == pytest.approx(forward)
    assert seconds["rollouts, backward"] == pytest.approx(4 * forward)
    assert seconds["demonstrations, backward"] == pytest.approx(4 * forward / 8)
    assert seconds["meta-update, backward"] == pytest.approx(4 * forward * 24 / 500)  # 24 of 500 steps
    read = QWEN_7B * 2 + 16 * (1024 + 4096) * 2 * 28 * 512 * 2  # weights, keys and values of half of the response
    prompts = 16 * 1024 * (2 * QWEN_7B + 28 * 2 * 3584 * 1024) / compute
    assert seconds["generation"] == pytest.approx(8192 * read / (2039e9 * 0.6) + prompts)
    assert seconds["weight sync"] == pytest.approx(QWEN_7B * 2 / 200e9)  # eight cards of 25 GB/s
    assert not {"critic", "reference log-probabilities"} & set(seconds)
    whole = (50 * speed.warm_up + 500 * speed.step_seconds + 12 * speed.validation) / 3600
    assert speed.hours(50, 500, 12) == pytest.approx(whole)


def test_time_follows_the_keys():
    """Twice the peak halves arithmetic; half the length shortens; a small cache makes waves; a slow network bounds."""
    base = {part.name: part for part in time_of().step}

    def seconds(name: str, *overrides: str) -> float:
        return next(part.seconds for part in time_of(*overrides).step if part.name == name)

    assert seconds("rollouts, backward", "amft.plan.peak_tflops=624") == base["rollouts, backward"].seconds / 2
    assert seconds("generation", "amft.plan.response_share=0.5") < base["generation"].seconds / 2
    crowded = "actor_rollout_ref.rollout.max_num_seqs=4"
    assert seconds("generation", crowded) > 3 * base["generation"].seconds
    assert "4.0 waves" in next(part.bound for part in time_of(crowded).step if part.name == "generation")
    slow = time_of("amft.plan.network_gbytes=0.1").step
    assert next(part.bound for part in slow if part.name == "rollouts, backward") == "network"


def test_a_method_pays_for_what_it_does():
    """SFT generates nothing; PPO pays for the critic; GRPO learns from no demonstration after the warm-up."""
    names = {name: {part.name for part in time_of(f"method={name}").step} for name in ("sft", "ppo", "grpo")}
    assert names["sft"] == {"demonstrations, backward", "optimiser"}
    assert "critic" in names["ppo"]
    assert "demonstrations, backward" not in names["grpo"]


def test_hardware_is_named_or_given_in_full():
    """A key of the table, with single numbers replaced; on a machine without GPU nothing, or all three numbers."""
    name, gpu = hardware_of(run_of("experiment=math_amft", "amft.plan.gpu=h100", "amft.plan.link_gbytes=1"))
    assert ("h100" in name, gpu.peak_tflops, gpu.link_gbytes) == (True, 989, 1)
    assert hardware_of(run_of("amft.plan.peak_tflops=1")) is None
    given = ["amft.plan.peak_tflops=0.1", "amft.plan.memory_gbytes=20", "amft.plan.link_gbytes=10"]
    assert hardware_of(run_of(*given))[1].memory_gbytes == 20
    with pytest.raises(ValueError, match=r"plan.gpu='h1000' is not known; choose one of .*h200"):
        run_of("amft.plan.gpu=h1000")
    assert recognise("NVIDIA H200 NVL") == "h200"
    assert recognise("Tesla T4") is None


def test_unknown_memory_refuses_nothing():
    """Without the size of the GPU there is a table and no verdict."""
    run = run_of("experiment=math_amft", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=147456")
    memory = estimate(run, architecture_of(run), total_gib=None)
    memory.check()
    assert isinstance(memory, Memory)
    assert total(memory.training) > 100 * GIB


def test_the_papers_counts_by_hand():
    """50 + 500 steps, a meta-update at t = 20, 40, ..., 480, 8 rollouts of 128 prompts a step."""
    run = run_of("experiment=math_amft")
    counts = count(run, make_method(run.settings), 500, num_validation_rows=100)
    assert dataclasses.asdict(counts) == {
        "warm_up_steps": 50,
        "training_steps": 500,
        "optimizer_steps": 550,
        "meta_updates": 24,
        "validations": 1 + 11,
        "checkpoints": 11,
        "rollouts": 500 * 128 * 8,
        "utility_rollouts": 24 * 128 * 8,
        "validation_rollouts": 12 * 100,
        "demonstrations": 550 * 128,
        "generated_tokens": (512_000 + 24_576) * 8192,
        "trained_tokens": (512_000 + 24_576 + 70_400) * 9216,
        "upper_bounds": frozenset(),
    }


def test_counts_follow_the_method():
    """SFT makes no rollouts, RL takes demonstrations in the warm-up only; mini-batches multiply optimiser steps."""
    overrides = ["experiment=math_amft", "actor_rollout_ref.actor.ppo_mini_batch_size=32"]
    sft, rl = (run_of(*overrides, f"method={name}") for name in ("sft", "grpo"))
    counts = count(sft, make_method(sft.settings), 10, None)
    assert (counts.rollouts, counts.demonstrations, counts.optimizer_steps) == (0, 60 * 128, 60 * 4)
    assert counts.validation_rollouts is None
    counts = count(rl, make_method(rl.settings), 10, None)
    assert (counts.rollouts, counts.demonstrations, counts.meta_updates) == (10 * 1024, 50 * 128, 0)


def test_what_depends_on_the_run_is_an_upper_bound():
    """A coin's steps may be of either kind, prompts may succeed, pairs may be missing, buffers may stay empty."""

    def counts_of(name: str, *overrides: str):
        run = run_of("experiment=math_amft", f"method={name}", *overrides)
        return count(run, make_method(run.settings), 10, None)

    sasr = counts_of("sasr")
    assert (sasr.rollouts, sasr.demonstrations) == (10 * 1024, 60 * 128)
    assert sasr.upper_bounds == {"rollouts", "demonstrations"}
    luffy = counts_of("luffy", "amft.warm_up.steps=0", "data.train_batch_size=64")
    assert (luffy.rollouts, luffy.demonstrations) == (10 * 64 * 7, 10 * 64)
    relift = counts_of("relift")
    assert (relift.optimizer_steps, relift.demonstrations) == (50 + 10 + 10, 50 * 128 + 10 * 128)
    assert relift.upper_bounds == {"optimizer_steps", "demonstrations"}
    dpo = counts_of("dpo", "amft.method.options.sample_steps=4")
    assert (dpo.rollouts, dpo.optimizer_steps, dpo.demonstrations) == (4 * 128 * 4, 50 + 6, 50 * 128 + 6 * 2 * 128)
    assert dpo.trained_tokens == dpo.demonstrations * 9216
    assert counts_of("sft_then_rl", "amft.method.options.sft_steps=4").upper_bounds == set()


@pytest.mark.parametrize("every", [-1, 1, 3, 5, 7, 100])
@pytest.mark.parametrize("num_steps", [1, 6, 7, 21])
def test_due_steps_as_the_trainer_counts_them(every, num_steps):
    """Every `every` steps and at the end, once each."""
    due = sum(every > 0 and (step % every == 0 or step == num_steps) for step in range(1, num_steps + 1))
    assert num_due(every, num_steps) == due


def test_the_report_of_the_papers_run():
    """A dry run needs neither data nor GPU nor download: it prints the plan and what a run would be refused for."""
    _, _, plan = preflight(compose(["experiment=math_amft", "dry_run=true"]))
    report = plan.report()
    for text in (
        "GPU hours",
        "8 x 8 a100-80gb",
        "sequences of full length at a time",
        "7.616 B",
        "550",
        "512,000",
        "24",
        "logits and entropy",
        "data.train_files",
        "of 79",
    ):
        assert text in report
    assert any("does not exist" in finding for finding in plan.findings)


def test_a_missing_number_of_the_architecture_is_named():
    """amft.model.architecture without a size says which."""
    with pytest.raises(ValueError, match="intermediate_size"):
        Architecture.from_mapping(
            {"model_type": "qwen2", **{k: v for k, v in SIZES.items() if k != "intermediate_size"}}
        )
    assert Architecture.from_mapping({"model_type": "mamba"}) is None
