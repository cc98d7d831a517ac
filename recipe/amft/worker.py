"""The actor worker of AMFT: two backward passes, one mixed step, and the validation worker's inner product.

The driver calls, in this order (Algorithm 2, lines 18-33):

    backward_demonstrations   gradient of L_SFT and the entropy H_t on demonstrations, set aside
    backward_rollouts         gradient of L_RL, set aside
    apply_mixture             (1 - mu) g_RL + mu g_SFT (or their sum), clip, optimiser step, tangent d theta / d mu
    validation_gradient       <grad U(theta_t), d theta_t / d mu> (Eq. 25), no optimiser step

Shape legend: B sequences, T response tokens (padded).
"""

import math
import os
from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.memory_utils import aggressive_empty_cache
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import no_padding_2_padding

from recipe.amft.algorithm.losses import masked_sum, policy_gradient_loss, token_mean
from recipe.amft.algorithm.meta_gradient import MetaConfig, Tangent, advance_tangent_
from recipe.amft.algorithm.mixture import add_, local_inner_products, mix_
from recipe.amft.algorithm.token_losses import LossSpec, Tokens
from verl_ext.gradient_worker import GradientWorker, Shards, local_shard

MAIN_OPTIMIZER = "main"
# Key of a batch whose gradient of L_RL takes part in the meta-gradient: `MU_NOW` where mu is decided right after it,
# `MU_NEXT` where that is left to the next step.
MEASURES_UTILITY, MU_NOW, MU_NEXT = "measures_utility", "now", "next"
BATCH_ENTROPY = "batch_entropy"  # key of a batch: the policy's mean entropy over all of its learned tokens


@dataclass(frozen=True)
class MixturePlan:
    """What the driver decides about one optimiser step.

    Attributes:
        weight: mu, the share of imitation in [0, 1]; None adds the two scaled gradients up.
        sft_scale, rl_scale: factors on the two gradients (1 unless `mixture.scale=equal_norm` or the method says so).
        learning_rate: overrides the schedule for this step; None follows the schedule.
        starts_step: True on the first mini-batch of a training step.
        ends_step: True on its last mini-batch: the learning-rate schedule moves on.
        track_tangent: whether a later meta-update will read the derivative with respect to mu.
        skip_above: no step is taken when the gradient's norm is larger.
        optimizer: whose moments the step uses; a second name is a second AdamW on the same weights.
        clip_grad: largest norm of the gradient; None is the configured one, the only one that a tangent follows.
    """

    weight: float | None
    sft_scale: float = 1.0
    rl_scale: float = 1.0
    learning_rate: float | None = None
    starts_step: bool = True
    ends_step: bool = True
    track_tangent: bool = False
    skip_above: float | None = None
    optimizer: str = MAIN_OPTIMIZER
    clip_grad: float | None = None


def token_loss(model_output, data: TensorDict, dp_group=None, *, spec: LossSpec, entropy_coefficient: float = 0.0):
    """Sum of `spec` over all learned tokens, divided by their global number or that of the sequences; mean entropy.

    A specification with an entropy bonus takes `entropy_coefficient` times the mean entropy off. None of it depends on
    micro-batches or ranks. verl's engine averages gradients over ranks, hence the factor `dp_size`.
    """
    mask, num_tokens, dp_size = data["response_mask"].to_padded_tensor(0), data["batch_num_tokens"], data["dp_size"]
    tokens = read_tokens(model_output, data, mask)
    count = num_tokens if spec.per == "token" else data["num_sequences"]
    loss = token_mean(spec(tokens), mask, count) * dp_size
    if spec.entropy_bonus and entropy_coefficient:
        entropy = no_padding_2_padding(model_output["entropy"], data)
        loss = loss - entropy_coefficient * token_mean(entropy, mask, num_tokens) * dp_size
    metrics = {}
    if tokens.entropy is not None:
        metrics["entropy"] = Metric(AggregationType.SUM, masked_sum(tokens.entropy, mask) / num_tokens * dp_size)
    return loss, metrics


def read_tokens(model_output, data: TensorDict, mask: torch.Tensor) -> Tokens:
    """What a token loss may read, from verl's nested tensors."""

    def padded(name: str) -> torch.Tensor | None:
        return data[name].to_padded_tensor(0.0) if name in data else None

    logprobs = no_padding_2_padding(model_output["log_probs"], data)
    weights, reference, entropy = padded("advantages"), None, None
    if "reference_log_probs" in data:
        reference = no_padding_2_padding(data["reference_log_probs"], data)
    if "entropy" in model_output:
        entropy = no_padding_2_padding(model_output["entropy"].detach(), data)
    return Tokens(
        logprobs=logprobs,
        mask=mask,
        weights=torch.ones_like(logprobs[:, :1]) if weights is None else weights[:, :1],
        entropy=entropy,
        reference_logprobs=reference,
        old_logprobs=padded("old_log_probs"),
        batch_entropy=tu.get_non_tensor_data(data, BATCH_ENTROPY, None),
    )


