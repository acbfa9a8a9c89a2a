"""Cheap functions that the backward pass computes again, instead of keeping what is inside them."""

import functools
from typing import Any

import jax


def recomputed(*static: int) -> Any:
    """A decorator: of the function's insides nothing is kept for the backward pass, only its arguments.

    A training step on a CPU spends much of its time on memory that it touches for the first time, and a scan copies
    all that it keeps. `static` are the positions of arguments that are no arrays.
    """
    # Nothing has to stop the compiler from merging both computations: within a scan it cannot.
    return functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=static)
