"""The command line of the evaluation before Hydra reads it: what is misspelt is answered with what there is."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from recipe.amft.evaluation.settings import Benchmark, nearest

CONFIGS = Path(__file__).parents[3] / "configs"
BENCHMARK_KEYS = [item.name for item in dataclasses.fields(Benchmark) if item.name != "name"]


def translated(arguments: Sequence[str]) -> list[str]:
    """`model=PATH` as the key `model_path`: Hydra would look for PATH in the group `model` of the training's files."""
    return [f"model_path={item.removeprefix('model=')}" if item.startswith("model=") else item for item in arguments]


def check_arguments(arguments: Sequence[str]) -> None:
    """Exits with the nearest keys and suites where an argument names none; what has `+`, `~` or `@` is Hydra's."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONFIGS / "evaluate.yaml")
    keys = ["model", "suite", *(str(key) for key in config if key not in ("defaults", "model_path"))]
    before = ""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        option = key.lstrip("-").replace("-", "_")
        if argument.startswith("--") and option in keys:
            sys.exit(f"error: {argument} is no option; keys are given without dashes: {option}={value or 'VALUE'}.")
        if not argument.startswith(("-", "+", "~")) and not before.startswith("-"):
            if not equals:
                sys.exit(f"error: {argument!r} is no key=value; the nearest keys: {_nearest(key, keys)}.")
            if "@" not in key:
                _check_key(argument, key, keys, [str(name) for name in config.engine])
        before = argument
    _check_suite(arguments)


def _check_key(argument: str, key: str, keys: list[str], engine_keys: list[str]) -> None:
    root, _, rest = key.partition(".")
    benchmark_key = rest.split(".")[2:3] if rest.startswith("benchmarks.") and root == "suite" else []
    if benchmark_key and benchmark_key[0] not in BENCHMARK_KEYS:
        near = _nearest(benchmark_key[0], BENCHMARK_KEYS)
        sys.exit(f"error: {argument}: a benchmark has no key {benchmark_key[0]!r}; the nearest: {near}.")
    if root not in (*keys, "model_path"):
        sys.exit(f"error: {argument}: there is no key {root!r}; the nearest: {_nearest(root, keys)}.")
    name = rest.partition(".")[0]
    if root == "engine" and name and name not in engine_keys:
        near = _nearest(name, engine_keys)
        sys.exit(
            f"error: {argument}: engine has no key {name!r}; the nearest: {near}; further arguments of vLLM"
            "'s engine go into engine.extra={...}."
        )


def _check_suite(arguments: Sequence[str]) -> None:
    if any(argument.startswith(("--config-dir", "-cd", "hydra.searchpath")) for argument in arguments):
        return  # the user's own suites
    known = sorted(path.stem for path in (CONFIGS / "suite").glob("*.yaml"))
    for argument in arguments:
        key, _, names = argument.partition("=")
        if key == "suite" and "," in names and not {"-m", "--multirun"} & set(arguments):
            sys.exit(
                f"error: {argument}: an evaluation has one suite; several follow each other with -m suite=ONE,TWO."
            )
        for name in names.split(",") if key == "suite" else ():
            if name not in known:
                sys.exit(f"error: suite={name} is unknown; known, the nearest first: {nearest(name, known)}.")


def _nearest(name: str, known: Sequence[str]) -> str:
    return ", ".join(nearest(name, known).split(", ")[:3])
