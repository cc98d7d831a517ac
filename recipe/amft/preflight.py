"""Checks before anything is started: every mistake that can be seen from here is one clear ValueError.

A configuration that contradicts itself is always refused. What is missing on this machine (data, model, GPUs, packages,
memory) is refused too, but a dry run lists it as findings of its plan instead.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from recipe.amft.config import AMFTConfig, from_mapping
from recipe.amft.config_checks import CONFIGURATION_CHECKS, Run, check_supported
from recipe.amft.data.files import Split, check_splits
from recipe.amft.machine_checks import (
    check_attention,
    check_cluster,
    check_device,
    check_model,
    gpu_memory_gib,
    hardware_of,
)
from recipe.amft.memory import Memory, estimate, read_architecture
from recipe.amft.methods import Method, make_method
from recipe.amft.needs import everything_asked, union
from recipe.amft.plan import Plan, count, shares_of
from recipe.amft.prepare import make_once
from recipe.amft.run_folder import RunFolder
from recipe.amft.shape import Shape, training_steps
from recipe.amft.speed import estimate_speed
from verl_ext.versions import check_versions

MACHINE_CHECKS = (check_device, check_cluster, check_attention, check_model)
DISJOINT = (
    ("train", "utility"),
    ("train", "validation"),
    ("demonstrations", "utility"),
    ("demonstrations", "validation"),
    ("utility", "validation"),
)


def preflight(config) -> tuple[AMFTConfig, RunFolder, Plan]:
    """Check everything; make data and model where the configuration names none; fill their paths into `config`."""
    check_supported(config)
    findings = Findings(collect=config.dry_run)
    settings = read_settings(config)
    method = make_method(settings)
    run = Run(config, settings, Shape.from_config(config), everything_asked(method, settings))
    for check in CONFIGURATION_CHECKS:
        check(run)
    folder = RunFolder(settings.run_dir, settings.overwrite)
    findings.attempt(check_versions)
    findings.attempt(folder.check)
    findings.attempt(fill_in_data, config, settings)
    findings.attempt(fill_in_model, config, settings)
    run = replace(run, settings=read_settings(config))
    for check in MACHINE_CHECKS:
        findings.attempt(check, run)
    plan = make_plan(run, method, findings)
    if not config.dry_run:
        check_with_verl(run)
    return run.settings, folder, plan


@dataclass
class Findings:
    """Runs checks: the first error is raised, or all are collected."""

    collect: bool
    texts: list[str] = field(default_factory=list)

    def attempt(self, check: Callable, *arguments) -> Any:
        """The result of `check(*arguments)`; None when it failed and failures are collected."""
        try:
            return check(*arguments)
        except ValueError as error:
            if not self.collect:
                raise
            self.texts.append(str(error))
            return None


def read_settings(config) -> AMFTConfig:
    try:
        return from_mapping(OmegaConf.to_container(config.amft, resolve=True))
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"amft cannot be resolved: {reason}; give the value that is missing.") from None


# ---- data and model --------------------------------------------------------------------------------------------------


def fill_in_data(config, settings: AMFTConfig) -> None:
    """Paths as lists; without `data.train_files` the task's own data is made. What the user names stays."""
    with open_dict(config):
        if config.data.train_files is None:
            folder = make("amft.task", settings.task, settings.cache_dir, "data.train_files")
            config.data.train_files = str(folder / "train.parquet")
            config.data.val_files = config.data.val_files or str(folder / "test.parquet")
            config.amft.utility.files = config.amft.utility.files or [str(folder / "validation.parquet")]
        for key in ("train_files", "val_files"):
            config.data[key] = list(as_tuple(config.data[key]))


def fill_in_model(config, settings: AMFTConfig) -> None:
    """Without `actor_rollout_ref.model.path` the model group's own model is made; workers get absolute paths."""
    model = config.actor_rollout_ref.model
    path = model.path
    if path is None:
        path = make("amft.model", settings.model, settings.cache_dir, "actor_rollout_ref.model.path")
    if Path(path).is_dir():
        model.path = str(Path(path).absolute())


