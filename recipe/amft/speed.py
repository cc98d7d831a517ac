"""How long a step takes, estimated from the architecture, the configuration and the numbers of the hardware.

An estimate for budgets, not a measurement. Every part is the slower of its arithmetic and its data movement:

    training     6 P + 6 L a S operations per token (forward 2, backward 4; 2 more for gradient checkpointing), at the
                 share `training_mfu` of the peak, or the weights gathered and the gradients scattered per micro-batch
    generation   per token of a wave, weights and keys and values read at the share `decode_efficiency` of the memory's
                 bandwidth, or 2 P operations for each sequence of the wave; prompts at `training_mfu`

Legend: P parameters, L layers, a query width, S tokens of a sequence, b bytes per element.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from recipe.amft.config_checks import Run
from recipe.amft.hardware import GPU, PlanConfig
from recipe.amft.memory import Architecture, Cache, element_bytes, micro_batch_tokens, shard_group

HOUR = 3600.0


@dataclass(frozen=True)
class Part:
    """A part of a step: seconds of one training step on average, and what bounds it."""

    name: str
    seconds: float
    bound: str


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step by part, of a `warm_up` step, and of one `validation` (None: data not there)."""

    step: tuple[Part, ...]
    warm_up: float
    validation: float | None
    machine: str

    @property
    def step_seconds(self) -> float:
        return sum(part.seconds for part in self.step)

    def hours(self, warm_up_steps: int, training_steps: int, validations: int) -> float:
        """Of the whole run, without its start and its checkpoints."""
        seconds = warm_up_steps * self.warm_up + training_steps * self.step_seconds
        return (seconds + validations * (self.validation or 0.0)) / HOUR


class Estimator:
    """The time of each operation on one GPU of the run; all ranks do the same.

    Args:
        run, architecture: what is trained.
        gpu: its hardware.
        cache: how many sequences a rollout engine holds.
    """

    def __init__(self, run: Run, architecture: Architecture, gpu: GPU, cache: Cache):
        self.run, self.architecture, self.gpu, self.cache = run, architecture, gpu, cache
        self.plan: PlanConfig = run.settings.plan
        self.mean_response = self.plan.response_share * run.shape.response_length
        self.mean_sequence = run.shape.prompt_length + self.mean_response
        self.compute = gpu.peak_tflops * 1e12 * self.plan.training_mfu
        self.memory = gpu.memory_gbytes * 1e9 * self.plan.decode_efficiency
        # A ring through all nodes has one network card per GPU, all of which carry a part of every collective.
        between_nodes = self.plan.network_gbytes * run.shape.gpus_per_node
        self.network = 1e9 * (gpu.link_gbytes if run.shape.num_nodes == 1 else min(gpu.link_gbytes, between_nodes))

    # ---- operations --------------------------------------------------------------------------------------------

    def forward_operations(self, tokens: float, sequence: float) -> float:
        """2 P per token, and 2 L a S for causal attention (two products over half of the sequence, 2 each)."""
        per_layer = 2 * self.architecture.query_width * sequence
        return tokens * (2 * self.architecture.num_parameters + self.architecture.num_hidden_layers * per_layer)

    def passes(self, sequences: float, backward: bool) -> tuple[float, str]:
        """Seconds for the passes over `sequences` on all ranks together: (seconds, what bounds them)."""
        engine = self.run.config.actor_rollout_ref
        tokens = sequences * self.mean_sequence / self.run.shape.num_ranks  # sequence parallelism cuts them further
        factor = 1 + backward * (2 + bool(engine.model.enable_gradient_checkpointing))
        arithmetic = factor * self.forward_operations(tokens, self.mean_sequence) / self.compute
        movement = 0.0
        if shard_group(self.run) > 1:
            count, micro_batches = self.architecture.num_parameters, math.ceil(tokens / micro_batch_tokens(self.run))
            bytes_moved = count * (element_bytes(self.run) * (1 + backward) + 4 * backward)
            movement = micro_batches * bytes_moved / self.network
        return max(arithmetic, movement), "arithmetic" if arithmetic >= movement else "network"

    def generation(self, sequences: float) -> tuple[float, str]:
        """Seconds to answer `sequences` prompts, all engines together."""
        shape, architecture = self.run.shape, self.architecture
        tensor_parallel = shape.tensor_parallel
        per_engine = math.ceil(sequences * tensor_parallel / shape.num_ranks)
        held = min(per_engine, self.cache.sequences(self.mean_sequence))
        waves = per_engine / held
        weights = architecture.num_parameters * self.cache.weight_bytes / tensor_parallel
        context = shape.prompt_length + self.mean_response / 2
        read = (weights + held * context * self.cache.bytes_per_token) / self.memory
        arithmetic = 2 * architecture.num_parameters * held / tensor_parallel / self.compute
        prompts = self.forward_operations(per_engine * shape.prompt_length / tensor_parallel, shape.prompt_length)
        seconds = waves * self.mean_response * max(read, arithmetic) + prompts / self.compute
        bound = "memory bandwidth" if read >= arithmetic else "arithmetic"
        return seconds, f"{bound}, {held:,.0f} sequences at a time, {waves:.1f} waves"

    def optimizer(self, steps: int) -> tuple[float, str]:
        """AdamW reads and writes weights and moments and reads two gradients: 32 bytes per parameter of a shard."""
        shard = self.architecture.num_parameters * 32 / shard_group(self.run)
        return steps * shard / (self.gpu.memory_gbytes * 1e9), "memory bandwidth"

    def weight_sync(self) -> tuple[float, str]:
        """The shards gathered for the rollout engines."""
        return self.architecture.num_parameters * self.cache.weight_bytes / self.network, "network"


