"""What configurations check, and sizes given as one number or as a pair.

No function here is checked by the import hook: the presets call them thousands of times while the package is imported.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., object])
Size = int | tuple[int, int]

_MISFIT = object()
_LARGEST_FLOAT = 2.0**128 - 2.0**104  # of float32
_LARGEST_SIZE, _MOST_PARTS = 2**20, 64  # in one field of a model's config


class Dataclass(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def no_type_check(function: Function) -> Function:
    """For what checks its own arguments, or is called too often to be checked: the import hook leaves it alone.

    The hook goes by this name. `typing.no_type_check` is the same at run time, but hides the types from type checkers.
    """
    return typing.no_type_check(function)


@no_type_check
def pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one number (a square) or as a pair."""
    return (size, size) if isinstance(size, int) else size


@no_type_check
def per_stage(value: Value | tuple[Value, ...], stages: int) -> tuple[Value, ...]:
    """`value` for each stage: one value stands for all of them, a short tuple is extended by its last."""
    values = value if isinstance(value, tuple) else (value,)
    return values + values[-1:] * (stages - len(values))


@no_type_check
def check(rule: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `rule` holds."""
    if not rule:
        raise ValueError(message)


@no_type_check
def check_fields(config: Dataclass) -> None:
    """Check each field of a dataclass against its annotation.

    A list becomes a tuple, and an int a float where the annotation has no int: a config read back from JSON is the
    config written. No number may be infinite, or larger than what float32 (an int: 64 bits) can hold.

    **Raises:** `ValueError` that names the class, the field, the expected type and the value given.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        fitted = _fit(value, field.type)
        if fitted is _MISFIT:
            name = f"{type(config).__name__}.{field.name}"
            given = f"{shorten(value)} ({type(value).__name__})"
            beyond = isinstance(value, int | float) and not abs(value) < 2**63
            why = ", which is too large or not finite" if beyond else ""
            raise ValueError(f"{name} must be {describe_type(field.type)}, given {given}{why}")
        object.__setattr__(config, field.name, fitted)


@no_type_check
def check_at_least(config: Dataclass, least: int, *names: str) -> None:
    """Raise `ValueError` unless each named field (a number, or a tuple of them; None is skipped) is at least that."""
    for name in names:
        value = getattr(config, name)
        if any(number < least for number in _numbers(value)):
            problem = f"must be at least {least}" if least else "must not be negative"
            raise ValueError(f"{type(config).__name__}.{name} {problem}, given {shorten(value)}")


@no_type_check
def check_sizes(config: Dataclass, counts: Sequence[str]) -> None:
    """Raise `ValueError` for a number or a tuple beyond any model: it may come from a file, and be meant to do harm.

    `counts` are the fields that count parts which are made one by one, as those of a tuple are.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{type(config).__name__}.{field.name}"
        most = _MOST_PARTS if field.name in counts else _LARGEST_SIZE
        if any(number > most for number in _numbers(value)):
            raise ValueError(f"{name} must be at most {most}, given {shorten(value)}")
        if isinstance(value, tuple) and len(value) > _MOST_PARTS:
            raise ValueError(f"{name} must have at most {_MOST_PARTS} values, given {len(value)}")


@no_type_check
def _numbers(value: object) -> list[float]:
    """The numbers in a field: one, or those of a tuple, of a tuple of tuples; None is not one."""
    if isinstance(value, tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


@no_type_check
def check_rates(config: Dataclass, *names: str) -> None:
    """Raise `ValueError` unless each named field is a probability in [0, 1)."""
    for name in names:
        rate = getattr(config, name)
        check(0 <= rate < 1, f"{type(config).__name__}.{name} must be at least 0 and below 1, given {rate!r}")


@no_type_check
def check_stages(config: Dataclass, stages: int, counted_by: str, *names: str) -> None:
    """Raise `ValueError` where a named field has more values than there are stages, as `counted_by` says."""
    for name in names:
        count = len(per_stage(getattr(config, name), 1))
        check(count <= stages, f"{type(config).__name__}.{name} has {count} values for {stages} stages ({counted_by})")


@no_type_check
def check_heads(dim: int, heads: int, *, dim_head: str | None = "dim_head") -> None:
    """Raise `ValueError` unless the heads share `dim` equally; `dim_head` is the field that would free them."""
    way = "" if dim_head is None else f", or give {dim_head}"
    check(dim % heads == 0, f"dim {dim} is not a multiple of heads {heads}: change one{way}")


@no_type_check
def check_multiple(name: str, size: Size, step: Size) -> None:
    """Raise `ValueError` unless height and width are positive multiples of `step`, with the nearest sizes that are."""
    nearest = []
    for length, unit in zip(pair(size), pair(step), strict=True):
        below, above = length // unit * unit, math.ceil(length / unit) * unit
        nearest.append((max(below, unit), max(above, unit)))
    (low_height, high_height), (low_width, high_width) = nearest
    if any(length != low for length, (low, _) in zip(pair(size), nearest, strict=True)):
        low = low_height if isinstance(size, int) else (low_height, low_width)
        high = high_height if isinstance(size, int) else (high_height, high_width)
        ways = f"use {low}" if low == high else f"use {low} or {high}"
        raise ValueError(f"{name} {size} is not a multiple of {step}: {ways}")


@no_type_check
def mentions(hint: object, kind: type) -> bool:
    """Whether a type hint is `kind`, or a union or a tuple with it inside."""
    return hint is kind or any(mentions(argument, kind) for argument in typing.get_args(hint))


@no_type_check
def describe_type(hint: object) -> str:
    """A type hint in words: `int`, `int | tuple[int, int]`, `'cls' | 'mean'`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(describe_type(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(repr(option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


@no_type_check
def shorten(value: object) -> str:
    """A value as a message shows it, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an int of more digits than Python writes, lists in lists in lists ...
        return "a value too large to show"
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


@no_type_check
def list_some(texts: Sequence[str], separator: str = ", ", most: int = 10) -> str:
    """Texts in a row as a message shows them, of many the first `most`, each cut where it is long."""
    shown = [text if len(text) <= 200 else f"{text[:180]}..." for text in texts[:most]]
    return separator.join(shown if len(texts) <= most else [*shown, f"and {len(texts) - most:,} more"])


# Not beartype: of a tuple it looks at one item, drawn at random.
@no_type_check
def _fit(value: object, hint: object) -> object:
    """The value as the type hint has it, `_MISFIT` where it is of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return next((fitted for option in arguments if (fitted := _fit(value, option)) is not _MISFIT), _MISFIT)
    if origin is typing.Literal:
        return value if any(isinstance(value, type(option)) and value == option for option in arguments) else _MISFIT
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return _MISFIT
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = arguments[:1] * max(len(value), 1)
        fitted = tuple(map(_fit, value, arguments))
        return _MISFIT if len(value) != len(arguments) or any(item is _MISFIT for item in fitted) else fitted
    if isinstance(value, bool):  # a bool is an int to Python, never to a config
        return value if hint is bool else _MISFIT
    if hint is float:
        return float(value) if isinstance(value, int | float) and abs(value) <= _LARGEST_FLOAT else _MISFIT
    if hint is int:
        return value if isinstance(value, int) and abs(value) < 2**63 else _MISFIT
    return value if isinstance(hint, type) and isinstance(value, hint) else _MISFIT
