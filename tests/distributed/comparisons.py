"""Scenarios whose numbers are compared: across ranks, micro-batches, verl's own updates and finite differences."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from steps import MESHES, PLAN, Results, backward, meta_update, ready_worker, step
from tensordict import NonTensorData
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.utils.losses import sft_loss
from workers import Snapshot, gathered, mixed_gradient, share, tangent, weights

from recipe.amft.algorithm.meta_gradient import HORIZONS, INNER_UPDATES, MetaConfig, Tangent
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.worker import AMFTTrainingWorker, MixturePlan, utility_loss
from verl_ext.gradient_worker import local_shard

METAS = {  # by precision: all nine in float64, each value once in float32
    "fp64": [MetaConfig(inner, horizon) for inner in INNER_UPDATES for horizon in HORIZONS],
    "fp32": [MetaConfig("sgd", "one"), MetaConfig("clipped", "window"), MetaConfig("adamw", "trace")],
}


# --- 1. Ranks and meshes ----------------------------------------------------------------------------------------------


def meshes(model: Path, world_size: int) -> Results:
    """Three steps on every mesh of this world size, in both precisions."""
    results: Results = {}
    for mesh, fsdp_size in MESHES[world_size].items():
        for precision, metas in METAS.items():
            worker = ready_worker(model, precision=precision, fsdp_size=fsdp_size)
            results[mesh, precision] = _three_steps(worker, metas)
    return results


def _three_steps(worker: AMFTTrainingWorker, metas: list[MetaConfig]) -> Results:
    """Weights do not depend on the meta settings, so every step is taken once per setting from the same gradients."""
    results: Results = {"entropy": worker.demonstration_entropy(share(worker, "demonstrations", 0)), "meta": {}}
    pending = {meta: Tangent() for meta in metas}
    for seed in range(3):
        measured = backward(worker, seed)
        measured["mixed"] = mixed_gradient(worker, PLAN)
        start = Snapshot(worker)
        for meta in metas:
            start.restore(worker)
            worker.configure(LossSpec("sft"), None, meta)
            worker.tangent = pending[meta]
            measured["step"] = worker.apply_mixture(PLAN)
        results[seed] = measured | {"weights": weights(worker)}
        for meta in metas if seed != 1 else []:
            worker.configure(LossSpec("sft"), None, meta)
            worker.tangent = copy.deepcopy(pending[meta])
            update = {"tangent": tangent(worker)} | meta_update(worker)
            results["meta"][meta.inner, meta.horizon, seed] = update | {"left": tangent(worker)}
    return results


# --- 2. Micro-batches and the distribution of rows --------------------------------------------------------------------


def partitions(model: Path, world_size: int) -> Results:
    """One step and one meta-update, for several micro-batch sizes and row orders; 0 stands for dynamic batches."""
    worker = ready_worker(model)
    start = Snapshot(worker)
    cases = [("contiguous", size) for size in (1, 2, 3, 4, 8)]
    cases += [("interleaved", 2), ("interleaved", 4), ("shuffled", 1), ("shuffled", 8), ("shuffled", 0)]
    results = {}
    for layout, size in cases:
        start.restore(worker)
        worker.engine_config.use_dynamic_bsz = size == 0
        worker.engine_config.micro_batch_size_per_gpu = size
        results[layout, size] = step(worker, 0, layout=layout) | {"meta": meta_update(worker, layout)}
    return results


# --- 3. verl's own updates --------------------------------------------------------------------------------------------


def verl_parity(model: Path, world_size: int) -> Results:
    """Weights after our update and after verl's own, from the same state on the same batches."""
    worker = ready_worker(model, precision="fp32")
    worker.engine_config.micro_batch_size_per_gpu = 2
    start = Snapshot(worker)
    results = {}
    updates = {"rl": _our_rl_steps, "verl_rl": _verl_rl_steps, "sft": _our_sft_steps, "verl_sft": _verl_sft_steps}
    for name, update in updates.items():
        for num_mini_batches in (1, 2):
            start.restore(worker)
            update(worker, num_mini_batches)
            results[name, num_mini_batches] = {
                "weights": weights(worker),
                "first_moments": gathered(worker, _moments(worker, "exp_avg")),
                "second_moments": gathered(worker, _moments(worker, "exp_avg_sq")),
                "lr": worker.engine.lr_scheduler.get_last_lr(),
            }
    return results


def _moments(worker: AMFTTrainingWorker, name: str) -> list[torch.Tensor]:
    return [local_shard(worker.engine.optimizer.state[parameter][name]) for parameter in worker.parameters()]


