"""What the backward pass keeps, and what it computes again.

A training step on a CPU spends much of its time on memory that it touches for the first time, and a scan copies all
that it keeps. So of a block in a scan only what is dear to compute is kept: matrix products, convolutions, sums,
softmax and random bits. Norms and activations are computed again, in the loops that use them.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jaxtyping import Array, Shaped

_DEAR = {"dot_general", "conv_general_dilated", "reduce_sum", "reduce_max", "name"}


def lean(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of whose insides only what is dear to compute is kept for the backward pass."""
    # Nothing has to stop the compiler from merging both computations: within a scan it cannot.
    return eqx.filter_checkpoint(function, policy=_is_dear, prevent_cse=False)


def _is_dear(primitive: Primitive, *_: Any, **__: Any) -> bool:
    return primitive.name in _DEAR


def dear(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """`x`, which `lean` keeps."""
    return checkpoint_name(x, "dear")


def recomputed(*static: int) -> Any:
    """A decorator: of the function's insides nothing is kept for the backward pass, only its arguments.

    `static` are the positions of arguments that are no arrays.
    """
    return functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=static)
