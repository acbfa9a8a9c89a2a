"""What the backward pass keeps, and what it computes again.

Of a block in a scan only what is expensive to compute is kept: products with weights, attention outputs, statistics,
random bits. Norms, activations and attention weights are computed again. Measured on a CPU, where a training step
spends much of its time on memory that it touches for the first time, and a scan copies all that it keeps; on every
backend it bounds the memory of a step.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import equinox as eqx
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def save_for_backward(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """`x`, which functions under `remat_except_saved` keep for the backward pass."""
    return checkpoint_name(x, "residual")


def remat_except_saved(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, of whose values only those given to `save_for_backward` are kept for the backward pass."""
    # Nothing has to stop the compiler from merging both computations: within a scan it cannot.
    policy = jax.checkpoint_policies.save_only_these_names("residual")
    return eqx.filter_checkpoint(function, policy=policy, prevent_cse=False)
