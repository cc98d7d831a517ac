"""Real actor workers in processes without Ray: construction, synthetic batches, gathering and snapshots.

verl's engine offers no float64 (`PrecisionType.to_dtype`) and Qwen2's RMSNorm computes in float32 whatever the weights
are, so importing this module opens both: the engine itself is verl's own, and float64 shows to 1e-10 what float32 can
only suggest.
"""

import copy
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import (
    ActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.utils.losses import ppo_loss

from recipe.amft.algorithm.meta_gradient import Tangent
from recipe.amft.data.demonstrations import Demonstration, collate
from recipe.amft.data.tiny_model import make_model, make_tokenizer
from recipe.amft.worker import AMFTTrainingWorker, MixturePlan
from verl_ext.gradient_worker import Shards, like_parameter, local_shard

NUM_ROWS = 16
LEARNING_RATE = 1e-2
BATCHES = ("demonstrations", "rollouts", "utility")


def open_float64() -> None:
    """Teach verl's precision names "fp64", and let RMSNorm compute in the precision of its input."""
    known = PrecisionType.to_dtype
    PrecisionType.to_dtype = staticmethod(lambda name: torch.float64 if name == "fp64" else known(name))

    def forward(self, hidden_states):
        return torch.nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)

    Qwen2RMSNorm.forward = forward


open_float64()


def save_model(folder: Path) -> None:
    """A tiny Qwen2 with weights large enough that every parameter matters; its vocabulary divides by no rank count."""
    model = make_model(make_tokenizer(), hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.save_pretrained(folder)


def make_worker(
    model: Path, precision: str = "fp64", fsdp_size: int = -1, optimizer: str = "AdamW", lr_warmup_steps: int = 0
) -> AMFTTrainingWorker:
    """An initialised actor worker on FSDP2 with verl's clipped policy loss."""
    optimizer_config = FSDPOptimizerConfig(
        optimizer=optimizer,
        lr=LEARNING_RATE,
        total_training_steps=100,
        lr_warmup_steps=lr_warmup_steps,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        clip_grad=0.5,
    )
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(model),
            load_tokenizer=False,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            fsdp_size=fsdp_size,
            model_dtype=precision,
            mixed_precision={"param_dtype": precision, "reduce_dtype": precision, "buffer_dtype": precision},
            use_torch_compile=False,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=4,
            max_token_len_per_gpu=64,
        ),
        optimizer_config=optimizer_config,
        checkpoint_config=CheckpointConfig(),
    )
    worker = AMFTTrainingWorker(config)
    worker.reset()
    if precision == "fp64":
        worker.engine._autocast_dtype = torch.float32  # verl's way to say: no autocast
    actor = ActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=4, optim=optimizer_config, use_torch_compile=False
    )
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    return worker


# --- Batches ----------------------------------------------------------------------------------------------------------


def make_batch(name: str, seed: int, vocabulary: int) -> TensorDict:
    """16 rows of all ranks together: demonstrations, rollouts (with foreign tokens, mask 0) or utility rollouts."""
    generator = torch.Generator().manual_seed(1000 * BATCHES.index(name) + seed)

    def tokens(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    rows = [Demonstration(str(index), tokens(2, 9), tokens(1, 8)) for index in range(NUM_ROWS)]
    batch = collate(rows)
    if name == "demonstrations":
        return batch
    masks = [(torch.rand(len(row.response), generator=generator) < 0.8).long() for row in rows]
    for mask in masks:
        mask[-1] = 1
    advantages = torch.randn(NUM_ROWS, generator=generator)
    fields = {
        "response_mask": masks,
        "loss_mask": [mask.clone() for mask in masks],
        "advantages": [advantages[index].expand(len(mask)).clone() for index, mask in enumerate(masks)],
        "old_log_probs": [0.3 * torch.randn(len(mask), generator=generator) - 6.0 for mask in masks],
    }
    for field, values in fields.items():
        batch[field] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
    tu.assign_non_tensor(batch, calculate_entropy=False, num_sequences=NUM_ROWS)
    return batch


def row_order(layout: str) -> torch.Tensor:
    """Which rows go to which rank: the order is cut into as many equal parts as there are ranks."""
    rows = torch.arange(NUM_ROWS)
    if layout == "contiguous":
        return rows
    if layout == "interleaved":
        return rows.view(-1, 4).T.flatten()
    return torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(7))


