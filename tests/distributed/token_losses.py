"""Scenarios of token losses: every one as the loss of demonstrations and of rollouts, and with padding rows."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from steps import META, PLAN, Results, step
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.utils.losses import ppo_loss
from workers import NUM_ROWS, Snapshot, gathered, make_worker, mixed_gradient, share, weights

from recipe.amft.algorithm.token_losses import TOKEN_LOSSES, LossSpec
from recipe.amft.data.demonstrations import Demonstration, collate
from recipe.amft.worker import BATCH_ENTROPY, AMFTTrainingWorker

SUM = replace(PLAN, weight=None, track_tangent=False)
CASES = {1: [("contiguous", 2), ("shuffled", 8)], 2: [("interleaved", 0)]}  # rows to ranks, micro-batch (0: dynamic)
SPECS = {name: LossSpec(name) for name in TOKEN_LOSSES} | {
    "sft per sequence": LossSpec("sft", per="sequence"),
    "srft_demonstration over the batch": LossSpec("srft_demonstration", {"entropy_scope": "batch"}),
    "srft_demonstration of iw_sft": LossSpec("srft_demonstration", {"sft_loss": "iw_sft"}),
    "srft_rollout over the batch": LossSpec("srft_rollout", {"entropy_scope": "batch"}),
    "shaped_probability with entropy": LossSpec("shaped_probability", entropy_bonus=True),
}
ENTROPY_COEFFICIENT = 0.3
ROLLOUT_ENTROPY = 1.7  # what the driver says of the batch of rollouts


def away_from_reference(model: Path) -> AMFTTrainingWorker:
    """A worker two steps away from the reference policy that it keeps."""
    worker = make_worker(model)
    worker.configure(LossSpec(), None, META)
    worker.keep_reference()
    for seed in (10, 11):
        step(worker, seed, SUM)
    return worker


def weighted_share(worker: AMFTTrainingWorker, name: str, layout: str) -> TensorDict:
    """This rank's rows, with a weight or an advantage per row and the entropy asked for."""
    batch = share(worker, name, 0, layout)
    if name == "demonstrations":
        factors = torch.randn(NUM_ROWS, generator=torch.Generator().manual_seed(5))
        by_length = [factors[(response.sum() + len(response)) % NUM_ROWS] for response in batch["responses"].unbind()]
        rows = [
            factor.expand(len(mask)) for factor, mask in zip(by_length, batch["response_mask"].unbind(), strict=True)
        ]
        batch["advantages"] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    tu.assign_non_tensor(batch, calculate_entropy=True)
    if name == "rollouts":
        tu.assign_non_tensor(batch, **{BATCH_ENTROPY: ROLLOUT_ENTROPY})
    return batch


def token_losses(model: Path, world_size: int) -> Results:
    """Both gradients, and the weights after a step along their sum; a phase that has no such loss is left out."""
    worker = away_from_reference(model)
    start = Snapshot(worker)
    results: Results = {"padding": _padding(worker, start), "entropy bonus": _entropy_bonus(worker)}
    for name, spec in SPECS.items():
        for layout, size in CASES[world_size]:
            start.restore(worker)
            worker.engine_config.use_dynamic_bsz = size == 0
            worker.engine_config.micro_batch_size_per_gpu = size
            results[name, layout, size] = _step(worker, spec, layout)
    return results


def _step(worker: AMFTTrainingWorker, spec: LossSpec, layout: str) -> Results:
    worker.configure(spec, spec, META, ENTROPY_COEFFICIENT)
    measured: Results = {}
    if spec.name != "importance_ratio":
        measured["sft"] = worker.backward_demonstrations(weighted_share(worker, "demonstrations", layout))
        measured["sft_gradient"] = gathered(worker, worker.sft_gradient)
    if not spec.needs_reference:
        measured["rl"] = worker.backward_rollouts(weighted_share(worker, "rollouts", layout))
        measured["rl_gradient"] = gathered(worker, worker.rl_gradient)
    return measured | {"step": worker.apply_mixture(SUM), "weights": weights(worker)}


def _entropy_bonus(worker: AMFTTrainingWorker) -> Results:
    """What an entropy coefficient adds to the gradient of verl's policy loss, and to that of a loss with a bonus."""
    own, verls = LossSpec("importance_ratio", entropy_bonus=True), worker.loss_fn
    gradients = {}
    for coefficient in (0.0, ENTROPY_COEFFICIENT):
        config = replace(verls.keywords["config"], entropy_coeff=coefficient)
        worker.set_loss_fn(partial(ppo_loss, config=config))
        for name, spec in {"verl": None, "own": own, "without": LossSpec("importance_ratio")}.items():
            worker.configure(LossSpec(), spec, META, coefficient)
            worker.backward_rollouts(weighted_share(worker, "rollouts", "contiguous"))
            gradients[name, coefficient] = gathered(worker, worker.rl_gradient)
    worker.set_loss_fn(verls)
    worker.rl_gradient = None
    return {name: gradients[name, ENTROPY_COEFFICIENT] - gradients[name, 0.0] for name in ("verl", "own", "without")}


# --- Padding rows of demonstrations -----------------------------------------------------------------------------------

NUM_DEMONSTRATIONS, NUM_PADDING = 13, 3
PADDED = {
    "sft": LossSpec("sft"),
    "per sequence": LossSpec("sft", per="sequence"),
    "iw_sft": LossSpec("iw_sft"),
    "srft_demonstration": LossSpec("srft_demonstration"),
}


def _padding(worker: AMFTTrainingWorker, start: Snapshot) -> Results:
    """13 weighted demonstrations: alone (one rank only), and with three no-op rows in an order of their own."""
    generator = torch.Generator().manual_seed(3)
    vocabulary = worker.model_config.hf_config.vocab_size

    def tokens(most: int) -> list[int]:
        length = int(torch.randint(1, most, (), generator=generator))
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    rows = [Demonstration(str(index), tokens(9), tokens(8)) for index in range(NUM_DEMONSTRATIONS)]
    factors = torch.randn(NUM_DEMONSTRATIONS, generator=generator).tolist()
    order = torch.randperm(NUM_DEMONSTRATIONS + NUM_PADDING, generator=generator)
    batches = {"padded": collate(rows, factors, num_padding=NUM_PADDING, order=order.tolist())}
    if worker.world_size == 1:
        batches["plain"] = collate(rows, factors)
    results: Results = {}
    for name, spec in PADDED.items():
        for kind, batch in batches.items():
            start.restore(worker)
            worker.configure(spec, None, META)
            mine = torch.arange(len(batch)).view(worker.world_size, -1)[worker.rank]
            measured = worker.backward_demonstrations(tu.index_select_tensor_dict(batch, mine))
            gradient = mixed_gradient(worker, SUM)
            applied = worker.apply_mixture(SUM)
            results[name, kind] = {"sft": measured, "gradient": gradient, "step": applied, "weights": weights(worker)}
    return results
