"""The methods by name. A method is one short file; the trainer and the worker know none of them."""

import difflib

from recipe.amft.config import AMFTConfig
from recipe.amft.methods.amft import AMFT
from recipe.amft.methods.base import Choice, Groups, Measurements, Method, Mix, Stage, StepPlan, Sum
from recipe.amft.methods.constant import FixedMu, ReinforcementOnly, SupervisedOnly
from recipe.amft.methods.gated import Dyme, Hpt, SuperRL
from recipe.amft.methods.luffy import Luffy
from recipe.amft.methods.offline import Dpo, Rft
from recipe.amft.methods.relift import Relift
from recipe.amft.methods.sasr import Sasr
from recipe.amft.methods.scheduled import ScheduledMu
from recipe.amft.methods.srft import Srft
from recipe.amft.methods.staged import ImitationThenReinforcement
from recipe.amft.methods.tapo import Tapo

METHODS: dict[str, type[Method]] = {
    "amft": AMFT,
    "fixed_mu": FixedMu,
    "scheduled_mu": ScheduledMu,
    "sft": SupervisedOnly,
    "grpo": ReinforcementOnly,
    "ppo": ReinforcementOnly,
    "luffy": Luffy,
    "srft": Srft,
    "relift": Relift,
    "superrl": SuperRL,
    "sasr": Sasr,
    "dyme": Dyme,
    "hpt": Hpt,
    "tapo": Tapo,
    "rft": Rft,
    "dpo": Dpo,
    "sft_then_rl": ImitationThenReinforcement,
}

__all__ = ["METHODS", "Choice", "Groups", "Measurements", "Method", "Mix", "Stage", "StepPlan", "Sum", "make_method"]


def make_method(config: AMFTConfig) -> Method:
    """The configured method; ValueError lists the known names, nearest first."""
    name = config.method.name
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=len(METHODS), cutoff=0.0)
        raise ValueError(f"amft.method.name={name!r} is not a known method; choose one of {', '.join(near)}.")
    return METHODS[name](config)
