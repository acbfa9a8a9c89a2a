"""Marks on the values that `eqx_vit.observe` is asked for: what a module returns, and the weights of its attention.

A mark is an operation that does nothing. `observe` traces the model, finds the marks and takes them out again: none is
left in a program, and a model that is not observed has none.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import batching
from jaxtyping import Array, Float, PyTree

mark_p = Primitive("mark")
mark_p.multiple_results = True


class AttentionMarks(NamedTuple):
    """The names under which the attention that is being called marks its weights; None: not at all."""

    weights: str | None = None  # all of them
    first_row: str | None = None  # those of the first query, which is the class token where there is one


NO_MARKS = AttentionMarks()
_attention_marks: ContextVar[AttentionMarks] = ContextVar("attention_marks", default=NO_MARKS)


def mark(tree: PyTree[Array], name: str) -> PyTree[Array]:
    """The arrays of the tree, marked as one value called `name`."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, mark_p.bind(*leaves, name=name, structure=structure))


@contextmanager
def mark_attention(names: AttentionMarks) -> Iterator[None]:
    """Within it, attention marks its weights under these names."""
    token = _attention_marks.set(names)
    try:
        # A part of what JAX keeps the trace of a jitted function by: none with other marks stands for this one.
        with set_xla_metadata(observed=str(tuple(names))):
            yield
    finally:
        _attention_marks.reset(token)


def attention_marks() -> AttentionMarks:
    """The names in force."""
    return _attention_marks.get()


def mark_weights(weights: Float[Array, "heads queries keys"]) -> Float[Array, "heads queries keys"]:
    """The weights of an attention, marked where they, or their first row, are asked for."""
    names = attention_marks()
    if names.first_row is not None:
        weights = weights.at[:, 0].set(mark(weights[:, 0], names.first_row))
    return weights if names.weights is None else mark(weights, names.weights)


@mark_p.def_impl
def _do_nothing(*leaves: Array, **_: object) -> Sequence[Array]:
    return leaves


@mark_p.def_abstract_eval
def _same(*leaves: object, **_: object) -> Sequence[object]:
    return leaves


def _mark_batch(leaves: Sequence[Array], axes: Sequence[int | None], **params: object) -> tuple[list[Array], list]:
    """A mark inside `jax.vmap` is of all elements: their axis comes first, whatever axis JAX has put it on."""
    moved = [leaf if axis is None else jnp.moveaxis(leaf, axis, 0) for leaf, axis in zip(leaves, axes, strict=True)]
    return mark_p.bind(*moved, **params), [axis if axis is None else 0 for axis in axes]


batching.primitive_batchers[mark_p] = _mark_batch
