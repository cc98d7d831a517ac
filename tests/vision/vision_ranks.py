"""`python vision_ranks.py FOLDER`: a real actor worker with tiny vision models, on one rank and on two, without Ray.

What each rank computed is saved for test_worker.py, by family of models. The ranks are forked after the imports, and
meet through a file.
"""

import os
import sys
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
import verl.workers.engine.fsdp.transformer_impl  # noqa: F401  (seconds to import: once, before the fork)
from tensordict import TensorDict
from transformers import AutoModelForImageTextToText
from verl.trainer.config import CheckpointConfig
from verl.utils import hf_processor, hf_tokenizer
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.utils.losses import ppo_loss

from recipe.amft.algorithm.meta_gradient import MetaConfig
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.data.demonstrations import Demonstration, DemonstrationTokenizer, collate
from recipe.amft.data.general_points import splits_from_options
from recipe.amft.data.tiny_vlm import make
from recipe.amft.tasks.rendering.cards import HandPicture
from recipe.amft.worker import AMFTTrainingWorker, MixturePlan
from verl_ext.gradient_worker import Shards, like_parameter
from verl_ext.images import model_inputs

GAME = {
    "modality": "image", "image_size": 112, "num_cards": 2, "ranks": 10, "targets": [1, 24], "verify_iter": 1,
    "prompt_style": "compact", "train": 8, "validation": 0, "test": 0, "seed": 0,
}  # fmt: skip


def make_worker(model: Path) -> AMFTTrainingWorker:
    """An initialised actor worker on FSDP2 in float32, micro-batches of two rows."""
    optimizer = FSDPOptimizerConfig(lr=1e-2, total_training_steps=10, lr_warmup_steps=0, weight_decay=0.1)
    precision = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(model),
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", model_dtype="fp32", mixed_precision=precision, use_torch_compile=False,
            use_dynamic_bsz=False, micro_batch_size_per_gpu=2, max_token_len_per_gpu=256,
        ),
        optimizer_config=optimizer,
        checkpoint_config=CheckpointConfig(),
    )  # fmt: skip
    worker = AMFTTrainingWorker(config)
    worker.reset()
    actor = ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=2, optim=optimizer)
    worker.set_loss_fn(partial(ppo_loss, config=actor))
    worker.configure(LossSpec(), None, MetaConfig())
    return worker


def demonstrations(model: Path) -> list[Demonstration]:
    """Eight demonstrations of the small game with images."""
    tokenizer, processor = hf_tokenizer(str(model)), hf_processor(str(model))
    tokenize = DemonstrationTokenizer(tokenizer, processor.config.model_type, 64, 48, processor=processor)
    return [tokenize(row) for row in splits_from_options(GAME)["train"]][:8]


def batch_of(model: Path, rows: list[Demonstration], rank: int = 0, world_size: int = 1, **kwargs) -> TensorDict:
    """This rank's part of a batch, through the same cut that verl's dispatch makes."""
    batch = collate(rows, processor=hf_processor(str(model)), **kwargs)
    return tu.chunk_tensordict(batch, world_size)[rank] if world_size > 1 else batch


def gradients(worker: AMFTTrainingWorker, shards: Shards) -> dict[str, torch.Tensor]:
    """Full gradients by name of the parameter."""
    names = [name for name, parameter in worker.engine.module.named_parameters() if parameter.requires_grad]
    found = {}
    for name, parameter, shard in zip(names, worker.parameters(), shards, strict=True):
        if shard is not None:
            whole = like_parameter(shard, parameter)
            found[name] = (whole.full_tensor() if hasattr(whole, "full_tensor") else whole).detach().clone()
    return found


def reference(model: Path, rows: list[Demonstration]) -> dict[str, torch.Tensor]:
    """The same loss by transformers alone, row by row: mean over all learned tokens; its gradients, and the loss."""
    policy = AutoModelForImageTextToText.from_pretrained(model, attn_implementation="sdpa")
    processor = hf_processor(str(model))
    total = sum(len(row.response) for row in rows)
    loss = torch.zeros(())
    for row in rows:
        tokens = torch.tensor([*row.prompt, *row.response])
        inputs, positions = model_inputs(processor, row.pictures, tokens, {})
        inputs.pop("images_seqlens")
        logits = policy(input_ids=tokens[None], position_ids=positions[:, None], **inputs).logits[0]
        logprobs = logits.log_softmax(-1)[:-1].gather(-1, tokens[1:, None])[:, 0]
        loss = loss - logprobs[len(row.prompt) - 1 :].sum() / total
    loss.backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters()} | {"loss": loss.detach()}


