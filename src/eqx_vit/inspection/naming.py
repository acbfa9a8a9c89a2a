"""The sub-modules of a model under their names, and the model with those marked that are asked for."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import PyTree

from eqx_vit.layers import Stack
from eqx_vit.layers.config import no_type_check
from eqx_vit.layers.marks import AttentionMarks, attention_marks, mark, mark_attention

WEIGHTS, FIRST_ROW = ".weights", ".weights[class]"


class Asked(NamedTuple):
    """What is to be marked when a module is called: its output, and the attention inside, each under a name."""

    output: str | None
    attention: AttentionMarks


@no_type_check
def named_modules(tree: PyTree, path: str = "") -> Iterator[tuple[str, eqx.Module]]:
    """Each module below `tree` that can be called, under its path of attributes with dots.

    A `Stack` and the block that it repeats are one, called as the stack.
    """
    for name, child in _children(tree):
        own = f"{path}.{name}".strip(".")
        if isinstance(child, eqx.Module) and callable(child) and not isinstance(child, Stack):
            yield own, child
        yield from named_modules(child, own)


@no_type_check
def mark_modules(tree: PyTree, asked: Mapping[str, Asked]) -> PyTree:
    """The tree, whose modules of these names mark what is asked of them."""
    return map_modules(tree, {name: functools.partial(_observe_calls, asked=what) for name, what in asked.items()})


@no_type_check
def map_modules(tree: PyTree, functions: Mapping[str, Callable[[eqx.Module], object]], path: str = "") -> PyTree:
    """The tree, with what each function makes of the module of its name in place of that, the innermost first."""
    changes: dict[str, object] = {}
    for name, child in _children(tree):
        own = f"{path}.{name}".strip(".")
        new = map_modules(child, functions, own)
        if own in functions and isinstance(child, eqx.Module) and not isinstance(child, Stack):
            new = functions[own](new)
        if new is not child:
            changes[name or "block"] = new
    if not changes:
        return tree
    if isinstance(tree, eqx.Module):
        return with_fields(tree, type(tree), changes)
    if isinstance(tree, dict):
        return {key: changes.get(str(key), value) for key, value in tree.items()}
    items = [changes.get(str(index), value) for index, value in enumerate(tree)]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


@no_type_check
def match_names(names: Iterable[str], modules: Iterable[str]) -> dict[str, list[str]]:
    """The names that each of `names` stands for, in which `*` is any part of a name."""
    candidates = [name + kind for name in modules for kind in ("", WEIGHTS, FIRST_ROW)]
    patterns = {name: re.compile(re.escape(name).replace(r"\*", ".*")) for name in names}
    return {
        name: [candidate for candidate in candidates if pattern.fullmatch(candidate)]
        for name, pattern in patterns.items()
    }


@no_type_check
def gather_asked(names: Iterable[str]) -> dict[str, Asked]:
    """What is asked of each module, by its name, where these are the names of all values."""
    found = set(names)
    modules = {name.removesuffix(FIRST_ROW).removesuffix(WEIGHTS) for name in found}
    return {
        module: Asked(
            module if module in found else None,
            AttentionMarks(*(module + kind if module + kind in found else None for kind in (WEIGHTS, FIRST_ROW))),
        )
        for module in modules
    }


@no_type_check
def _children(tree: PyTree) -> Iterator[tuple[str, PyTree]]:
    if isinstance(tree, Stack):
        yield "", tree.block
    elif isinstance(tree, eqx.Module):
        for field in dataclasses.fields(tree):
            if not field.metadata.get("static", False) and hasattr(tree, field.name):
                yield field.name, getattr(tree, field.name)
    elif isinstance(tree, list | tuple):
        yield from ((str(index), child) for index, child in enumerate(tree))
    elif isinstance(tree, dict):
        yield from ((str(key), child) for key, child in tree.items())


@no_type_check
def _observe_calls(module: eqx.Module, asked: Asked) -> eqx.Module:
    """The same module, whose class marks what is asked whenever it is called."""
    return with_fields(module, _observed_class(type(module)), {"asked_of_it": asked})


@functools.cache
@no_type_check
def _observed_class(kind: type[eqx.Module]) -> type[eqx.Module]:
    """A subclass, so that a module is still what others take it for."""

    class Observed(kind):
        asked_of_it: Asked = eqx.field(static=True, kw_only=True)

        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            outer, own = attention_marks(), self.asked_of_it.attention
            marks = AttentionMarks(own.weights or outer.weights, own.first_row or outer.first_row)
            with mark_attention(marks) if any(marks) else nullcontext():
                output = super().__call__(*arguments, **keywords)  # pyright: ignore[reportAttributeAccessIssue]
            return output if self.asked_of_it.output is None else _mark_output(output, self.asked_of_it.output)

    Observed.__name__, Observed.__qualname__ = kind.__name__, kind.__qualname__
    return Observed


@no_type_check
def _mark_output(output: PyTree, name: str) -> PyTree:
    """The output with its arrays marked, but for BatchNorm's state, which a module may return beside them."""
    arrays, rest = eqx.partition(output, eqx.is_array, is_leaf=_is_state)
    if isinstance(output, tuple) and len(output) == 2 and _is_state(output[1]):
        return mark(arrays[0], name), output[1]
    return eqx.combine(mark(arrays, name), rest, is_leaf=_is_state)


@no_type_check
def _is_state(node: object) -> bool:
    return isinstance(node, eqx.nn.State)


@no_type_check
def with_fields(module: eqx.Module, kind: type[eqx.Module], changes: Mapping[str, object]) -> eqx.Module:
    """The module as one of `kind`, some of its fields replaced; no `__init__` and no check of another one runs."""
    copy = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if field.name in changes or hasattr(module, field.name):
            object.__setattr__(copy, field.name, changes.get(field.name, getattr(module, field.name, None)))
    return copy
