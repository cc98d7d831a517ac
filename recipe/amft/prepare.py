"""Data sets and tiny models that are made on the spot, once, and kept in a cache."""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def import_object(path: str) -> Any:
    """The object at `package.module.name`; ValueError names the path."""
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported ({error}); give an import path package.module.name.") from None


def make_once(recipe: Mapping[str, Any], cache: Path, say: Callable[[str], None] = print) -> Path:
    """The folder that `recipe.make(options, folder)` fills, made when it is not in the cache.

    The folder's name carries a hash of the recipe, so another option makes another folder. It appears under its name
    only when it is whole.
    """
    make, options = recipe["make"], dict(recipe.get("options") or {})
    digest = hashlib.sha256(json.dumps([make, options], sort_keys=True).encode()).hexdigest()[:12]
    name = make.split(".")[-2]
    folder = cache / f"{name}-{digest}"
    if folder.exists():
        return folder
    say(f"making {name} (once; cached in {folder})")
    unfinished = cache / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        import_object(make)(options, unfinished)
        (unfinished / "recipe.json").write_text(json.dumps({"make": make, "options": options}, indent=1))
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not folder.exists():  # somebody else may have been faster
            raise
    return folder
