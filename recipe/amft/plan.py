"""What a run will do, counted before it starts: the report of `dry_run=true`."""

from dataclasses import dataclass

from recipe.amft.config_checks import Run
from recipe.amft.memory import GIB, Architecture, Item, Memory, total
from recipe.amft.methods import Method, StepPlan
from recipe.amft.needs import union
from recipe.amft.speed import Speed


@dataclass(frozen=True)
class Counts:
    """Whole-run totals; tokens are upper bounds, for every sequence may be as long as allowed.

    `upper_bounds` names the other totals that depend on what the run will see: it has at most so many.
    """

    warm_up_steps: int
    training_steps: int
    optimizer_steps: int
    meta_updates: int
    validations: int
    checkpoints: int
    rollouts: int
    utility_rollouts: int
    validation_rollouts: int | None  # None: the validation data is not there to be counted
    demonstrations: int  # learned, those of the warm-up and collected samples among them
    generated_tokens: int  # without validation
    trained_tokens: int
    upper_bounds: frozenset[str] = frozenset()


def count(run: Run, method: Method, num_training_steps: int, num_validation_rows: int | None) -> Counts:
    """Count by asking the method for the plan of every step."""
    shape, settings = run.shape, run.settings
    plans = [method.plan(step, method.initial_state()) for step in range(num_training_steps)]
    # Kinds of steps that never come in the initial state depend on what the run sees: any step may be one.
    possible = union(kind for kind in method.kinds if kind not in plans) if set(method.kinds) - set(plans) else None
    if possible is not None:
        plans = [union((plan, possible)) for plan in plans]
    warm_up, batch = settings.warm_up.steps, settings.demonstrations.batch_size
    meta_updates = sum(plan.utility for plan in plans)
    rehearsals = sum(plan.rehearsal for plan in plans)
    rollouts = sum(plan.rollouts for plan in plans) * shape.rollouts_per_step
    learned_rollouts = sum(plan.rollouts and plan.learns for plan in plans) * shape.rollouts_per_step
    demonstrations = warm_up * batch + sum(_demonstrations(run, plan) for plan in plans)
    utility = meta_updates * settings.utility.num_prompts * settings.utility.rollouts_per_prompt
    validations = _validations(run, warm_up, warm_up + num_training_steps)
    validated = None
    if num_validation_rows is not None:
        validated = validations * num_validation_rows * shape.rollouts_per_validation_prompt
    bounds = {"optimizer_steps"} if rehearsals else set()
    if any(plan.demonstrations and (plan.paired or plan.collected) for plan in plans) or rehearsals:
        bounds |= {"demonstrations"}
    if possible is not None:
        bounds |= {"rollouts", "demonstrations"}
    return Counts(
        warm_up_steps=warm_up,
        training_steps=num_training_steps,
        optimizer_steps=(warm_up + sum(plan.learns for plan in plans)) * shape.num_mini_batches + rehearsals,
        meta_updates=meta_updates,
        validations=validations,
        checkpoints=num_due(run.config.trainer.save_freq, warm_up + num_training_steps),
        rollouts=rollouts,
        utility_rollouts=utility,
        validation_rollouts=validated,
        demonstrations=demonstrations,
        generated_tokens=(rollouts + utility) * shape.response_length,
        trained_tokens=(learned_rollouts + utility + demonstrations) * shape.sequence_length,
        upper_bounds=frozenset(bounds),
    )


def _demonstrations(run: Run, plan: StepPlan) -> int:
    """At most so many in such a step: those of its own prompts, or a batch (of pairs), and what may be rehearsed."""
    batch = run.shape.train_batch_size if plan.paired else run.settings.demonstrations.batch_size
    in_step = plan.demonstrations * batch * (2 if plan.preferences else 1)
    return in_step + plan.rehearsal * run.shape.train_batch_size


def shares_of(run: Run, counts: Counts) -> dict[str, float]:
    """Per training step: waves of rollouts, batches of `amft.demonstrations.batch_size`, and meta-updates."""
    steps, batch = max(1, counts.training_steps), run.settings.demonstrations.batch_size
    return {
        "rollouts": counts.rollouts / run.shape.rollouts_per_step / steps,
        "demonstrations": (counts.demonstrations / batch - counts.warm_up_steps) / steps,
        "utility": counts.meta_updates / steps,
    }


def num_due(every: int, num_steps: int) -> int:
    """How often something is due every `every` steps and at the end; never when `every` is not positive."""
    return 0 if every <= 0 else num_steps // every + (num_steps % every != 0)


def _validations(run: Run, warm_up: int, num_steps: int) -> int:
    """One before training, those that are due, and one right after the warm-up."""
    every = run.config.trainer.test_freq
    after_warm_up = every > 0 and warm_up > 0 and warm_up % every != 0 and warm_up != num_steps
    return int(run.config.trainer.val_before_train) + num_due(every, num_steps) + int(after_warm_up)


