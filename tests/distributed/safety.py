"""Scenarios of what must not change: under validation, non-finite gradients, padding, unused parameters, warm-up."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from steps import MESHES, META, PLAN, Results, backward, meta_update, ready_worker, step
from verl.utils import tensordict_utils as tu
from workers import Snapshot, append_padding_row, make_worker, mixed_gradient, share, tangent, weights

from recipe.amft.algorithm.meta_gradient import MetaConfig
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.worker import MEASURES_UTILITY, MU_NEXT, MU_NOW, AMFTTrainingWorker, MixturePlan


def safety(model: Path, world_size: int) -> Results:
    mesh = list(MESHES[world_size].values())[-1]
    worker = ready_worker(model, fsdp_size=mesh)
    step(worker, 12)
    start = Snapshot(worker)
    results = {}
    scenarios = (
        _meta_update_between,
        _rollout_utility,
        _not_finite,
        _state_files,
        _padding_rows,
        _missing_gradients,
    )
    for scenario in scenarios:
        results[scenario.__name__.removeprefix("_")] = scenario(worker, model.parent)
        start.restore(worker)
    return results


def _meta_update_between(worker: AMFTTrainingWorker, folder: Path) -> Results:
    """Both gradients are set aside while the validation worker runs its own backward pass."""
    backward(worker, 0)
    before = Snapshot(worker)
    measured = meta_update(worker)
    after = Snapshot(worker)
    with_meta = worker.apply_mixture(PLAN), weights(worker)
    before.restore(worker)
    without_meta = worker.apply_mixture(PLAN), weights(worker)
    return {"same": before.same(after), "measured": measured, "with_meta": with_meta, "without_meta": without_meta}


def _rollout_utility(worker: AMFTTrainingWorker, folder: Path) -> Results:
    """The meta-gradient on the step's own rollouts, and the gathered vectors that it is made of.

    The tangent is then a window's, which ends with a meta-update.
    """
    measured = backward(worker, 0)
    plain, before = mixed_gradient(worker, PLAN), tangent(worker)
    rollouts = share(worker, "rollouts", 0)
    tu.assign_non_tensor(rollouts, **{MEASURES_UTILITY: MU_NOW})
    meta = worker.backward_rollouts(rollouts)
    same_tangent = torch.equal(before, tangent(worker))
    worker.configure(LossSpec("sft"), None, replace(META, horizon="window"))
    products = []
    for decision in (MU_NEXT, MU_NOW, MU_NOW):
        tu.assign_non_tensor(rollouts, **{MEASURES_UTILITY: decision})
        products.append(worker.backward_rollouts(rollouts)["dot"])
    return {
        "rl": measured["rl"],
        "meta": meta,
        "same": torch.equal(plain, mixed_gradient(worker, PLAN)) and same_tangent,
        "window": products,
        "gradient": mixed_gradient(worker, MixturePlan(weight=0.0)),
        "tangent": before,
    }


def _not_finite(worker: AMFTTrainingWorker, folder: Path) -> Results:
    """Infinite advantages on the last rank: inside [0, 1] the step is skipped, at mu = 1 only d is not finite."""
    start = Snapshot(worker)
    results: Results = {}
    for weight, horizon in ((0.3, "trace"), (1.0, "trace"), (1.0, "one")):
        worker.configure(LossSpec("sft"), None, MetaConfig("adamw", horizon))
        worker.backward_demonstrations(share(worker, "demonstrations", 0))
        rollouts = share(worker, "rollouts", 0)
        if worker.rank == worker.world_size - 1:
            rollouts["advantages"].values()[:] = math.inf
        measured = worker.backward_rollouts(rollouts)
        before, tangent_before = Snapshot(worker), tangent(worker)
        applied = worker.apply_mixture(replace(PLAN, weight=weight))
        results[weight, horizon] = {
            "rl": measured,
            "step": applied,
            "same": before.same(Snapshot(worker)),
            "weights": weights(worker),
            "tangent": tangent(worker),
            "tangent_before": tangent_before,
            "next": step(worker, 2),
        }
        start.restore(worker)
    worker.configure(LossSpec("sft"), None, META)
    worker.backward_demonstrations(share(worker, "demonstrations", 0))
    worker.apply_mixture(replace(PLAN, weight=1.0, sft_scale=1.0))
    results["demonstrations_only"] = weights(worker)
    return results


def _state_files(worker: AMFTTrainingWorker, folder: Path) -> Results:
    target = folder / f"state_{worker.world_size}"
    torch.distributed.barrier()
    try:
        worker.load_state(str(target))
        message = ""
    except FileNotFoundError as error:
        message = str(error)
    worker.save_state(str(target))
    before = Snapshot(worker)
    worker.tangent.reset()
    emptied = Snapshot(worker).same(before)["tangent"]
    worker.load_state(str(target))
    return {
        "message": message,
        "same_when_emptied": emptied,
        "same": before.same(Snapshot(worker)),
        "files": sorted(path.name for path in target.iterdir() if path.name.endswith(f"rank_{worker.rank}.pt")),
    }


def _padding_rows(worker: AMFTTrainingWorker, folder: Path) -> Results:
    """The same rollouts with and without a no-op row on every rank, as the trainer pads them."""
    start = Snapshot(worker)
    results = {}
    for name, pad in {"plain": lambda batch: batch, "padded": append_padding_row}.items():
        sft = worker.backward_demonstrations(share(worker, "demonstrations", 0))
        rl = worker.backward_rollouts(pad(share(worker, "rollouts", 0)))
        applied = worker.apply_mixture(PLAN)
        meta = worker.validation_gradient(pad(share(worker, "utility", 0)))
        results[name] = {"sft": sft, "rl": rl, "step": applied, "meta": meta, "weights": weights(worker)}
        start.restore(worker)
    return results


def _missing_gradients(worker: AMFTTrainingWorker, folder: Path) -> Results:
    """Parameters without a gradient (None), as an unused part of a model has, beside gradients of zeros.

    Parameter 0 has none in the SFT phase, parameter 1 none in the RL phase, parameter 2 none in either.
    """
    backward(worker, 0)
    start = Snapshot(worker)
    results: Results = {}
    for name in ("full", "zeros", "none"):
        start.restore(worker)
        sft, rl = worker.sft_gradient, worker.rl_gradient
        if name == "zeros":
            sft[0], rl[1] = torch.zeros_like(sft[0]), torch.zeros_like(rl[1])
        elif name == "none":
            sft[0] = rl[1] = None
        if name != "full":
            sft[2] = rl[2] = None
        results[name] = {
            "mixed": mixed_gradient(worker, PLAN),
            "step": worker.apply_mixture(PLAN),
            "tangent": tangent(worker),
            "meta": meta_update(worker),
            "weights": weights(worker),
            "parameter_2_moved": not torch.equal(Snapshot(worker).weights[2], start.weights[2]),
        }
    return results


# --- 6. Learning rate -------------------------------------------------------------------------------------------------


def schedule(model: Path, world_size: int) -> Results:
    """Two steps at a rate of their own, then three scheduled steps of two mini-batches each."""
    worker = make_worker(model, "fp32", lr_warmup_steps=4)
    worker.configure(LossSpec("sft"), None, META)
    scheduler = worker.engine.lr_scheduler
    rates = [(scheduler.last_epoch, worker.engine.optimizer.param_groups[0]["lr"])]
    steps = []
    for seed in range(2):
        worker.backward_demonstrations(share(worker, "demonstrations", seed))
        steps.append(worker.apply_mixture(MixturePlan(weight=1.0, learning_rate=3e-3)))
        rates.append((scheduler.last_epoch, worker.engine.optimizer.param_groups[0]["lr"]))
    for seed in range(3):
        for index in range(2):
            plan = replace(PLAN, starts_step=index == 0, ends_step=index == 1)
            steps.append(step(worker, seed, plan)["step"])
    return {
        "before": rates,
        "steps": steps,
        "last_epoch": scheduler.last_epoch,
    }
