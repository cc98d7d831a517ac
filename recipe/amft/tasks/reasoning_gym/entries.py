"""Data sets of reasoning-gym by name, their entries, and entries as JSON that gives back the very same entry."""

import dataclasses
import difflib
import importlib.util
import json
import sys
import types
from functools import lru_cache
from typing import Any

Entry = dict[str, Any]  # question: str, answer: str or None, metadata: dict

VERSION = "0.1.25"  # worker.py knows what its scorers do
REFUSED = {
    "puzzle24": "its scorer accepts cards that are not in the hand and rounds 24.9 down; use env_id general_points",
    "game_of_life_halting": "its scorer accepts any text, right or wrong, when the answer is True",
    "composite": "it is a mixture of data sets; prepare each and list the files, data.train_files takes several",
}
COMPILED = {"zebra_puzzles": "pycosat"}  # the only data set that needs this package, which has to be compiled
DRAWN = {"seed", "size"}  # of a data set's configuration: they say which entries there are, and belong to a row


# reasoning-gym imports all that its data sets need at once: an empty module stands in for what is not installed.
for _package in COMPILED.values():
    if _package not in sys.modules and importlib.util.find_spec(_package) is None:
        sys.modules[_package] = types.ModuleType(_package)


def load_dataset(name: str, config: dict[str, Any], seed: int, size: int) -> Any:
    """The data set `name` of `size` entries; ValueError for an unknown or refused name or a bad `config`. Cached."""
    try:
        text = json.dumps(config, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"config of {name!r} must hold plain values (numbers, texts, lists); {error}") from None
    return _load_dataset(name, text, seed, size)


@lru_cache(maxsize=32)
def _load_dataset(name: str, config_text: str, seed: int, size: int) -> Any:
    datasets = known_datasets()
    if name in REFUSED:
        raise ValueError(f"dataset {name!r} of reasoning-gym is refused: {REFUSED[name]}")
    if name in COMPILED and is_stand_in(COMPILED[name]):
        raise ValueError(
            f"dataset {name!r} of reasoning-gym needs the package {COMPILED[name]}, which is not installed: "
            f"pip install {COMPILED[name]} (it needs a C compiler), or another data set"
        )
    if name not in datasets:
        near = difflib.get_close_matches(name, datasets, n=5, cutoff=0.3)
        raise ValueError(f"dataset {name!r} is not one of reasoning-gym's {len(datasets)}; the nearest: {near}")
    dataset_class, config_class = datasets[name]
    config = json.loads(config_text)
    allowed = [field.name for field in dataclasses.fields(config_class) if field.name not in DRAWN]
    for key in config:
        if key in DRAWN:
            raise ValueError(f"config of {name!r}: {key} says which entries are drawn; leave it to the data rows")
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=3, cutoff=0.3)
            raise ValueError(f"config of {name!r}: unknown key {key!r}; the nearest: {near}; allowed: {allowed}")
    try:
        return dataset_class(config=config_class(**config, seed=seed, size=size))
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"config of {name!r}: reasoning-gym refuses {config}: {error}") from error


def known_datasets() -> dict[str, tuple[type, type]]:
    """Name -> (data set class, configuration class); ValueError with the fix when the package is missing."""
    try:
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise ValueError(
            f"env_id reasoning_gym needs the package reasoning-gym ({error}); "
            f"install it: pip install reasoning-gym=={VERSION}"
        ) from error
    return DATASETS


def is_stand_in(package: str) -> bool:
    """Whether an empty module stands in for a package that is not installed."""
    return getattr(sys.modules.get(package), "__spec__", None) is None


def entry_at(name: str, config: dict[str, Any], seed: int, size: int, index: int) -> Entry:
    """Entry `index` of the data set that `config`, `seed` and `size` describe."""
    entry = load_dataset(name, config, seed, size)[index]
    return {key: entry[key] for key in ("question", "answer", "metadata")}


def to_json(value: Any) -> Any:
    """`value` as plain JSON. Scorers tell tuples from lists and 1 from "1", so tuples and such keys are marked.

    Raises TypeError for anything but None, numbers, texts, lists, tuples, sets and dicts of them.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        plain = all(isinstance(key, str) for key in value) and not (len(value) == 1 and set(value) <= set(_MARKS))
        if plain:
            return {key: to_json(item) for key, item in value.items()}
        return {"__dict__": [[to_json(key), to_json(item)] for key, item in value.items()]}
    for mark, kind in (("__tuple__", tuple), ("__set__", set)):
        if isinstance(value, kind):
            return {mark: [to_json(item) for item in value]}
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def from_json(value: Any) -> Any:
    """What `to_json` was given."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1:
            ((mark, items),) = value.items()
            if mark in _MARKS:
                return _MARKS[mark](from_json(items))
        return {key: from_json(item) for key, item in value.items()}
    return value


_MARKS = {"__tuple__": tuple, "__set__": set, "__dict__": dict}
