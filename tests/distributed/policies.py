"""Scenarios of what a worker holds beside its policy: a reference policy, further optimisers; and steps not taken."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import torch
from steps import META, PLAN, Results, backward, ready_worker, step
from workers import Snapshot, gathered, make_worker, mixed_gradient, share, tangent, weights

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.worker import AMFTTrainingWorker, MixturePlan
from verl_ext.gradient_worker import Shards

EXTRA = MixturePlan(weight=1.0, learning_rate=3e-3, optimizer="extra")


# --- The reference policy ---------------------------------------------------------------------------------------------


def reference_policy(model: Path, world_size: int) -> Results:
    """Log-probabilities under the policy and its reference, before and after two steps."""
    worker = make_worker(model)
    results = {"kept": _reference(worker), "sums": _sums(worker)}
    return results | {"iw_sft at the reference": _at_the_reference(worker)}


def _log_probs(worker: AMFTTrainingWorker) -> torch.Tensor:
    return worker.log_probs(share(worker, "demonstrations", 0)).values()


def _reference(worker: AMFTTrainingWorker) -> Results:
    worker.configure(LossSpec(), None, META)
    try:
        worker.sequence_log_probs(share(worker, "demonstrations", 0))
        message = ""
    except RuntimeError as error:
        message = str(error)
    worker.keep_reference()
    with worker.reference_weights():
        at_once = _log_probs(worker)
    first = _log_probs(worker)
    for seed in (0, 1):
        step(worker, seed)
    backward(worker, 2)
    before = Snapshot(worker)
    with worker.reference_weights():
        later = _log_probs(worker)
    same, policy = before.same(Snapshot(worker)), _log_probs(worker)
    try:
        with worker.reference_weights():
            raise KeyError
    except KeyError:
        pass
    return {
        "message": message,
        "first": first,
        "at_once": at_once,
        "later": later,
        "policy": policy,
        "policy_again": _log_probs(worker),
        "same": same,
        "same_after_error": before.same(Snapshot(worker)),
    }


def _sums(worker: AMFTTrainingWorker) -> Results:
    """`sequence_log_probs` for several micro-batch sizes (0: dynamic), beside sums made row by row."""
    data = share(worker, "rollouts", 0)
    by_hand = {}
    for name in ("policy", "reference"):
        if name == "reference":
            with worker.reference_weights():
                rows = worker.log_probs(data).unbind()
        else:
            rows = worker.log_probs(data).unbind()
        masks = data["response_mask"].unbind()
        # log p of a response's token t stands at the position before it
        pairs = zip(rows, masks, strict=True)
        by_hand[name] = torch.stack([(row[-len(mask) - 1 : -1] * mask).sum() for row, mask in pairs])
    found = {}
    for size in (1, 4, 8, 0):
        worker.engine_config.use_dynamic_bsz = size == 0
        worker.engine_config.micro_batch_size_per_gpu = size
        sums = worker.sequence_log_probs(share(worker, "rollouts", 0))
        found[size] = {name: sums[name] for name in ("policy", "reference")}
    return {"by_hand": by_hand, "found": found}


def _at_the_reference(worker: AMFTTrainingWorker) -> Results:
    """Gradients of losses that compare with the reference, where it is the policy itself."""
    worker.keep_reference()
    gradients = {}
    for name in ("sft", "iw_sft", "sft_kl"):
        worker.configure(LossSpec(name), None, META)
        worker.backward_demonstrations(share(worker, "demonstrations", 0))
        gradients[name] = gathered(worker, worker.sft_gradient)
    return gradients


# --- Weights alone ----------------------------------------------------------------------------------------------------


def weights_alone(model: Path, world_size: int) -> Results:
    """Weights written at one step and taken back two steps later, as the second stage of a run does."""
    worker = ready_worker(model, lr_warmup_steps=4)
    folder = str(model.parent / f"weights_{world_size}" / "actor")
    worker.save_weights(folder)
    written = Snapshot(worker)
    rotation = list(worker.engine.checkpoint_manager.previous_saved_paths)
    for seed in (3, 4):
        step(worker, seed)
    before, generator = Snapshot(worker), torch.get_rng_state()
    worker.load_weights(folder)
    after = Snapshot(worker)
    try:
        worker.load_weights(folder + "_absent")
        message = ""
    except FileNotFoundError as error:
        message = str(error)
    return {
        "moved": not written.same(before)["weights"],
        "taken_back": written.same(after)["weights"],
        "left": before.same(after),
        "same_generator": torch.equal(generator, torch.get_rng_state()),
        "rotation": rotation,
        "contents": worker.engine.checkpoint_manager.checkpoint_load_contents,
        "files": sorted(path.name for path in Path(folder).glob("*.pt")),
        "message": message,
    }


# --- Further optimisers -----------------------------------------------------------------------------------------------


def optimizers(model: Path, world_size: int) -> Results:
    """Supervised updates with moments of their own between steps of the main optimiser, and through a checkpoint."""
    worker = ready_worker(model)
    start = Snapshot(worker)
    results: Results = {"first": _first_update(worker, start)}
    end = Snapshot(worker)
    folder = model.parent / f"optimizers_{world_size}"
    worker.save_state(str(folder))
    saved = copy.deepcopy(worker.other_optimizers())
    expected = {"extra": _extra_update(worker, 1), "main": step(worker, 3)["weights"]}
    resumed = ready_worker(model)
    end.restore(resumed)
    resumed.load_state(str(folder))
    results["same_state"] = _same(saved, resumed.other_optimizers())
    results["steps"] = sorted({int(entry["step"]) for entry in saved["extra"] if "step" in entry})
    results["num_empty"] = sum(not entry for entry in saved["extra"])
    results["resumed"] = {"extra": _extra_update(resumed, 1), "main": step(resumed, 3)["weights"]}
    results["expected"] = expected
    end.restore(resumed)
    resumed.optimizer_states.clear()
    results["forgotten"] = _extra_update(resumed, 1)
    return results


def _first_update(worker: AMFTTrainingWorker, start: Snapshot) -> Results:
    """The first update of a new optimiser, in which parameter 2 has no gradient."""
    before = weights(worker)
    worker.backward_demonstrations(share(worker, "demonstrations", 0))
    worker.sft_gradient[2] = None
    gradient = mixed_gradient(worker, EXTRA)
    has_gradient: Shards = [None if shard is None else torch.ones_like(shard) for shard in worker.sft_gradient]
    learned = gathered(worker, has_gradient) > 0
    applied = worker.apply_mixture(EXTRA)
    after = Snapshot(worker)
    return {
        "before": before,
        "gradient": gradient,
        "learned": learned,
        "step": applied,
        "weights": weights(worker),
        "same": start.same(after),
        "same_moments": _same(start.optimizer["state"], after.optimizer["state"]),
        "in_use": worker.optimizer_name,
    }


def _extra_update(worker: AMFTTrainingWorker, seed: int) -> torch.Tensor:
    worker.backward_demonstrations(share(worker, "demonstrations", seed))
    worker.apply_mixture(EXTRA)
    return weights(worker)


def _same(left, right) -> bool:
    """Equality to the bit of nested containers of tensors."""
    if isinstance(left, torch.Tensor):
        left, right = (getattr(tensor, "_local_tensor", tensor) for tensor in (left, right))
        return left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return left == right


# --- Steps that are not taken -----------------------------------------------------------------------------------------


def skipped_steps(model: Path, world_size: int) -> Results:
    """The same gradients under limits above and below their norm, and an infinite one under a limit."""
    worker = ready_worker(model)
    step(worker, 12)  # so that there is a tangent to lose
    backward(worker, 0)
    start = Snapshot(worker)
    norm = float(mixed_gradient(worker, PLAN).norm())
    results: Results = {"norm": norm}
    limits = {"none": None, "above": 2 * norm, "below": 0.5 * norm, "infinite": 2 * norm}
    for name, limit in limits.items():
        start.restore(worker)
        if name == "infinite" and worker.rank == worker.world_size - 1:
            worker.rl_gradient[0].view(-1)[:1] = math.inf
        taken = Snapshot(worker)
        applied = worker.apply_mixture(replace(PLAN, skip_above=limit))
        results[name] = {
            "step": applied,
            "same": taken.same(Snapshot(worker)),
            "weights": weights(worker),
            "tangent": tangent(worker),
            "pending": [worker.sft_gradient, worker.rl_gradient],
            "left": [parameter.grad for parameter in worker.parameters()].count(None) == len(worker.parameters()),
            "next": step(worker, 2)["step"],
        }
    return results