def estimate_speed(
    run: Run,
    architecture: Architecture,
    cache: Cache,
    hardware: tuple[str, GPU],
    shares: Mapping[str, float],
    num_validation_rows: int | None,
) -> Speed:
    """Seconds of a training step, on average.

    Args:
        run, architecture, cache: what is trained and generated.
        hardware: what to call it, and its numbers.
        shares: of the training steps that make `rollouts`, learn from `demonstrations`, and are meta-updates
            (`utility`).
        num_validation_rows: of the validation data; None where it is not there.
    """
    shape, settings = run.shape, run.settings
    time = Estimator(run, architecture, hardware[1], cache)
    rollouts, demonstrations = shape.rollouts_per_step, settings.demonstrations.batch_size
    utility = settings.utility.num_prompts * settings.utility.rollouts_per_prompt
    actor = run.config.actor_rollout_ref.actor
    forward, backward = (time.passes(rollouts, backward=backward) for backward in (False, True))
    reference = actor.use_kl_loss or run.config.algorithm.use_kl_in_reward
    # (name, share of the steps, seconds and bound)
    parts = [
        ("generation", shares["rollouts"], time.generation(rollouts)),
        ("old log-probabilities", shares["rollouts"], forward),
        ("reference log-probabilities", shares["rollouts"] * bool(reference), forward),
        ("critic", shares["rollouts"] * run.uses_critic, (forward[0] + backward[0], backward[1])),
        ("rollouts, backward", shares["rollouts"], backward),
        ("demonstrations, backward", shares["demonstrations"], time.passes(demonstrations, backward=True)),
        ("meta-update, generation", shares["utility"], time.generation(utility)),
        ("meta-update, backward", shares["utility"], time.passes(utility, backward=True)),
        ("weight sync", shares["rollouts"], time.weight_sync()),
        ("optimiser", 1.0, time.optimizer(shape.num_mini_batches)),
    ]
    validation = None
    if num_validation_rows is not None:
        validation, _ = time.generation(num_validation_rows * shape.rollouts_per_validation_prompt)
    return Speed(
        step=tuple(Part(name, share * seconds, bound) for name, share, (seconds, bound) in parts if share),
        warm_up=time.passes(demonstrations, backward=True)[0] + time.optimizer(shape.num_mini_batches)[0],
        validation=validation,
        machine=hardware[0],
    )
