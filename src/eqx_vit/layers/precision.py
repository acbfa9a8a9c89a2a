"""Softmax and statistics run in at least float32, whatever the compute dtype."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def wide_dtype(dtype: Any) -> Any:
    """`dtype`, or float32 where that is wider."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def widened(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in at least float32."""
    return x.astype(wide_dtype(x.dtype))
