"""What every configuration shares: checked fields, and sizes given as one number or as a pair.

No function here is checked by the import hook: the presets call them thousands of times while the package is imported.
"""

import dataclasses
import math
import types
import typing
from typing import Any


@typing.no_type_check
def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number (a square) or as a pair."""
    return (size, size) if isinstance(size, int) else size


@typing.no_type_check
def per_stage(value: Any, stages: int) -> tuple[Any, ...]:
    """`value` for each stage: one value stands for all of them, a short tuple is extended by its last."""
    values = value if isinstance(value, tuple) else (value,)
    return values + values[-1:] * (stages - len(values))


@typing.no_type_check
def check_fields(config: Any) -> None:
    """Check each field of a dataclass against its annotation.

    A list is taken for a tuple and an int for a float, so that a config read back from JSON is the config written.

    **Raises:** `ValueError` that names the class, the field, the expected type and the value given.
    """
    for field in dataclasses.fields(config):
        value = _as_tuples(getattr(config, field.name))
        if not _fits(value, field.type):
            name = f"{type(config).__name__}.{field.name}"
            raise ValueError(f"{name} must be {spell(field.type)}, given {value!r} ({type(value).__name__})")
        object.__setattr__(config, field.name, value)


@typing.no_type_check
def check(rule: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `rule` holds."""
    if not rule:
        raise ValueError(message)


@typing.no_type_check
def check_positive(config: Any, *names: str) -> None:
    """Raise `ValueError` unless each named field (a number, or a tuple of them; None is skipped) is at least 1."""
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        check(
            all(number is None or number >= 1 for number in numbers),
            f"{type(config).__name__}.{name} must be at least 1, given {value!r}",
        )


@typing.no_type_check
def check_rates(config: Any, *names: str) -> None:
    """Raise `ValueError` unless each named field is a probability in [0, 1)."""
    for name in names:
        rate = getattr(config, name)
        check(0 <= rate < 1, f"{type(config).__name__}.{name} must be at least 0 and below 1, given {rate!r}")


@typing.no_type_check
def check_multiple(name: str, size: int | tuple[int, int], step: int | tuple[int, int]) -> None:
    """Raise `ValueError` unless height and width are positive multiples of `step`, with the nearest sizes that are."""
    nearest = []
    for length, unit in zip(pair(size), pair(step), strict=True):
        below, above = length // unit * unit, -(-length // unit) * unit
        nearest.append((max(below, unit), max(above, unit)))
    (low_height, high_height), (low_width, high_width) = nearest
    if any(length != low for length, (low, _) in zip(pair(size), nearest, strict=True)):
        low = low_height if isinstance(size, int) else (low_height, low_width)
        high = high_height if isinstance(size, int) else (high_height, high_width)
        ways = f"use {low}" if low == high else f"use {low} or {high}"
        raise ValueError(f"{name} {size} is not a multiple of {step}: {ways}")


@typing.no_type_check
def spell(hint: Any) -> str:
    """A type hint in words: `int`, `int | tuple[int, int]`, `'cls' | 'mean'`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(spell(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(repr(option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


@typing.no_type_check
def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


@typing.no_type_check
def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return bool(value) and all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if isinstance(value, bool):  # a bool is an int to Python, never to a config
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint)