@dataclass(frozen=True)
class Plan:
    """What a run will do and take.

    Attributes:
        run: what it was made from.
        counts: None when the number of steps is not known.
        architecture, memory: None when the model is not known.
        speed: None when the model, the number of steps or the hardware is not known.
        findings: what a real run would refuse.
    """

    run: Run
    counts: Counts | None
    architecture: Architecture | None
    memory: Memory | None
    speed: Speed | None = None
    findings: tuple[str, ...] = ()

    def report(self) -> str:
        """A readable table."""
        sections = [self._head(), self._counts(), self._memory(), self._time(), self._findings()]
        return "\n\n".join("\n".join(lines) for lines in sections if lines)

    def _head(self) -> list[str]:
        config, shape = self.run.config, self.run.shape
        size = f", {self.architecture.num_parameters / 1e9:.3f} B parameters" if self.architecture else ""
        needs, batch = self.run.needs, self.run.settings.demonstrations.batch_size
        rollouts = f"{shape.train_batch_size} prompts x {shape.rollouts_per_prompt} rollouts, " * needs.rollouts
        source = "the same prompts'" if needs.paired else f"{batch:,}" if needs.demonstrations else "no"
        step = f"{rollouts}{source} demonstrations; mini-batches: {shape.num_mini_batches}"
        return [
            f"Plan of {self.run.settings.run_dir}",
            _row("method", f"{self.run.settings.method.name}, advantages {config.algorithm.adv_estimator}"),
            _row("model", f"{config.actor_rollout_ref.model.path}{size}"),
            _row("machine", f"{shape.num_nodes} x {shape.gpus_per_node} ranks, {config.trainer.device}"),
            _row("step", step),
            _row("lengths", f"{shape.prompt_length} + {shape.response_length} tokens"),
        ]

    def _counts(self) -> list[str]:
        counts = self.counts
        if counts is None:
            return []

        def total_of(name: str) -> str:
            return f"{'up to ' if name in counts.upper_bounds else ''}{getattr(counts, name):,}"

        validated = "unknown" if counts.validation_rollouts is None else f"{counts.validation_rollouts:,}"
        return [
            "In all",
            _row("warm-up steps", f"{counts.warm_up_steps:,}"),
            _row("training steps", f"{counts.training_steps:,}"),
            _row("optimiser steps", total_of("optimizer_steps")),
            _row("meta-updates", f"{counts.meta_updates:,}"),
            _row("validations", f"{counts.validations:,} ({validated} rollouts)"),
            _row("checkpoints", f"{counts.checkpoints:,}"),
            _row("rollouts", f"{total_of('rollouts')} for training, {counts.utility_rollouts:,} for meta-updates"),
            _row("demonstrations", total_of("demonstrations")),
            _row("tokens, at most", f"{counts.generated_tokens:,} generated, {counts.trained_tokens:,} trained on"),
        ]

    def _memory(self) -> list[str]:
        if self.memory is None:
            return ["Memory: not estimated (no config.json and no amft.model.architecture of a known family)"]
        limit = f" of {self.memory.total_gib:g}" if self.memory.total_gib is not None else ""
        unit = "rank" if self.run.config.trainer.device == "cpu" else "GPU"
        lines = [f"Memory per {unit}, GiB, estimated (formulas: recipe/amft/memory.py)"]
        for phase, items in (("training", self.memory.training), ("generation", self.memory.generation)):
            lines.append(_row(phase, f"{total(items) / GIB:7.2f}{limit}"))
            lines += [_item(item) for item in items]
        return lines

    def _time(self) -> list[str]:
        speed, counts = self.speed, self.counts
        if speed is None or counts is None:
            return [
                "Time: not estimated (needs the model, the number of steps, and amft.plan.gpu where that GPU is not)"
            ]
        plan = self.run.settings.plan
        hours = speed.hours(counts.warm_up_steps, counts.training_steps, counts.validations)
        ranks = self.run.shape.num_ranks
        lines = [
            f"Time on {speed.machine}, estimated (formulas: recipe/amft/speed.py; numbers: amft.plan)",
            _row(
                "assumed",
                f"MFU {plan.training_mfu:g}, decoding at {plan.decode_efficiency:g} of the memory's bandwidth, "
                f"responses {plan.response_share:g} of the longest, {plan.network_gbytes:g} GB/s per GPU between nodes",
            ),
            _row("warm-up step", f"{speed.warm_up:9.1f} s"),
            _row("training step", f"{speed.step_seconds:9.1f} s"),
            *(f"    {part.name:<26}{part.seconds:7.1f}  {part.bound}" for part in speed.step),
        ]
        validation = "unknown: no data" if speed.validation is None else f"{speed.validation:9.1f} s"
        return [
            *lines,
            _row("validation", validation),
            _row("whole run", f"{hours:9.1f} h, {hours * ranks:,.0f} GPU hours"),
        ]

    def _findings(self) -> list[str]:
        return ["A run would be refused now:", *(f"  - {text}" for text in self.findings)] if self.findings else []


def _row(name: str, value: str) -> str:
    return f"  {name:<18}{value}"


def _item(item: Item) -> str:
    return f"    {item.name:<26}{item.size / GIB:7.2f}  {item.formula}"
