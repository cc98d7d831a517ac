"""Train with many methods, one after the other, on the same Ray workers: their start is most of a small run's time.

    python many_methods.py METHOD [METHOD ...] -- [overrides of the first configuration]

Writes methods.jsonl into the run folder, one line a method: the metrics of its steps, its state, and whether that came
back from a checkpoint.
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

    def body(trainer, agent_loops) -> None:
        trainer.agent_loop_manager = agent_loops
        trainer.actor_rollout_wg.keep_reference()
        with open(folder.path / "methods.jsonl", "w") as lines:
            for method in methods:
                lines.write(json.dumps(run(trainer, method, overrides, config, folder.path)) + "\n")

    train(config, settings, folder, body)


def run(trainer, method: str, overrides: list[str], config, folder: Path) -> dict:
    """Three steps of a method with what its configuration says under `amft:`; the workers keep the first one's."""
    own = compose([*overrides, f"method={method}", *OPTIONS.get(method, [])])
    own.amft.utility.files = config.amft.utility.files
    trainer.begin(read_settings(own))
    trainer.forget_collected()
    trainer.show_demonstrations()
    trainer.method_state = trainer.method.after_warm_up(trainer.method_state, {"entropy": 1.0, "sft_norm": 1.0})
    steps = []
    for step in range(STEPS):
        trainer.global_steps += 1
        steps.append(trainer.train_step(step))
        trainer.keep_best(float(step))
    state = folder / f"state-{method}"
    state.mkdir()
    trainer.save_recipe_state(state)
    before = trainer.method.state_to_dict(trainer.method_state)
    trainer.begin(trainer.settings)
    trainer.load_recipe_state(state)
    after = trainer.method.state_to_dict(trainer.method_state)
    return {"method": method, "steps": steps, "resumes": before == after, "state": before}


# So that three small steps show what the method is about.
OPTIONS = {
    "sft_then_rl": ["amft.method.options.sft_steps=2"],
    "dft_then_rl": ["amft.method.options.sft_steps=2"],
    "rft": ["amft.method.options.sample_steps=1"],
    "dpo": ["amft.method.options.sample_steps=2"],
    "relift": ["amft.method.options.buffer_size=1"],
}

if __name__ == "__main__":
    main()
