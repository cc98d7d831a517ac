"""The stages of a run: entering one, and the best weights of the one under way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from recipe.amft.methods import Stage
from recipe.amft.run_state import STATE_FILE, Best, RunState

BEST = "best_step_"  # folders of weights beside the checkpoints


class Stages:
    """Keeps the weights of a stage's best validation, outside of the rotation of checkpoints, and goes back to them.

    Each best has a folder of its own, so that the one that the last checkpoint remembers is there whenever this run is
    killed.

    Args:
        root: the folder of the checkpoints.
        save, load: write the policy's weights to a folder, and take them from one.
    """

    def __init__(self, root: Path, save: Callable[[Path], None], load: Callable[[Path], None]):
        self.root, self.save, self.load = root, save, load

    def enter(self, state: RunState, stage: Stage) -> None:
        """Nothing within a stage; at its first step, go back to the best weights of the one before if it says so."""
        is_first_step = stage.name != state.stage.name
        state.stage = stage
        if not is_first_step:
            return
        if stage.from_best and state.best is not None:
            self.load(self.folder(state.best.step))
        state.best = None

    def keep_best(self, state: RunState, step: int, success: float) -> None:
        """After a validation: keep these weights if the stage keeps its best ones and `success` is above theirs."""
        if state.stage.keeps_best and (state.best is None or success > state.best.success):
            self.save(self.folder(step))
            state.best = Best(step, success)
            self.delete_unused(state.best)

    def folder(self, step: int) -> Path:
        return self.root / f"{BEST}{step}"

    def delete_unused(self, best: Best | None) -> None:
        """Of the best weights, keep those that this run or a checkpoint may go back to; if none, what there is."""
        remembered = [json.loads(path.read_text())["best"] for path in self.root.glob(f"global_step_*/{STATE_FILE}")]
        used = {other["step"] for other in remembered if other}
        if best is not None:
            used.add(best.step)
        for folder in self.root.glob(f"{BEST}*"):
            if used and int(folder.name.removeprefix(BEST)) not in used:
                shutil.rmtree(folder)
