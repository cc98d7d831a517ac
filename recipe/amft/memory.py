"""How much memory a GPU needs, estimated from the architecture and the configuration, before anything is loaded.

An estimate for sizing, not a measurement: FSDP2 shards of weights, gradients and moments are exact, activations are
counted for decoder-only transformers with FlashAttention (no T x T matrices), library overheads are one number.
`python -m benchmarks.memory` compares the training phase with real workers; docs/launch.md has its numbers.
Legend: P parameters, L layers, h hidden size, a query width, k key width, f feed-forward width, V vocabulary, N tokens
of a micro-batch, b bytes per element of the computation.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipe.amft.config_checks import ACTOR, ROLLOUT, Run

GIB = 2**30
OVERHEAD_GIB = 3.0  # CUDA context, NCCL buffers, fragmentation
BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2}
# The families that are counted, and whether their attention has biases.
QKV_BIAS = {"qwen2": True, "qwen3": False, "llama": False, "mistral": False, "qwen2_5_vl": True, "qwen3_vl": False}
QUERY_KEY_NORM = ("qwen3", "qwen3_vl")


@dataclass(frozen=True)
class Architecture:
    """The numbers of a Hugging Face `config.json` that decide size; `head_dim` None is hidden size / heads."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool = False
    head_dim: int | None = None
    attention_bias: bool | None = None
    vision_parameters: int = 0

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Architecture | None":
        """From `config.json` or `amft.model.architecture`; None for a family that is not counted."""
        if values.get("model_type") not in QKV_BIAS:
            return None
        if "vision_config" in values:
            text = {name: value for name, value in (values.get("text_config") or {}).items() if name != "model_type"}
            count = vision_parameters_3 if values["model_type"] == "qwen3_vl" else vision_parameters
            values = {**values, **text, "vision_parameters": count(values["vision_config"])}
        known = {item.name: values[item.name] for item in fields(cls) if values.get(item.name) is not None}
        missing = [name for name in list(cls.__annotations__)[:7] if name not in known]
        if missing:
            raise ValueError(
                f"the architecture {dict(values)!r} has no {', '.join(missing)}; give the numbers of the model's "
                "config.json in amft.model.architecture."
            )
        return cls(**known)

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * (self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def key_width(self) -> int:
        return self.query_width // self.num_attention_heads * self.num_key_value_heads

    @property
    def layer_parameters(self) -> int:
        """2 a h + 2 k h + 3 f h, two norms, and the family's biases or query/key norms."""
        h, a, k = self.hidden_size, self.query_width, self.key_width
        count = 2 * a * h + 2 * k * h + 3 * self.intermediate_size * h + 2 * h
        if self.attention_bias or (self.attention_bias is None and QKV_BIAS[self.model_type]):
            count += a + 2 * k + (h if self.attention_bias and self.model_type != "qwen2" else 0)
        if self.model_type in QUERY_KEY_NORM:
            count += 2 * a // self.num_attention_heads
        return count

    @property
    def num_parameters(self) -> int:
        """P = L layers + embedding + output head (unless tied) + last norm."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * self.layer_parameters + embeddings + self.hidden_size + self.vision_parameters


def vision_parameters(config: Mapping[str, Any]) -> int:
    """Of Qwen2.5-VL's vision tower: patch embedding, `depth` blocks with biases, and the merger of 2 x 2 patches."""
    h, f, out = config["hidden_size"], config["intermediate_size"], config["out_hidden_size"]
    patch = 3 * config.get("temporal_patch_size", 2) * config.get("patch_size", 14) ** 2
    block = 4 * h * h + 4 * h + 3 * h * f + 2 * f + h + 2 * h
    merged = h * config.get("spatial_merge_size", 2) ** 2
    return patch * h + config["depth"] * block + h + merged * merged + merged + merged * out + out


def vision_parameters_3(config: Mapping[str, Any]) -> int:
    """Of Qwen3-VL's: patch and position embeddings, `depth` blocks, and mergers: one, and one for each deepstack."""
    h, f, out = config["hidden_size"], config["intermediate_size"], config["out_hidden_size"]
    patch = 3 * config.get("temporal_patch_size", 2) * config.get("patch_size", 16) ** 2
    block = 4 * h * h + 4 * h + 2 * h * f + f + h + 4 * h
    merged = h * config.get("spatial_merge_size", 2) ** 2
    merger = merged * merged + merged + merged * out + out
    deepstack = len(config["deepstack_visual_indexes"]) * (merger + 2 * merged)
    positions = config.get("num_position_embeddings", 2304) * h
    return patch * h + h + positions + config["depth"] * block + merger + 2 * h + deepstack


def read_architecture(settings, model_path: str | None) -> Architecture | None:
    """The model folder's `config.json`, else `amft.model.architecture`; None when neither says."""
    file = Path(model_path or "") / "config.json"
    if model_path and file.is_file():
        return Architecture.from_mapping(json.loads(file.read_text()))
    given = settings.model.get("architecture")
    return Architecture.from_mapping(given) if given else None


@dataclass(frozen=True)
class Item:
    """A part of a GPU's memory: its size in bytes, the formula in words, and the key that makes it smaller."""

    name: str
    size: float
    formula: str
    knob: str = ""


@dataclass(frozen=True)
class Cache:
    """What a rollout engine has on each of its GPUs.

    Attributes:
        weight_bytes: per element of the weights.
        bytes_per_token: keys and values of one token, this GPU's part.
        size: bytes for keys and values; None when the GPU's memory is unknown.
        max_sequences: at a time (`rollout.max_num_seqs`).
    """

    weight_bytes: int
    bytes_per_token: float
    size: float | None
    max_sequences: int

    def sequences(self, length: float) -> float:
        """How many sequences of `length` tokens are generated at a time, at least 1."""
        fitting = math.inf if self.size is None else self.size / (length * self.bytes_per_token)
        return max(1.0, min(self.max_sequences, fitting))


@dataclass(frozen=True)
class Memory:
    """What one GPU holds while it trains and while it generates; `total_gib` None is unknown."""

    training: tuple[Item, ...]
    generation: tuple[Item, ...]
    total_gib: float | None
    cache: Cache
    longest: int  # tokens of the longest sequence

    def check(self) -> None:
        """ValueError, naming the largest part and its key, when a phase or one sequence in the cache does not fit."""
        for phase, items in (("training", self.training), ("generation", self.generation)):
            needed = total(items)
            if self.total_gib is not None and needed > self.total_gib * GIB:
                largest = max((item for item in items if item.knob), key=lambda item: item.size)
                raise ValueError(
                    f"{phase} needs about {needed / GIB:.1f} GiB per GPU, more than amft.gpu_memory_gib="
                    f"{self.total_gib:g}; the largest part is {largest.name} with {largest.size / GIB:.1f} GiB "
                    f"({largest.formula}): {largest.knob} (dry_run=true lists all parts)."
                )
        needed = self.longest * self.cache.bytes_per_token
        if self.cache.size is not None and self.cache.size < needed:
            raise ValueError(
                f"the rollout engine has {self.cache.size / GIB:.1f} GiB per GPU for keys and values, but one sequence "
                f"of {self.longest} tokens takes {needed / GIB:.1f} GiB: raise {ROLLOUT}.gpu_memory_utilization or "
                f"{ROLLOUT}.tensor_model_parallel_size, or lower data.max_response_length."
            )


def total(items: tuple[Item, ...]) -> float:
    return sum(item.size for item in items)


def estimate(run: Run, architecture: Architecture, total_gib: float | None) -> Memory:
    """The two phases of a step."""
    engine = run.config.actor_rollout_ref.actor.fsdp_config
    resident = tuple(item for item in _resident(run, architecture) if item.size)
    training = training_items(run, architecture)
    # Offloading empties the GPU between the phases, not during training.
    offloaded = {"weights": engine.param_offload, "AdamW moments": engine.optimizer_offload}
    generation = tuple(item for item in resident if not offloaded.get(item.name))
    if run.config.trainer.device != "cpu":
        overhead = Item("overhead", OVERHEAD_GIB * GIB, "CUDA context, NCCL, fragmentation")
        training, generation = (*training, overhead), (*generation, overhead)
    cache, engine_items = _rollout_engine(run, architecture, total_gib)
    generation = (*generation, *engine_items)
    if not run.config.actor_rollout_ref.rollout.free_cache_engine:  # without sleep mode it stays
        training = (*training, *engine_items)
    return Memory(training, generation, total_gib, cache, run.shape.sequence_length)


def training_items(run: Run, architecture: Architecture) -> tuple[Item, ...]:
    """What the actor's own tensors take at the peak of a training step."""
    return tuple(item for item in (*_resident(run, architecture), *_transient(run, architecture)) if item.size)


def _rollout_engine(run: Run, architecture: Architecture, total_gib: float | None) -> tuple[Cache, tuple[Item, ...]]:
    """vLLM: its weights, working memory of a batch, and the rest of its share for keys and values."""
    rollout, parallel = run.config.actor_rollout_ref.rollout, run.shape.tensor_parallel
    bytes_each = BYTES[rollout.dtype]
    per_token = 2 * architecture.num_hidden_layers * architecture.key_width * bytes_each / parallel
    weights = architecture.num_parameters * bytes_each / parallel
    widest = 4 * architecture.hidden_size + 2 * architecture.intermediate_size // parallel
    working = rollout.max_num_batched_tokens * widest * bytes_each + rollout.max_num_seqs * architecture.vocab_size * 8
    given = OmegaConf.select(rollout, "engine_kwargs.vllm.kv_cache_memory_bytes")
    share = rollout.gpu_memory_utilization
    formula, knob = "given: engine_kwargs.vllm.kv_cache_memory_bytes", ""
    size = None if given is None else float(given)
    if given is None and total_gib is not None:
        size = max(0.0, share * total_gib * GIB - weights - working)
        formula = f"the rest of {ROLLOUT}.gpu_memory_utilization={share} of the GPU"
        knob = f"lower {ROLLOUT}.gpu_memory_utilization={share}"
    cache = Cache(bytes_each, per_token, size, rollout.max_num_seqs)
    if size:
        formula += f"; {cache.sequences(run.shape.sequence_length):,.0f} sequences of full length at a time"
    more = f"raise {ROLLOUT}.tensor_model_parallel_size={parallel}"
    items = (
        Item("vLLM weights", weights, f"P x {bytes_each} / {parallel}", more),
        Item(
            "vLLM working memory",
            working,
            "max_num_batched_tokens and max_num_seqs x 8 V",
            f"lower {ROLLOUT}.max_num_seqs",
        ),
        Item("KV cache", size or 0.0, formula, knob),
    )
    return cache, tuple(item for item in items if item.size)


def _resident(run: Run, architecture: Architecture) -> list[Item]:
    """What stays between the phases: shards of weights and moments, the tangent, and those of reference and critic."""
    engine, shards = run.config.actor_rollout_ref.actor.fsdp_config, shard_group(run)
    count, width = architecture.num_parameters, BYTES[engine.model_dtype]
    inner = run.settings.controller.meta.inner
    tangents = 3 if inner == "adamw" else 1
    knob = f"more GPUs, or {ACTOR}.fsdp_config.param_offload=true between the phases"
    items = [
        Item("weights", count * width / shards, f"P x {width} / {shards}", knob),
        Item("AdamW moments", 2 * count * width / shards, f"P x {2 * width} / {shards}", knob),
        Item(
            "tangent d theta / d mu",
            count * width / shards * tangents * run.needs.track_tangent,
            f"{tangents} more shards, for inner={inner}",
            "amft.controller.meta.inner=clipped holds 1 instead of 3, or more GPUs",
        ),
    ]
    if run.config.actor_rollout_ref.actor.use_kl_loss or run.config.algorithm.use_kl_in_reward:
        items.append(Item("reference policy", count * 4 / shards, f"P x 4 / {shards}", "leave the KL terms out"))
    if run.uses_critic:
        knob = "more GPUs, or critic.fsdp.param_offload=true and critic.fsdp.optimizer_offload=true"
        items.append(Item("critic", count * 12 / shards, f"P x 12 / {shards}, weights and moments", knob))
    return items


def _transient(run: Run, architecture: Architecture) -> list[Item]:
    """What a training step adds: gradients, gathered layers, activations, logits."""
    engine, needs, shards = run.config.actor_rollout_ref.actor.fsdp_config, run.needs, shard_group(run)
    count, width = architecture.num_parameters, BYTES[engine.model_dtype]
    shard, more_ranks = count * width / shards, "more GPUs"
    items = [
        Item("gradient", shard, f"P x {width} / {shards}", more_ranks),
        Item("gradient set aside", shard * (needs.rollouts and needs.demonstrations), "one more shard", more_ranks),
        _gathered_layers(run, architecture),
        _activations(run, architecture),
        # The backward pass begins with the one and goes on with the other, when the logits are gone.
        max(_logits(run, architecture), _layer_gradients(run, architecture), key=lambda item: item.size),
    ]
    if engine.use_no_sync_for_gradient_accumulation:
        knob = f"{ACTOR}.fsdp_config.use_no_sync_for_gradient_accumulation=false"
        items.append(Item("unsharded gradients", count * 4, "P x 4, until the last micro-batch", knob))
    return items


def _gathered_layers(run: Run, architecture: Architecture) -> Item:
    unit = max(architecture.layer_parameters, architecture.vocab_size * architecture.hidden_size)
    if shard_group(run) == 1:
        return Item("gathered layers", 0.0, "nothing is sharded")
    return Item("gathered layers", 3 * unit * element_bytes(run), "3 of the largest: this one, the next, a gradient")


def _activations(run: Run, architecture: Architecture) -> Item:
    """Per token and layer 6 h + 3 a + 4 k + 4 f elements (norms, queries, keys, values, feed-forward).

    With gradient checkpointing h for every layer and the full count for one.
    """
    h, f = architecture.hidden_size, architecture.intermediate_size
    a, k = architecture.query_width, architecture.key_width
    layers, per_layer = architecture.num_hidden_layers, 6 * h + 3 * a + 4 * k + 4 * f
    checkpointing = run.config.actor_rollout_ref.model.enable_gradient_checkpointing
    elements = layers * h + per_layer if checkpointing else layers * per_layer
    formula = "N b (L h + one layer's 6h + 3a + 4k + 4f)" if checkpointing else "N b L (6h + 3a + 4k + 4f)"
    return Item("activations", micro_batch_tokens(run) * elements * element_bytes(run), formula, _token_knob(run))


def _logits(run: Run, architecture: Architecture) -> Item:
    """Logits, and the larger of their gradient and what the entropy takes: softmax and product in fp32, 8 V per token.

    Chunked and checkpointed (both) the entropy takes that of one chunk, whose logits are copied to fp32 too. On padded
    sequences verl copies the logits without their padding, both have a gradient, and nothing is chunked.
    """
    engine, tokens = run.config.actor_rollout_ref.actor.fsdp_config, micro_batch_tokens(run)
    if not run.config.actor_rollout_ref.model.use_remove_padding:
        softmax = 0 if engine.entropy_checkpointing else 4
        size = architecture.vocab_size * tokens * (4 * element_bytes(run) + softmax)
        formula = "4 N V b, padded" + (f" + {softmax} N V" if softmax else "")
        return Item("logits and entropy", size, formula, _token_knob(run))
    chunked = engine.entropy_from_logits_with_chunking and engine.entropy_checkpointing
    entropy = 12 * min(tokens, engine.entropy_from_logits_chunk_size) if chunked else 8 * tokens
    size = architecture.vocab_size * (tokens * element_bytes(run) + max(tokens * element_bytes(run), entropy))
    formula = f"N V b + max(N V b, {'12 V chunk' if chunked else '8 N V'})"
    return Item("logits and entropy", size, formula, _token_knob(run))


def _layer_gradients(run: Run, architecture: Architecture) -> Item:
    """Beyond the activations of a layer, its backward pass holds 2 f + 2 h gradients per token at most."""
    elements = 2 * architecture.intermediate_size + 2 * architecture.hidden_size
    size = micro_batch_tokens(run) * elements * element_bytes(run)
    return Item("gradients in a layer", size, "N b (2h + 2f)", _token_knob(run))


def micro_batch_tokens(run: Run) -> int:
    """N, at most."""
    actor = run.config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return actor.ppo_max_token_len_per_gpu
    rows = run.shape.rollouts_per_step // run.shape.num_mini_batches // run.shape.data_parallel
    size = min(actor.ppo_micro_batch_size_per_gpu or rows, rows)
    return size * run.shape.sequence_length // run.shape.sequence_parallel


def _token_knob(run: Run) -> str:
    actor = run.config.actor_rollout_ref.actor
    name = "ppo_max_token_len_per_gpu" if actor.use_dynamic_bsz else "ppo_micro_batch_size_per_gpu"
    return f"lower {ACTOR}.{name}={actor[name]}"


def shard_group(run: Run) -> int:
    size = run.config.actor_rollout_ref.actor.fsdp_config.fsdp_size
    return size if 0 < size < run.shape.num_ranks else run.shape.num_ranks


def element_bytes(run: Run) -> int:
    """b, bytes per element of the computation; verl's default is bfloat16."""
    name = OmegaConf.select(run.config, f"{ACTOR}.fsdp_config.mixed_precision.param_dtype")
    return BYTES[name or "bfloat16"]