def make(key: str, recipe: dict[str, Any], cache: str, instead: str) -> Path:
    """`make_once`, with an error that says which keys are at fault."""
    if "make" not in recipe:
        raise ValueError(f"{instead}=None and {key}.make is not set, so there is nothing to use; set {instead}.")
    try:
        return make_once(recipe, Path(cache))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{key}={recipe!r} cannot be made ({reason}); change its options.") from None


def as_tuple(files) -> tuple[str, ...]:
    if files is None:
        return ()
    return (files,) if isinstance(files, str) else tuple(files)


def check_data(run: Run) -> dict[str, int]:
    """Rows of train and validation data, after the checks of data/files.py."""
    config, settings = run.config, run.settings
    train = as_tuple(config.data.train_files)
    reward = ("data_source",)
    demonstrations_key = "amft.demonstrations.files" if settings.demonstrations.files else "data.train_files"
    splits = {
        "train": Split("data.train_files", train, reward, True, (run.shape.train_batch_size, "data.train_batch_size")),
        "validation": Split("data.val_files", as_tuple(config.data.val_files), reward),
    }
    if run.needs.expert:
        least = (settings.demonstrations.batch_size, "amft.demonstrations.batch_size")
        splits["demonstrations"] = Split(
            demonstrations_key,
            settings.demonstrations.files or train,
            ("target",),
            False,
            least if run.needs.expert_batches else (1, ""),
        )
    if run.needs.utility:
        least = (settings.utility.num_prompts, "amft.utility.num_prompts")
        splits["utility"] = Split("amft.utility.files", settings.utility.files, reward, True, least)
    pairs = [(one, other) for one, other in DISJOINT if one in splits and other in splits]
    loop = config.actor_rollout_ref.rollout.agent.default_agent_loop
    rows_name_it = loop == "environment" and not settings.task.get("environment")
    return check_splits(splits, pairs, rows_name_it)


# ---- the plan --------------------------------------------------------------------------------------------------------


def make_plan(run: Run, method: Method, findings: Findings) -> Plan:
    rows = findings.attempt(check_data, run) or {}
    num_steps = training_steps(run.config, rows.get("train"))
    counts = None
    if num_steps is not None:
        check_length(run, method, num_steps)
        counts = count(run, method, num_steps, rows.get("validation"))
    architecture = findings.attempt(read_architecture, run.settings, run.config.actor_rollout_ref.model.path)
    memory = speed = None
    if architecture is not None:
        memory = estimate(run, architecture, gpu_memory_gib(run))
        findings.attempt(Memory.check, memory)
        hardware = hardware_of(run)
        if counts is not None and hardware is not None:
            speed = estimate_speed(
                run, architecture, memory.cache, hardware, shares_of(run, counts), rows.get("validation")
            )
    return Plan(run, counts, architecture, memory, speed, tuple(findings.texts))


def check_length(run: Run, method: Method, num_steps: int) -> None:
    """ValueError for a run that ends before a part of its method begins."""
    least, key = method.least_steps
    if num_steps < least:
        raise ValueError(
            f"{key}={run.value(key)} in a run of {num_steps} training steps leaves out a part of "
            f"method={run.settings.method.name}; choose a smaller {key}, or a run of at least {least} steps "
            "(trainer.total_training_steps counts all stages)."
        )
    if run.needs.utility and not union(method.plan(step, method.initial_state()) for step in range(num_steps)).utility:
        raise ValueError(
            f"amft.utility.every={run.settings.utility.every} in a run of {num_steps} training steps leaves no "
            f"meta-update on validation rollouts; choose amft.utility.every below {num_steps}, a longer run "
            "(trainer.total_training_steps), amft.utility.source=rollouts, or method=amft_no_meta, which has none."
        )


def check_with_verl(run: Run) -> None:
    """verl's own checks, which also import verl; its assertions are errors of the user here."""
    from verl.utils.config import validate_config

    reference = bool(run.config.algorithm.use_kl_in_reward or run.config.actor_rollout_ref.actor.use_kl_loss)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            validate_config(run.config, use_reference_policy=reference, use_critic=run.uses_critic)
    except (AssertionError, ValueError, TypeError, OmegaConfBaseException, HydraException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"verl refuses the configuration: {reason or type(error).__name__}.") from None
