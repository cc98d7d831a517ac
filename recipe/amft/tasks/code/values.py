"""Plain values as JSON and back: what a test and the program under test may exchange.

The program never hands an object to the test, only a description of one, so that no `__eq__` of its own decides.
"""

import numbers
from typing import Any

CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset}


def to_json(value: Any) -> Any:
    """Lists stay lists and everything that JSON lacks is tagged; TypeError names what is no plain value."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    is_numpy = type(value).__module__ == "numpy"
    if isinstance(value, float) or (is_numpy and isinstance(value, numbers.Real)):
        return float(value)
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for name, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [to_json(item) for item in value]}
    if is_numpy and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"a {type(value).__name__} is no plain value (numbers, texts, lists, tuples, sets, dicts)")


def from_json(value: Any) -> Any:
    """What `to_json` was given; ValueError or TypeError for anything else."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {from_json(key): from_json(item) for key, item in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*content)
    if kind not in CONTAINERS:
        raise ValueError(f"{kind!r} is no kind of value")
    return CONTAINERS[kind](from_json(item) for item in content)
