"""What is compared: presets of configs/method with overrides, at the laboratory's scale.

A variant is written `PRESET[,key=value...]`, keys relative to `amft:`, such as `amft,controller.meta.horizon=one`.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from benchmarks.controller.tasks import Problem
from recipe.amft.config import AMFTConfig, from_mapping

PRESETS = Path(__file__).parents[2] / "configs" / "method"
FIXED_WEIGHTS = (0.0, 0.1, 0.3, 0.6, 0.95)
UNSCALED_WEIGHTS = (0.3,)
# 120 steps in place of the paper's 500: K = 5 keeps its 25 meta-updates a run. Twice a training batch of rollouts.
SCALE = {"utility": {"every": 5, "num_prompts": 16, "rollouts_per_prompt": 8}}


def fixed(weight: float, scale: str = "capped") -> str:
    return f"fixed_mu,method.weight={weight},mixture.scale={scale}"


def scheduled(shape: str, num_steps: int = 120) -> str:
    """0.9 -> 0.05 over the whole run."""
    return f"scheduled_mu,method.schedule.shape={shape},method.schedule.num_decay_steps={num_steps}"


SUITES: dict[str, dict[str, str]] = {
    "constants": {f"mu = {weight}": fixed(weight) for weight in FIXED_WEIGHTS}
    | {f"mu = {weight}, no scaling": fixed(weight, "none") for weight in UNSCALED_WEIGHTS},
    "amft": {
        "AMFT": "amft",
        "AMFT, no meta-gradient": "amft_no_meta",
        "AMFT, no entropy": "amft_no_entropy",
        "AMFT, no warm-up": "amft_no_warmup",
        "AMFT as printed": "amft_literal",
    },
    "parts": {
        "AMFT, validation only": "amft,utility.source=validation",
        "AMFT, rollouts only": "amft,utility.source=rollouts",
        "AMFT, a quarter of eta_H": "amft,controller.entropy.learning_rate=5e-3",
        "AMFT from mu = 0.5": "amft,controller.mu_init=0.5",
    },
    "heuristics": {
        "linear schedule": scheduled("linear"),
        "CHORD-mu (cosine)": scheduled("cosine"),
        "SRFT": "srft",
        "SASR": "sasr",
    },
}


def config_of(variant: str, problem: Problem) -> AMFTConfig:
    """The checked configuration of a variant; the warm-up's length is the problem's unless the preset has none."""
    preset, *overrides = variant.split(",")
    values = OmegaConf.merge(read_preset(preset), SCALE)
    if OmegaConf.select(values, "warm_up.steps") != 0:
        values = OmegaConf.merge(values, {"warm_up": {"steps": problem.warm_up_steps}})
    values = OmegaConf.merge(values, OmegaConf.from_dotlist(overrides))
    plain: Any = OmegaConf.to_container(values)
    return from_mapping(plain)


def read_preset(name: str) -> DictConfig:
    """The `amft:` node of configs/method/NAME.yaml, on those that its `defaults` name."""
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise ValueError(f"variant {name!r} is no preset; choose one of {known}.")
    content = OmegaConf.load(path)
    bases = [read_preset(base) for base in content.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    return OmegaConf.merge(*bases, content.get("amft", {}))