def scenario(rank: int, world_size: int, model: Path) -> dict[str, object]:
    """What test_worker.py looks at."""
    rows = demonstrations(model)
    same = [row for row in rows if len(row.response) == len(rows[0].response)]
    equal = [same[index % len(same)] for index in range(4)]
    results: dict[str, object] = {}
    if rank == 0:  # before verl replaces the forward pass of transformers' class
        results["reference"] = reference(model, rows)
        results["equal_lengths_reference"] = float(reference(model, equal)["loss"])
        results["padded_reference"] = float(reference(model, rows[:6])["loss"])
    worker = make_worker(model)
    cut = {"rank": rank, "world_size": world_size}
    metrics = worker.backward_demonstrations(batch_of(model, rows, **cut))
    results["demonstrations"] = {"loss": metrics["loss"], "gradients": gradients(worker, worker.sft_gradient)}
    results["equal_lengths"] = worker.backward_demonstrations(batch_of(model, equal, **cut))["loss"]
    aces = (HandPicture(((1, "S"), (1, "S")), 112),)
    blind = [Demonstration(row.row_id, row.prompt, row.response, pictures=aces) for row in rows]
    results["other_images"] = worker.backward_demonstrations(batch_of(model, blind, **cut))["loss"]
    results["padded"] = worker.backward_demonstrations(batch_of(model, rows[:6], num_padding=2, **cut))["loss"]
    results["text_only"] = text_only_rows(worker, batch_of(model, rows, **cut))
    worker.freeze_vision_tower()
    before = {name: whole(value) for name, value in worker.engine.module.named_parameters()}
    worker.backward_demonstrations(batch_of(model, rows, **cut))
    results["frozen_gradients"] = sorted(gradients(worker, worker.sft_gradient))
    worker.apply_mixture(MixturePlan(weight=1.0))
    after = {name: whole(value) for name, value in worker.engine.module.named_parameters()}
    results["moved"] = sorted(name for name in before if not torch.equal(before[name], after[name]))
    results["names"] = sorted(before)
    return results


def text_only_rows(worker: AMFTTrainingWorker, batch: TensorDict) -> dict[str, float]:
    """A backward pass in which the last two rows are padding as verl's trainer makes it: no image, nothing learned."""
    rows = len(batch)
    length = 20
    for name in ("responses", "response_mask", "loss_mask"):
        values = list(batch[name].unbind())
        values[-2:] = [torch.zeros(1, dtype=values[0].dtype)] * 2
        batch[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
    for name, size in (("prompts", length - 1), ("input_ids", length)):
        values = list(batch[name].unbind())
        values[-2:] = [torch.full((size,), 2)] * 2
        batch[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
    positions = list(batch["position_ids"].unbind())
    positions[-2:] = [torch.arange(length).expand(4, -1)] * 2
    batch["position_ids"] = tu.nested_tensor_from_tensor_list(positions, ragged_idx=2)
    inputs = [dict(tu.get(batch, "multi_modal_inputs")[row]) for row in range(rows - 2)] + [{}, {}]
    tu.assign_non_tensor_stack(batch, "multi_modal_inputs", inputs)
    metrics = worker.backward_demonstrations(batch)
    return {"loss": metrics["loss"], "norm": metrics["norm"]}


def whole(parameter) -> torch.Tensor:
    """A full copy of a parameter."""
    value = parameter.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()


def run_rank(rank: int, world_size: int, family: str, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "cpu:gloo", init_method=f"file://{folder / f'meet_{family}_{world_size}'}", rank=rank, world_size=world_size,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    try:
        results = scenario(rank, world_size, folder / family)
    except Exception:
        print(traceback.format_exc(), flush=True)
        os._exit(1)
    torch.save(results, folder / f"{family}_world_{world_size}_rank_{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for name in ("qwen2_5_vl", "qwen3_vl"):
        (target / name).mkdir()
        make({"family": name}, target / name)
        for size in (1, 2):
            torch.multiprocessing.start_processes(run_rank, (size, name, target), nprocs=size, start_method="fork")
