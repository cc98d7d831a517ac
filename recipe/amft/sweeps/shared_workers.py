"""Several runs, one after the other, on one set of workers: for small runs, starting those takes most of the time.

    python -m recipe.amft.sweeps.shared_workers PLAN

PLAN is a JSON list of runs, each a list of overrides of recipe.amft.main, whose workers are configured alike
(`workers_of`). Every run begins from the same saved weights, or goes on from its own last checkpoint, and leaves the
folder of a run of its own. The first run that fails ends the process: nobody could say what it left behind in the
workers, whose logs are in the folder PLAN without its suffix. Exit status: 0, NO_WORKERS when they did not start,
else 1.
"""

import json
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf, open_dict

from recipe.amft.launch import train
from recipe.amft.main import compose
from recipe.amft.preflight import preflight
from recipe.amft.sweeps.execution import NO_WORKERS
from recipe.amft.sweeps.measured import measured

# What the driver reads anew for each run; everything else is built into the workers.
DRIVERS_OWN = (
    "actor_rollout_ref.rollout.n",
    "algorithm.norm_adv_by_std_in_grpo",
    "data.seed",
    "presets",
    "trainer.default_local_dir",
    "trainer.experiment_name",
    "trainer.save_freq",
    "trainer.test_freq",
    "trainer.val_before_train",
    "trainer.validation_data_dir",
)


def composed(overrides: Sequence[str]):
    """The configuration of a run, as `train` would change it."""
    config = compose(list(overrides))
    with open_dict(config):
        config.transfer_queue.enable = True
    return config


def workers_of(overrides: Sequence[str]) -> str:
    """What the workers of a run are built from: runs with the same one can share them."""
    config = composed(overrides)
    amft = OmegaConf.to_container(config.amft, resolve=True)
    with open_dict(config):
        for key in DRIVERS_OWN:  # before anything is resolved: other keys repeat some of them
            OmegaConf.update(config, key, None)
        config.amft = {key: amft[key] for key in ("task", "model", "rollout_seed")}
    return OmegaConf.to_yaml(config, resolve=True, sort_keys=True)


def train_together(runs: Sequence[Sequence[str]], scratch: Path) -> None:
    """Train all runs, whose workers are the same, to their finished folders.

    `scratch` keeps the logs of the workers and is otherwise empty in the end. ValueError for a configuration that is
    refused, or that reports to a tracking service.
    """
    config = composed([*runs[0], f"amft.run_dir={scratch / 'workers'}", "amft.overwrite=true"])
    if list(config.trainer.logger):
        raise ValueError(
            f"trainer.logger={list(config.trainer.logger)}: runs that share workers would report as one; "
            "use trainer.logger=[], or run them without --share-workers."
        )
    settings, folder, _ = preflight(config)
    initial = scratch / "initial"
    there_are_workers = False

    def body(trainer) -> None:
        nonlocal there_are_workers
        there_are_workers = True
        save(trainer, initial)
        for overrides in runs:
            restart(trainer, overrides, initial)
            with measured(trainer.folder.path):
                trainer.fit()
            trainer.folder.finish()

    try:
        train(config, settings, folder, body)
    except Exception:
        if not there_are_workers:
            traceback.print_exc()
            sys.exit(NO_WORKERS)
        raise
    finally:
        shutil.rmtree(initial, ignore_errors=True)


def save(trainer, folder: Path) -> None:
    """Weights and optimisers as they are now, for `restart`."""
    trainer.actor_rollout_wg.save_checkpoint(str(folder / "actor"), None, 0, None)
    if trainer.use_critic:
        trainer.critic_wg.save_checkpoint(str(folder / "critic"), None, 0, None)


def restart(trainer, overrides: Sequence[str], initial: Path) -> None:
    """The trainer as the run `overrides` would have it: at its last checkpoint, or with what `save` wrote."""
    config = composed(overrides)
    settings, folder, _ = preflight(config)
    folder.open(config)
    OmegaConf.resolve(config)
    trainer.config, trainer.folder = config, folder
    trainer.begin(settings)
    trainer._init_dataloader()
    trainer.actor_rollout_wg.load_checkpoint(str(initial / "actor"))
    if trainer.use_critic:
        trainer.critic_wg.load_checkpoint(str(initial / "critic"))
    trainer.actor_rollout_wg.forget()
    trainer.weights_changed()
    trainer._load_checkpoint()


def main() -> None:
    plan = Path(sys.argv[1])
    try:
        train_together(json.loads(plan.read_text()), plan.with_suffix(""))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
