"""Where packages come from: pip's settings in uv's words, and the source of torch's CPU build. Standard library."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path
from urllib.parse import unquote

# The PyTorch project's own index of CPU wheels; AMFT_TORCH_INDEX names a mirror of it.
TORCH_INDEX = os.environ.get("AMFT_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
UV_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
UV_NAMES = {  # pip's setting -> uv's variable
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}


def read_pip_settings(pip: list[str]) -> dict[str, list[str]]:
    """pip's settings from its files and PIP_* variables, in pip's order of precedence, values split at white space."""
    listing = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
    pairs = [line.split("=", 1) for line in listing.splitlines() if "=" in line]
    settings: dict[str, list[str]] = {}
    for section in ("global.", "install.", ":env:."):
        for key, value in pairs:
            if key.startswith(section):
                settings[key[len(section) :]] = str(ast.literal_eval(value)).split()
    return settings


def local_folder(link: str) -> Path | None:
    """The folder that a find-links value names; None for a web page."""
    if link.startswith("file://"):
        return Path(unquote(link[len("file://") :]))
    return None if "://" in link else Path(link).expanduser()


def uv_flags(settings: dict[str, list[str]]) -> list[str]:
    """pip's indexes and links as flags for uv, which reads none of pip's settings; a user's own UV_* indexes win."""
    flags: list[str] = []
    for link in settings.get("find-links", []):
        folder = local_folder(link)
        if folder is None or folder.is_dir():  # uv stops at a missing folder, pip only warns
            flags += ["--find-links", link if folder is None else str(folder)]
    for host in settings.get("trusted-host", []):
        flags += ["--allow-insecure-host", host]
    if settings.get("no-index", ["false"])[0].lower() in ("1", "true", "yes", "on"):
        return [*flags, "--no-index"]
    if any(os.environ.get(variable) for variable in UV_INDEX_VARIABLES):
        return flags
    for url in settings.get("index-url", [])[:1]:
        flags += ["--index-url", url]
    for url in settings.get("extra-index-url", []):
        flags += ["--extra-index-url", url]
    if settings.get("extra-index-url"):
        flags += ["--index-strategy", "unsafe-best-match"]  # the best version over all indexes, as pip does
    return flags


def installer_environment(settings: dict[str, list[str]]) -> dict[str, str]:
    """This process's environment, with pip's certificates, proxy and time limit also under uv's names for them."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for setting, variable in UV_NAMES.items():
        if settings.get(setting):
            environment.setdefault(variable, settings[setting][0])
    return environment


def torch_source(settings: dict[str, list[str]], version: str, python: str) -> list[str]:
    """Flags for pip or uv to find torch's CPU build: a find-links folder that holds its wheel, else TORCH_INDEX."""
    prefix = "torch-{}-cp{}-".format(version, python.replace(".", ""))
    for link in settings.get("find-links", []):
        folder = local_folder(link)
        if folder and any(unquote(wheel.name).startswith(prefix) for wheel in folder.glob("torch-*.whl")):
            return ["--no-index", "--find-links", str(folder)]
    return ["--index-url", TORCH_INDEX]
