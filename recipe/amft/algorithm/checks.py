"""Checks of user-supplied values: each error names the value received, the values allowed and thereby the fix."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any


def require_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}.")


def require_range(name: str, value: float, low: float, high: float, *, high_included: bool = True) -> None:
    """Raise ValueError unless `value` is finite and low <= value <= high (< high when it is not included)."""
    inside = low <= value <= high if high_included else low <= value < high
    if not (inside and math.isfinite(value)):
        bracket = "]" if high_included and math.isfinite(high) else ")"
        raise ValueError(f"{name}={value!r} is out of range; choose a number in [{low}, {high}{bracket}.")


def require_positive(name: str, value: float, fix: str) -> None:
    """Raise ValueError unless `value` > 0; `fix` says what to do about it."""
    if not value > 0:
        raise ValueError(f"{name}={value!r} must be greater than 0; {fix}.")


def require_unchanged(prefix: str, options: Any, names: Sequence[str], reader: str) -> None:
    """Raise ValueError when a field of the dataclass `options` that only `reader` reads is not at its default."""
    for item in fields(options):
        value = getattr(options, item.name)
        if item.name in names and value != item.default:
            raise ValueError(
                f"{prefix}.{item.name}={value!r} has no effect here; leave it at {item.default!r}, or choose what "
                f"reads it: {reader}."
            )