def share(worker: AMFTTrainingWorker, name: str, seed: int, layout: str = "contiguous") -> TensorDict:
    """This rank's rows of a batch."""
    batch = make_batch(name, seed, worker.model_config.hf_config.vocab_size)
    rows = row_order(layout).view(worker.world_size, -1)[worker.rank]
    return tu.index_select_tensor_dict(batch, rows)


def append_padding_row(batch: TensorDict) -> TensorDict:
    """`batch` and one no-op row as verl's trainer makes them: one response token, mask 0, fields of another row."""
    row = {
        "prompts": torch.full((20,), 2),
        "responses": torch.tensor([2]),
        "input_ids": torch.full((21,), 2),
        "position_ids": torch.arange(21),
        "response_mask": torch.tensor([0]),
        "loss_mask": torch.tensor([0]),
    }
    names = list(batch.keys())
    tensors = {name: batch[name] for name in names if isinstance(batch[name], torch.Tensor)}
    fields = {
        name: torch.nested.as_nested_tensor(
            [*tensor.unbind(), row[name] if name in row else tensor.unbind()[0]], layout=torch.jagged
        )
        for name, tensor in tensors.items()
    }
    others = {name: tu.get(batch, name) for name in names if name not in tensors}
    return tu.get_tensordict(fields, non_tensor_dict=others)


# --- What a worker holds ----------------------------------------------------------------------------------------------


def gathered(worker: AMFTTrainingWorker, shards: Shards) -> torch.Tensor:
    """A shard list as one full float64 vector, the same on every rank; None counts as zero."""
    parts = []
    for parameter, shard in zip(worker.parameters(), shards, strict=True):
        tensor = like_parameter(torch.zeros_like(local_shard(parameter)) if shard is None else shard, parameter)
        parts.append((tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().double().flatten())
    return torch.cat(parts)


def weights(worker: AMFTTrainingWorker) -> torch.Tensor:
    return gathered(worker, [local_shard(parameter).detach() for parameter in worker.parameters()])


def tangent(worker: AMFTTrainingWorker) -> torch.Tensor:
    shards = worker.tangent.parameters
    return gathered(worker, shards + [None] * (len(worker.parameters()) - len(shards)))


def clones(shards: Shards | None) -> Shards | None:
    return None if shards is None else [None if shard is None else shard.clone() for shard in shards]


def mixed_gradient(worker: AMFTTrainingWorker, plan: MixturePlan) -> torch.Tensor:
    """The gradient that `apply_mixture` is about to clip, gathered; the worker is left as it was."""
    sft, rl = worker.sft_gradient, worker.rl_gradient
    worker.sft_gradient, worker.rl_gradient = clones(sft), clones(rl)
    mixed, _ = worker._mix(plan)
    worker.sft_gradient, worker.rl_gradient = sft, rl
    return gathered(worker, mixed)


class Snapshot:
    """Everything of a worker that a step changes: weights, optimiser, schedule, tangent, gradients set aside."""

    def __init__(self, worker: AMFTTrainingWorker):
        self.weights = [local_shard(parameter).detach().clone() for parameter in worker.parameters()]
        self.optimizer = copy.deepcopy(worker.engine.optimizer.state_dict())
        self.schedule = copy.deepcopy(worker.engine.lr_scheduler.state_dict())
        self.tangent = copy.deepcopy(worker.tangent.state_dict())
        self.gradients = [copy.deepcopy(worker.sft_gradient), copy.deepcopy(worker.rl_gradient)]

    @torch.no_grad()
    def restore(self, worker: AMFTTrainingWorker) -> None:
        for parameter, saved in zip(worker.parameters(), self.weights, strict=True):
            local_shard(parameter).copy_(saved)
        worker.engine.optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        worker.engine.lr_scheduler.load_state_dict(copy.deepcopy(self.schedule))
        worker.tangent = Tangent(**copy.deepcopy(self.tangent))
        worker.sft_gradient, worker.rl_gradient = copy.deepcopy(self.gradients)

    def same(self, other: "Snapshot") -> dict[str, bool]:
        """Part by part, whether the two are equal to the bit."""
        return {name: _equal(value, getattr(other, name)) for name, value in vars(self).items()}


def _equal(left, right) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        left, right = local_shard(left), local_shard(right)
        return left.shape == right.shape and bool((left == right).all())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right