def _mini_batches(worker: AMFTTrainingWorker, name: str, count: int) -> list:
    batch = share(worker, name, 0)
    return [tu.index_select_tensor_dict(batch, rows) for rows in torch.arange(len(batch)).view(count, -1)]


def _our_steps(worker: AMFTTrainingWorker, count: int, weight: float) -> None:
    demonstrations, rollouts = (_mini_batches(worker, name, count) for name in ("demonstrations", "rollouts"))
    for index in range(count):
        worker.backward_demonstrations(demonstrations[index])
        worker.backward_rollouts(rollouts[index])
        worker.apply_mixture(
            MixturePlan(weight, starts_step=index == 0, ends_step=index == count - 1, track_tangent=True)
        )


def _our_rl_steps(worker: AMFTTrainingWorker, count: int) -> None:
    _our_steps(worker, count, weight=0.0)


def _our_sft_steps(worker: AMFTTrainingWorker, count: int) -> None:
    _our_steps(worker, count, weight=1.0)


def _verl_rl_steps(worker: AMFTTrainingWorker, count: int) -> None:
    batch = share(worker, "rollouts", 0)
    tu.assign_non_tensor(batch, num_mini_batch=count, dataloader_kwargs={"shuffle": False})
    worker.train_mini_batch(batch)


def _verl_sft_steps(worker: AMFTTrainingWorker, count: int) -> None:
    """verl's `sft_loss` reads a mask as long as the whole sequence, where ours covers the response."""
    own_loss = worker.loss_fn
    worker.set_loss_fn(partial(sft_loss, config=None))
    for index, batch in enumerate(_mini_batches(worker, "demonstrations", count)):
        pairs = zip(batch["prompts"].unbind(), batch["response_mask"].unbind(), strict=True)
        masks = [torch.cat([torch.zeros_like(prompt), mask]) for prompt, mask in pairs]
        batch["loss_mask"] = torch.nested.as_nested_tensor(masks, layout=torch.jagged)
        tu.assign_non_tensor(
            batch,
            pad_mode=DatasetPadMode.NO_PADDING,
            global_token_num=NonTensorData(batch["input_ids"].offsets().diff().tolist()),
            update_lr_scheduler=index == count - 1,
            calculate_entropy=False,
        )
        worker.train_batch(batch)
    worker.set_loss_fn(own_loss)


# --- 4. Finite differences --------------------------------------------------------------------------------------------


def finite_differences(model: Path, world_size: int) -> Results:
    """The carried tangent and the meta-gradient, each beside a central difference over mu of the actual step."""
    results = {}
    # (optimiser, inner update, width of the difference in float32: SGD steps are small, AdamW steps are curved)
    for optimizer, inner, epsilon in (("AdamW", "adamw", 1e-3), ("SGD", "clipped", 2e-2), ("SGD", "sgd", 2e-2)):
        for precision in ("fp32", "fp64"):
            worker = ready_worker(model, MetaConfig(inner, "one"), precision=precision, optimizer=optimizer)
            for max_norm in (0.5, 1e6):
                if (inner, max_norm) != ("sgd", 0.5):  # plain SGD is not what clipped SGD does
                    width = epsilon if precision == "fp32" else 1e-5
                    results[inner, max_norm, precision] = _against_difference(worker, max_norm, width)
    return results


def _against_difference(worker: AMFTTrainingWorker, max_norm: float, epsilon: float) -> Results:
    worker.optimizer_config.clip_grad = max_norm
    start = Snapshot(worker)
    ends = []
    for sign in (1, -1):
        measured = step(worker, 0, replace(PLAN, weight=PLAN.weight + sign * epsilon))
        ends.append((measured["weights"], _utility(worker)))
        start.restore(worker)
    measured = step(worker, 0)
    dot = meta_update(worker)["dot"]
    start.restore(worker)
    (high, high_utility), (low, low_utility) = ends
    return {
        "tangent": measured["tangent"],
        "difference": (high - low) / (2 * epsilon),
        "dot": dot,
        "utility_difference": (high_utility - low_utility) / (2 * epsilon),
        "grad_norm": measured["step"]["grad_norm"],
    }


def _utility(worker: AMFTTrainingWorker) -> float:
    """The surrogate whose gradient `validation_gradient` takes, summed in float64 (verl sums in the default dtype)."""
    batch = share(worker, "utility", 0)
    torch.set_default_dtype(torch.float64)
    try:
        return -worker.evaluate(batch, utility_loss)["loss"]
    finally:
        torch.set_default_dtype(torch.float32)
