"""Build the environment in `.venv`, once: a second call finds it standing and returns at once.

    python3 tools/setup_env.py [--stack auto|cpu|gpu] [--lock]

Standard library only, since nothing is installed yet when it runs. The stamp in `.venv` is written last: an environment
without one, or with another lock, dependency list, Python, stack or folder in it, is built anew.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from package_sources import TORCH_INDEX, installer_environment, read_pip_settings, torch_source, uv_flags

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "amft_stamp.json"
REQUIREMENTS = {"cpu": ROOT / "requirements" / "cpu.txt", "gpu": ROOT / "requirements" / "gpu.txt"}
OVERRIDES, CPU_OVERRIDES = ROOT / "requirements" / "overrides.txt", ROOT / "requirements" / "overrides_cpu.txt"
SUPPORTED_PYTHONS = ("3.11", "3.12")
RUNNING_PYTHON = "{}.{}".format(*sys.version_info)
# About a third of all code, which few runs import: Python compiles what is imported then.
SELDOM_IMPORTED = "/(tests|testing|rllib|models|physics)/"

LOCK_HEADER = """\
# The CPU stack, locked: Linux x86_64, Python 3.11 and 3.12. `make lock` resolves it again from pyproject.toml (extras
# cpu and dev) and the overrides beside it, keeping the pins that still fit. Install it with --no-deps: `make env`.
# torch's +cpu build: https://download.pytorch.org/whl/cpu, or a folder in pip's find-links that holds the wheel.
"""


def say(message: str) -> None:
    print(f"[env] {message}", flush=True)


def require_platform() -> None:
    """Return on Linux x86_64 under Python 3.11 or 3.12, switching to one on PATH if need be; else say what to do."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit(
            f"this machine is {platform.system()} {platform.machine()}; the pinned wheels exist for Linux x86_64 only: "
            "use such a machine, a container or WSL"
        )
    if Path(sys.prefix).resolve() == VENV:  # an activated .venv cannot rebuild itself
        os.execv(sys._base_executable, [sys._base_executable, *sys.argv])
    if RUNNING_PYTHON in SUPPORTED_PYTHONS:
        return
    for version in SUPPORTED_PYTHONS:
        candidate = shutil.which("python" + version)
        probe = "import sys; sys.exit('{}.{}'.format(*sys.version_info) != '" + version + "')"
        if candidate and subprocess.run([candidate, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0:
            os.execv(candidate, [candidate, *sys.argv])
    raise SystemExit(
        f"this is Python {RUNNING_PYTHON} ({sys.executable}); verl 0.9.1 with vLLM needs 3.11 or 3.12, and neither "
        "python3.11 nor python3.12 is on PATH: install one, or name it: make env PYTHON=/path/to/python3.12"
    )


def choose_stack(wanted: str, standing: dict[str, str]) -> str:
    """The stack asked for; for `auto`: gpu where nvidia-smi lists one, else cpu, but a gpu stack that stands stays."""
    if wanted != "auto":
        return wanted
    if standing.get("stack") == "gpu":  # a cluster's login node has no GPU and shares the folder
        if shutil.which("nvidia-smi") is None:
            say(".venv holds the GPU stack and this machine shows no GPU; for the CPU stack: make env STACK=cpu")
        return "gpu"
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return "gpu" if listing.returncode == 0 and "GPU " in listing.stdout else "cpu"


def fingerprint(stack: str) -> dict[str, str]:
    """What the environment depends on, by name; the linters' settings in pyproject.toml are not part of it."""
    import tomllib

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [pyproject["project"], pyproject["build-system"], pyproject["tool"]["setuptools"]]
    return {
        "stack": stack,
        "python": RUNNING_PYTHON,
        "folder": str(ROOT),
        "requirements": hashlib.sha256(REQUIREMENTS[stack].read_bytes()).hexdigest(),
        "pyproject": hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest(),
    }


def read_stamp() -> dict[str, str]:
    """The fingerprint of the environment that stands; empty where none does."""
    try:
        return json.loads(STAMP.read_text()) if VENV_PYTHON.exists() else {}
    except (OSError, ValueError):
        return {}


def locked_version(name: str) -> str:
    """The version that requirements/cpu.txt pins for a package."""
    for line in REQUIREMENTS["cpu"].read_text().splitlines():
        if line.startswith(name + "=="):
            return line.split("==")[1].split()[0]
    raise SystemExit(f"requirements/cpu.txt pins no {name}: restore the file with git")


class Installer:
    """Installs into `.venv` with uv, and with pip where uv cannot be had or stops (minutes instead of seconds)."""

    def __init__(self) -> None:
        pip = [str(VENV_PYTHON), "-m", "pip"]
        if not list(VENV.glob("lib/python*/site-packages/pip")):
            pip = [sys.executable, "-m", "pip", "--python", str(VENV_PYTHON)]
        self.settings = read_pip_settings(pip)
        self.environment = installer_environment(self.settings)
        self.registry = uv_flags(self.settings)
        self.torch_version = locked_version("torch")
        self.torch_source = torch_source(self.settings, self.torch_version, RUNNING_PYTHON)
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        self.uv = [str(VENV / "bin" / "uv"), "pip"]
        self.uv_install = [*self.uv, "install", *quiet, "--python", str(VENV_PYTHON)]
        self.pip_install = [*pip, "install", "-qq", "--no-compile", "--disable-pip-version-check"]
        self.has_uv = self.run([*self.pip_install, "--no-deps", f"uv=={locked_version('uv')}"])
        say("installing with uv" if self.has_uv else "uv cannot be had: installing with pip")

    def run(self, command: list[str]) -> bool:
        return subprocess.run(command, cwd=ROOT, env=self.environment).returncode == 0

    def install(self, *arguments: str, registry: list[str]) -> None:
        """Install, `registry` being the flags that tell uv what pip knows by itself."""
        if self.has_uv and self.run([*self.uv_install, *registry, *arguments]):
            return
        if self.has_uv:
            say("uv stopped (its words are above): trying pip")
        if not self.run([*self.pip_install, *arguments]):
            raise SystemExit(f"[env] cannot install {' '.join(arguments)}: see pip's words above, then run this again")

    def install_cpu_stack(self) -> None:
        """The lock, and nothing else that its packages ask for (requirements/overrides*.txt say why)."""
        say(f"torch {self.torch_version} comes from {self.torch_source[-1]} (AMFT_TORCH_INDEX names another index)")
        self.install("--no-deps", f"torch=={self.torch_version}", *self.torch_source, registry=[])
        self.install("--no-deps", "--requirement", "requirements/cpu.txt", registry=self.registry)
        self.install("--no-deps", "--no-build-isolation", "--editable", ".", registry=self.registry)

    def install_gpu_stack(self) -> None:
        say("the CUDA libraries come along: several GB")
        constraint = ["--constraint", "requirements/gpu.txt"]
        overrides = ["--override", str(OVERRIDES)]  # pip has none, and needs a C compiler for pycosat
        self.install(*constraint, "--editable", ".[gpu,dev]", registry=[*self.registry, *overrides])
        say(f"optional (needs nvcc): .venv/bin/uv pip install --no-build-isolation {' '.join(constraint)} flash-attn")

    def lock(self) -> None:
        """Resolve requirements/cpu.txt from pyproject.toml anew; pins that still fit stay."""
        flags = list(self.registry)
        if self.torch_source[-1] == TORCH_INDEX:
            flags += ["--extra-index-url", TORCH_INDEX]
            flags += [] if "--index-strategy" in flags else ["--index-strategy", "unsafe-best-match"]
        flags += ["--override", str(OVERRIDES), "--override", str(CPU_OVERRIDES)]
        flags += ["--extra", "cpu", "--extra", "dev", "--no-annotate"]
        flags += ["--output-file", "requirements/cpu.txt", "--no-header", "--quiet"]
        if not self.run([*self.uv, "compile", "pyproject.toml", *flags]):
            raise SystemExit("[env] uv could not resolve the lock: see its words above")
        REQUIREMENTS["cpu"].write_text(LOCK_HEADER + REQUIREMENTS["cpu"].read_text())


def build(stack: str) -> None:
    """Create `.venv` from nothing and install the stack; the stamp comes last."""
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)  # first, so that an interrupted removal does not look like an environment
    if VENV.exists():
        shutil.rmtree(VENV)
    say(f"building .venv: {stack} stack, Python {RUNNING_PYTHON} ({sys.executable})")
    # Debian without python3-venv has no ensurepip: the running Python's pip serves then.
    options = [] if importlib.util.find_spec("ensurepip") else ["--without-pip"]
    subprocess.run([sys.executable, "-m", "venv", *options, str(VENV)], check=True)
    installer = Installer()
    if stack == "cpu":
        installer.install_cpu_stack()
    else:
        installer.install_gpu_stack()
    say(f"installed after {time.monotonic() - started:.0f} s; compiling bytecode")
    compile_all = [str(VENV_PYTHON), "-W", "ignore", "-m", "compileall", "-qq", "-j", "0", "-x", SELDOM_IMPORTED]
    command = [*compile_all, str(VENV / "lib")]
    subprocess.run(command, env=installer.environment, stdout=subprocess.DEVNULL)  # some wheels hold broken samples
    STAMP.write_text(json.dumps(fingerprint(stack), indent=1))
    say(f"built in {time.monotonic() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the environment in .venv, once.")
    parser.add_argument("--stack", choices=["auto", "cpu", "gpu"], default="auto", help="auto: gpu where there is one")
    parser.add_argument("--lock", action="store_true", help="resolve requirements/cpu.txt anew, with .venv's uv")
    arguments = parser.parse_args()
    require_platform()
    import fcntl

    fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)  # of two makes at once, the second waits and finds it built
    standing = read_stamp()
    if arguments.lock:
        if not standing:
            raise SystemExit("there is no environment to take uv from: make env")
        Installer().lock()
        return
    wanted = fingerprint(choose_stack(arguments.stack, standing))
    if standing == wanted:
        return
    if standing:
        say("changed since .venv was built: " + ", ".join(key for key in wanted if standing.get(key) != wanted[key]))
    build(wanted["stack"])


if __name__ == "__main__":
    main()