def utility_loss(model_output, data: TensorDict, dp_group=None):
    """Minus the REINFORCE estimate of U (Eq. 4): its gradient is -grad U. Mean over the global number of rollouts."""
    mask = data["response_mask"].to_padded_tensor(0)
    advantages = data["advantages"].to_padded_tensor(0)[:, 0]
    logprobs = no_padding_2_padding(model_output["log_probs"], data)
    return policy_gradient_loss(logprobs, advantages, mask, data["num_sequences"]) * data["dp_size"], {}


class AMFTTrainingWorker(GradientWorker):
    """One rank of the actor: holds the two gradients between calls and the tangent between steps."""

    def __init__(self, config):
        super().__init__(config)
        self.sft_gradient: Shards | None = None
        self.rl_gradient: Shards | None = None
        self.tangent = Tangent()
        self.tangent_is_old = True  # no optimiser step of this training step has been taken yet
        self.demonstration_spec = LossSpec()
        self.rollout_spec: LossSpec | None = None
        self.meta: MetaConfig | None = None
        self.entropy_coefficient = 0.0

    def configure(
        self, demonstration: LossSpec, rollout: LossSpec | None, meta: MetaConfig, entropy_coefficient: float = 0.0
    ) -> None:
        """The losses of both phases (None: verl's clipped policy loss), and how the tangent is carried along.

        `entropy_coefficient` is for losses with an entropy bonus; verl's own reads it from the actor's configuration.
        """
        self.demonstration_spec = demonstration
        self.rollout_spec = rollout
        self.meta = meta
        self.entropy_coefficient = entropy_coefficient

    def loss_of(self, spec: LossSpec):
        """The loss that verl's engine takes a gradient of."""
        return partial(token_loss, spec=spec, entropy_coefficient=self.entropy_coefficient)

    def backward_demonstrations(self, data: TensorDict) -> dict[str, float]:
        """Gradient of L_SFT at theta_t; returns loss, entropy and norm."""
        spec = self.demonstration_spec
        self.add_reference(data, spec)
        if spec.needs_batch_entropy:  # one more forward pass: the weights must be there before the backward pass
            tu.assign_non_tensor(data, **{BATCH_ENTROPY: self.demonstration_entropy(data)["entropy"]})
        self.sft_gradient, metrics = self.backward(data, self.loss_of(spec))
        (square,) = self._inner_products((self.sft_gradient, self.sft_gradient))
        return {**metrics, "norm": square**0.5}

    def demonstration_entropy(self, data: TensorDict) -> dict[str, float]:
        """Loss and mean token entropy on demonstrations, without a backward pass (for H*)."""
        return self.evaluate(data, partial(token_loss, spec=LossSpec()))

    def backward_rollouts(self, data: TensorDict) -> dict[str, float]:
        """Gradient of L_RL at theta_t (verl's own policy loss, or the method's token loss); metrics, norm, cosine.

        A loss that needs the batch's entropy reads it from the batch: the pass for old log-probabilities has it. One
        that MEASURES_UTILITY also gives dot, utility_norm and tangent_norm, as `validation_gradient` does.
        """
        spec = self.rollout_spec
        self.rl_gradient, metrics = self.backward(data, self.loss_of(spec) if spec else self.loss_fn)
        decision = tu.get_non_tensor_data(data, MEASURES_UTILITY, None)
        if decision is not None:
            metrics = metrics | self._meta_gradient(self.rl_gradient, decides=decision == MU_NOW)
        rl, sft = self.rl_gradient, self.sft_gradient
        if sft is None:
            (square,) = self._inner_products((rl, rl))
            return {**metrics, "norm": square**0.5}
        rl_square, product, sft_square = self._inner_products((rl, rl), (rl, sft), (sft, sft))
        norms = (rl_square * sft_square) ** 0.5
        return {**metrics, "norm": rl_square**0.5, "cosine": product / norms if norms > 0 else 0.0}

    def add_reference(self, data: TensorDict, spec: LossSpec) -> None:
        """Log-probabilities under the reference policy, where the loss reads them."""
        if spec.needs_reference:
            with self.reference_weights():
                data["reference_log_probs"] = self.log_probs(data)

    def sequence_log_probs(self, data: TensorDict) -> TensorDict:
        """Sum of log p over each sequence's learned tokens, (B,), under the policy and under the reference policy."""
        # Not to_padded_tensor: a batch that came over the wire may carry the longest length of another cut of it.
        mask = pad_sequence(list(data["response_mask"].unbind()), batch_first=True)
        current = no_padding_2_padding(self.log_probs(data), data)
        with self.reference_weights():
            reference = no_padding_2_padding(self.log_probs(data), data)
        sums = {"policy": (current * mask).sum(-1).cpu(), "reference": (reference * mask).sum(-1).cpu()}
        return TensorDict(sums, batch_size=len(data))

    def apply_mixture(self, plan: MixturePlan) -> dict[str, float]:
        """Mix, clip and step (Eq. 3); carries the tangent along when a meta-update will read it.

        Returns grad_norm (before clipping), lr of this step, and skipped = 1.0 when the norm was not finite or above
        `plan.skip_above` and no step was taken.
        """
        gradients, disagreement = self._mix(plan)
        self.tangent_is_old = self.tangent_is_old or plan.starts_step
        product = math.nan
        if disagreement is not None and plan.track_tangent:
            (product,) = self._inner_products((gradients, disagreement))
        scheduled = self.engine.lr_scheduler.get_last_lr()[0]
        learning_rate = scheduled if plan.learning_rate is None else plan.learning_rate
        self.use_optimizer(plan.optimizer)
        self.set_learning_rate(learning_rate)
        norm = self._norm_above(gradients, plan.skip_above)
        skipped = norm is not None
        if norm is None:
            norm = self.step(gradients, plan.clip_grad)
            skipped = not math.isfinite(norm)
        self.use_optimizer(MAIN_OPTIMIZER)
        # A skipped step leaves the tangent alone; one at mu 0 or 1 whose other phase is infinite adds nothing to it.
        if plan.track_tangent and not skipped:
            if self.tangent_is_old:
                self.tangent.start_step(self.meta)
                self.tangent_is_old = False
            if math.isfinite(product):
                self._advance_tangent(gradients, disagreement, norm, product, learning_rate)
        if plan.ends_step and plan.learning_rate is None:
            self.engine.lr_scheduler_step()
        self.engine.optimizer_zero_grad()
        return {"grad_norm": norm, "lr": learning_rate, "skipped": float(skipped)}

    def validation_gradient(self, data: TensorDict) -> dict[str, float]:
        """<grad U(theta_t), tangent> (Eq. 25) and the two norms; touches neither weights nor optimiser.

        The backward pass yields -grad U, hence the sign. Without a tangent (t = 0, or right after it was reset) the
        product and the tangent's norm are 0.
        """
        utility, metrics = self.backward(data, utility_loss)
        return {**self._meta_gradient(utility), "loss": metrics["loss"]}

    def _meta_gradient(self, gradient: Shards, decides: bool = True) -> dict[str, float]:
        """<-gradient, tangent> and the two norms; `decides`: a meta-update follows."""
        tangent = self.tangent.parameters + [None] * (len(gradient) - len(self.tangent.parameters))
        product, utility_square, tangent_square = self._inner_products(
            (gradient, tangent), (gradient, gradient), (tangent, tangent)
        )
        if decides:
            self.tangent.finish_meta_update(self.meta)
        return {"dot": -product, "utility_norm": utility_square**0.5, "tangent_norm": tangent_square**0.5}

    def forget(self) -> None:
        """Everything that a run adds to weights and main optimiser, as before its first step."""
        self.sft_gradient = self.rl_gradient = self.reference = None
        self.tangent, self.tangent_is_old = Tangent(), True
        self.optimizer_states.clear()

    def save_state(self, folder: str) -> None:
        """Write this rank's tangent and second optimisers (atomically); nothing pending writes empty ones."""
        os.makedirs(folder, exist_ok=True)
        path = self._state_path(folder)
        torch.save({"tangent": self.tangent.state_dict(), "optimizers": self.other_optimizers()}, path + ".tmp")
        os.replace(path + ".tmp", path)

    def load_state(self, folder: str) -> None:
        path = self._state_path(folder)
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{path} is missing: the checkpoint was written by another number of ranks or is not complete. "
                f"Resume with the number of ranks that wrote it, or from an older checkpoint."
            )
        state = torch.load(path, weights_only=True)
        self.tangent.load_state_dict(state["tangent"])
        self.load_other_optimizers(state["optimizers"])

    def _state_path(self, folder: str) -> str:
        return os.path.join(folder, f"state_world_size_{self.world_size}_rank_{self.rank}.pt")

    def _mix(self, plan: MixturePlan) -> tuple[Shards, Shards | None]:
        """The gradient to step along and the disagreement vector; one phase alone has none."""
        sft, rl = self.sft_gradient, self.rl_gradient
        self.sft_gradient = self.rl_gradient = None
        if rl is None or sft is None or plan.weight is None:
            return add_(sft, rl, plan.sft_scale, plan.rl_scale), None
        return mix_(sft, rl, plan.sft_scale, plan.rl_scale, plan.weight)

    def _norm_above(self, gradients: Shards, limit: float | None) -> float | None:
        """The norm, if it is larger than `limit`."""
        if limit is None:
            return None
        (square,) = self._inner_products((gradients, gradients))
        return square**0.5 if square**0.5 > limit else None

    def _advance_tangent(self, gradients, disagreement, norm, product, learning_rate) -> None:
        optimizer = self.engine.optimizer
        group = optimizer.param_groups[0]
        states = [optimizer.state.get(parameter, {}) for parameter in self.parameters()]
        moments = [
            (local_shard(state["exp_avg"]), local_shard(state["exp_avg_sq"])) if "exp_avg" in state else None
            for state in states
        ]
        step = next((int(state["step"]) for state in states if "step" in state), 0)
        advance_tangent_(
            self.tangent,
            disagreement,
            gradients,
            moments,
            norm=norm,
            dot_mixed_disagreement=product,
            max_norm=self.optimizer_config.clip_grad,
            step=step,
            lr=learning_rate,
            betas=tuple(group.get("betas", (0.0, 0.0))),  # SGD has neither betas nor eps, and inner=adamw refuses SGD
            eps=group.get("eps", 0.0),
            weight_decay=group["weight_decay"],
            config=self.meta,
        )

    def _inner_products(self, *pairs: tuple[Shards, Shards]) -> list[float]:
        return self.reduce_over_shards(local_inner_products(pairs))


