"""Train with many methods, one after the other, on the same Ray workers: their start is most of a small run's time.

    python many_methods.py METHOD [METHOD ...] -- [overrides of the first configuration]

Before the last step of each the driver forgets everything and takes it from a checkpoint, as after a kill. Writes
methods.jsonl into the run folder, one line a method: the metrics of its steps, and what was looked at around that.
"""

import json
import sys
from pathlib import Path

from recipe.amft.launch import train
from recipe.amft.main import compose
from recipe.amft.preflight import preflight, read_settings

STEPS = 3


def main() -> None:
    cut = sys.argv.index("--")
    methods, overrides = sys.argv[1:cut], sys.argv[cut + 1 :]
    config = compose(overrides)
    settings, folder, _ = preflight(config)

    def body(trainer) -> None:
        with open(folder.path / "methods.jsonl", "w") as lines:
            for method in methods:
                lines.write(json.dumps(run(trainer, method, overrides, config, folder.path)) + "\n")

    train(config, settings, folder, body)


def run(trainer, method: str, overrides: list[str], config, folder: Path) -> dict:
    """Three steps of a method with what its configuration says under `amft:`; the workers keep the first one's.

    Validations are made up, each worse than the one before.
    """
    own = compose([*overrides, f"method={method}", *OPTIONS.get(method, [])])
    own.amft.utility.files = config.amft.utility.files
    trainer.begin(read_settings(own))
    trainer.show_demonstrations()
    given = str(folder / "given" / method)
    trainer.actor_rollout_wg.save_weights(given)
    trainer.actor_rollout_wg.forget()
    trainer.before_loading()
    trainer.finish_warm_up({"sft/norm": 1.0})
    steps, seen = [], [look(trainer)]
    for step in range(STEPS):
        if step == STEPS - 1:
            trainer.save_checkpoint(keep=1)
            trainer.stages.delete_unused(trainer.state.best)
            before = trainer.method.state_to_dict(trainer.state.method)
            resume(trainer, given)
            after = trainer.method.state_to_dict(trainer.state.method)
            resumed = look(trainer)
            trainer.stages.enter(trainer.state, trainer.method.stage(step))
            started = look(trainer)
        trainer.global_steps += 1
        steps.append(trainer.train_step(step))
        trainer.stages.keep_best(trainer.state, trainer.global_steps, -float(step))
        seen.append(look(trainer))
    return {
        "method": method,
        "steps": steps,
        "state": {"before": before, "after": after},
        "policy": [policy for policy, _ in seen],
        "reference": [reference for _, reference in seen],
        "resumed": resumed,
        "started": started,
    }


def resume(trainer, given: str) -> None:
    """What a new process does: it has the configuration, the given model, and the newest checkpoint."""
    trainer.begin(trainer.settings)
    trainer.actor_rollout_wg.load_weights(given)
    trainer.actor_rollout_wg.forget()
    trainer.show_demonstrations()
    trainer.config.trainer.resume_mode = "auto"
    trainer._load_checkpoint()


def look(trainer) -> tuple[float, float | None]:
    """The mean log-probability of the same demonstrations under the policy and, if the method has one, its reference.

    Numbers that tell one set of weights from another.
    """
    batch = trainer.to_batch([(row, 1.0) for row in trainer.demonstrations.demonstrations[:8]])
    specs = (trainer.method.demonstration_loss, trainer.warm_up_loss)
    if trainer.method.reference is None and not any(spec.needs_reference for spec in specs):
        return trainer.actor_rollout_wg.demonstration_entropy(batch)["metrics"]["loss"], None
    sums = trainer.actor_rollout_wg.sequence_log_probs(batch)
    return sums["policy"].sum().item(), sums["reference"].sum().item()


# So that three small steps show what the method is about.
OPTIONS = {
    "sft_then_rl": ["amft.method.options.sft_steps=2"],
    "dft_then_rl": ["amft.method.options.sft_steps=2"],
    "rft": ["amft.method.options.sample_steps=1"],
    "dpo": ["amft.method.options.sample_steps=1"],
    "relift": ["amft.method.options.buffer_size=1"],
}

if __name__ == "__main__":
    main()
