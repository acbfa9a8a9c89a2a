"""Operations written as others, where jax2onnx or ONNX Runtime lacks what JAX has."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from eqx_vit.layers.config import no_type_check


@no_type_check
def pad(x: Array, value: Array | np.ndarray, *, padding_config: Sequence[tuple[int, int, int]]) -> Array:
    """`jax.lax.pad` as concatenations: jax2onnx 0.17 pads no array whose batch is dynamic.

    **Raises:** `ValueError` for padding between the elements.
    """
    for axis, (before, after, between) in enumerate(padding_config):
        if between:
            raise ValueError("jax.lax.pad between the elements of an array has no form in ONNX")
        if min(before, after) < 0:
            x = jax.lax.slice_in_dim(x, max(-before, 0), x.shape[axis] - max(-after, 0), axis=axis)
        shapes = [(*x.shape[:axis], count, *x.shape[axis + 1 :]) for count in (before, after)]
        start, end = ([jnp.broadcast_to(value, shape)] if shape[axis] > 0 else [] for shape in shapes)
        x = jnp.concatenate([*start, x, *end], axis) if start or end else x
    return x


@no_type_check
def reduce_window_max(
    x: Array,
    *,
    window_dimensions: tuple[int, ...],
    window_strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    base_dilation: tuple[int, ...],
    window_dilation: tuple[int, ...],
) -> Array:
    """The largest value of each window, one axis after the other: ONNX Runtime pools three axes at most.

    **Raises:** `ValueError` for windows with holes.
    """
    if set(base_dilation + window_dilation) != {1}:
        raise ValueError("jax.lax.reduce_window with dilation has no form in ONNX")
    for axis, (size, stride, around) in enumerate(zip(window_dimensions, window_strides, padding, strict=True)):
        if (size, stride, around) == (1, 1, (0, 0)):
            continue
        config = [(*(around if at == axis else (0, 0)), 0) for at in range(x.ndim)]
        padded = pad(x, np.array(-np.inf, dtype=x.dtype), padding_config=config)
        reach = (padded.shape[axis] - size) // stride * stride + 1
        slices = [jax.lax.slice_in_dim(padded, start, start + reach, stride, axis) for start in range(size)]
        x = slices[0]
        for other in slices[1:]:
            x = jnp.maximum(x, other)
    return x


FORMS = {"pad": pad, "reduce_window_max": reduce_window_max}