def _scalars(metrics: dict[str, float]) -> TensorDict:
    """Metrics as the TensorDict that verl's dispatch collects (rank 0's copy survives; all ranks hold the same)."""
    return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": metrics}).cpu()


ACTOR_MESH = make_nd_compute_dataproto_dispatch_fn(mesh_name="actor")


class AMFTWorker(ActorRolloutRefWorker):
    """verl's colocated actor/rollout/reference worker with the calls of AMFT's driver."""

    actor_worker_cls = AMFTTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def configure(
        self, demonstration: LossSpec, rollout: LossSpec | None, meta: MetaConfig, entropy_coefficient: float
    ) -> None:
        self.actor.configure(demonstration, rollout, meta, entropy_coefficient)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def release_cached_memory(self) -> None:
        aggressive_empty_cache()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def freeze_vision_tower(self) -> None:
        self.actor.freeze_vision_tower()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def keep_reference(self) -> None:
        self.actor.keep_reference()

    @register(dispatch_mode=ACTOR_MESH)
    def sequence_log_probs(self, data: TensorDict) -> TensorDict:
        return self.actor.sequence_log_probs(data)

    @register(dispatch_mode=ACTOR_MESH)
    def backward_demonstrations(self, data: TensorDict) -> TensorDict:
        return _scalars(self.actor.backward_demonstrations(data))

    @register(dispatch_mode=ACTOR_MESH)
    def demonstration_entropy(self, data: TensorDict) -> TensorDict:
        return _scalars(self.actor.demonstration_entropy(data))

    @register(dispatch_mode=ACTOR_MESH)
    def backward_rollouts(self, data: TensorDict) -> TensorDict:
        return _scalars(self.actor.backward_rollouts(data))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def apply_mixture(self, plan: MixturePlan) -> dict[str, float]:
        return self.actor.apply_mixture(plan)

    @register(dispatch_mode=ACTOR_MESH)
    def validation_gradient(self, data: TensorDict) -> TensorDict:
        return _scalars(self.actor.validation_gradient(data))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def forget(self) -> None:
        self.actor.forget()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_state(self, folder: str) -> None:
        self.actor.save_state(folder)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_state(self, folder: str) -> None:
        self.actor.load_state(folder)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_weights(self, folder: str) -> None:
        self.actor.save_weights(folder)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_weights(self, folder: str) -> None:
        self.actor.load_weights(folder)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export_model(self, folder: str) -> None:
        self.actor.export_model(folder)
