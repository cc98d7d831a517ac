"""The pieces that scenarios are made of: both backward passes, one mixed step, one meta-update."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from workers import make_worker, mixed_gradient, share, tangent, weights

from recipe.amft.algorithm.meta_gradient import MetaConfig
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.worker import AMFTTrainingWorker, MixturePlan

MESHES = {1: {"single": -1}, 2: {"fsdp": -1, "replicated": 1}, 4: {"fsdp": -1, "hsdp": 2}}  # world -> name -> fsdp_size
PLAN = MixturePlan(weight=0.3, sft_scale=0.8, rl_scale=1.3, track_tangent=True)
META = MetaConfig(inner="adamw", horizon="trace")
Results = dict[str, Any]


def backward(worker: AMFTTrainingWorker, seed: int, layout: str = "contiguous") -> Results:
    """Both gradients on batch `seed`, set aside."""
    return {
        "sft": worker.backward_demonstrations(share(worker, "demonstrations", seed, layout)),
        "rl": worker.backward_rollouts(share(worker, "rollouts", seed, layout)),
    }


def step(worker: AMFTTrainingWorker, seed: int, plan: MixturePlan = PLAN, layout: str = "contiguous") -> Results:
    measured = backward(worker, seed, layout)
    measured["mixed"] = mixed_gradient(worker, plan)
    return measured | {"step": worker.apply_mixture(plan), "weights": weights(worker), "tangent": tangent(worker)}


def meta_update(worker: AMFTTrainingWorker, layout: str = "contiguous") -> dict[str, float]:
    return worker.validation_gradient(share(worker, "utility", 0, layout))


def ready_worker(model: Path, meta: MetaConfig = META, **options) -> AMFTTrainingWorker:
    """A worker two steps into training: on AdamW's very first step d theta / d mu is about d / eps where |g| < eps."""
    worker = make_worker(model, **options)
    worker.configure(LossSpec("sft"), None, meta)
    for seed in (10, 11):
        step(worker, seed, replace(PLAN, track_tangent=False))
    return worker
