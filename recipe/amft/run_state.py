"""What the driver remembers from one training step to the next, beside weights, optimisers and streams of data.

Every checkpoint carries it as `STATE_FILE`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.amft.algorithm.mixture import MixtureState
from recipe.amft.methods import Method, Stage

STATE_FILE = "amft.json"


@dataclass(frozen=True)
class Best:
    """The best validation of a stage so far: its step, and `val/success`."""

    step: int
    success: float


@dataclass
class RunState:
    """Explicit state: what happens next follows from this, the configuration, the weights and the data.

    Attributes:
        method: what the method remembers, as its `choose`, `combine` and `observe` return it.
        learning_rate: of the policy's last optimiser step; before the first one the configured one.
        utility: what the rollouts of the last step say about mu since it was decided, one entry a mini-batch.
        mixture: running means of the norms of the two gradients.
        stage: the part of the run that is under way; after `read_state` only its name, until the next training step.
        best: the best validation in this stage, where the stage keeps it.
    """

    method: Any
    learning_rate: float
    utility: list[dict[str, float]] = field(default_factory=list)
    mixture: MixtureState = field(default_factory=MixtureState)
    stage: Stage = field(default_factory=Stage)
    best: Best | None = None


def state_text(state: RunState, method: Method) -> str:
    """The content of `STATE_FILE`."""
    values = {
        "method": method.config.method.name,
        "method_state": method.state_to_dict(state.method),
        "utility": state.utility,
        "mixture_state": vars(state.mixture),
        "stage": state.stage.name,
        "best": None if state.best is None else vars(state.best),
        "learning_rate": state.learning_rate,
    }
    return json.dumps(values, indent=1)


def read_state(checkpoint: Path, method: Method) -> RunState:
    """The state that a checkpoint carries; ValueError when another method wrote it."""
    values = json.loads((checkpoint / STATE_FILE).read_text())
    name = method.config.method.name
    if values["method"] != name:
        raise ValueError(
            f"{checkpoint} was written by method={values['method']}, this run is method={name}; "
            "give the new method its own amft.run_dir."
        )
    return RunState(
        method=method.state_from_dict(values["method_state"]),
        learning_rate=values["learning_rate"],
        utility=values["utility"],
        mixture=MixtureState(**values["mixture_state"]),
        stage=Stage(values["stage"]),
        best=None if values["best"] is None else Best(**values["best"]),
    )
