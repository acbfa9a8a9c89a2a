"""Convolutions of one height x width x channels map: ordinary, strided, grouped and depthwise."""

import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.config import pair
from eqx_vit.layers.init import Initializer, fan_in_uniform
from eqx_vit.layers.precision import widened
from eqx_vit.layers.recompute import dear, lean

Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: Float[Array, "height width in"],
    weight: Float[Array, "out in_per_group kernel_height kernel_width"],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    groups: int = 1,
) -> Float[Array, "new_height new_width out"]:
    """The 2-D convolution (cross-correlation) of one map, zeros padded (before, after) on each axis.

    XLA's CPU backend has fast kernels for ordinary convolutions, strided ones included, but not for depthwise ones and
    their gradients: those are written out as sums of products, which XLA fuses into one loop on every backend.
    """
    if groups == x.shape[-1] > 1:
        disjoint = stride == weight.shape[2:] and padding == ((0, 0), (0, 0))
        return dear(_sum_of_blocks(x, weight) if disjoint else _sum_of_shifts(x, weight, stride, padding))
    y = jax.lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=stride,
        padding=padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=groups,
    )
    return dear(y[0])


@lean  # else the shifted maps are kept, one for each element of the kernel
def _sum_of_shifts(
    x: Float[Array, "height width in"],
    weight: Float[Array, "out 1 kernel_height kernel_width"],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "new_height new_width out"]:
    """A depthwise convolution: for each element of the kernel, the map shifted (and strided) times the weights."""
    taps = rearrange(widened(weight), "c 1 h w -> h w c")
    return _correlate(jnp.pad(_repeated(widened(x), taps.shape[-1]), (*padding, (0, 0))), taps, stride).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _correlate(
    x: Float[Array, "height width channels"],
    taps: Float[Array, "kernel_height kernel_width channels"],
    stride: tuple[int, int],
) -> Float[Array, "new_height new_width channels"]:
    last_row, last_column = x.shape[0] - taps.shape[0], x.shape[1] - taps.shape[1]

    def product(row: int, column: int) -> Array:
        limits = (row + last_row + 1, column + last_column + 1, x.shape[-1])
        shifted = jax.lax.slice(x, (row, column, 0), limits, (*stride, 1))
        return shifted * jnp.broadcast_to(taps[row, column], shifted.shape)

    return functools.reduce(jnp.add, itertools.starmap(product, np.ndindex(taps.shape[:2])))


@_correlate.defjvp
def _correlate_jvp(stride: tuple[int, int], primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The map's tangent is a sum of padded maps, whose transpose is a sum of slices: the other way XLA is slow."""
    (x, taps), (x_tangent, taps_tangent) = primals, tangents
    height, width = taps.shape[0] - 1, taps.shape[1] - 1

    def product(row: int, column: int) -> Array:
        shifts = ((height - row, row), (width - column, column), (0, 0))
        return jnp.pad(x_tangent * jnp.broadcast_to(taps[row, column], x.shape), shifts)

    whole = functools.reduce(jnp.add, itertools.starmap(product, np.ndindex(taps.shape[:2])))
    inside = jax.lax.slice(whole, (height, width, 0), x.shape, (*stride, 1))
    return _correlate(x, taps, stride), inside + _correlate(x, taps_tangent, stride)


def _sum_of_blocks(
    x: Float[Array, "height width in"], weight: Float[Array, "out 1 kernel_height kernel_width"]
) -> Float[Array, "new_height new_width out"]:
    """A depthwise convolution whose kernel is its stride: a weighted sum over each block of the map."""
    channels, _, height, width = weight.shape
    whole = widened(x)[: x.shape[0] // height * height, : x.shape[1] // width * width]
    blocks = rearrange(_repeated(whole, channels), "(a h) (b w) c -> a b h w c", h=height, w=width)
    weights = rearrange(widened(weight), "c 1 h w -> 1 1 h w c")
    return jnp.sum(blocks * jnp.broadcast_to(weights, blocks.shape), axis=(2, 3)).astype(x.dtype)


def _repeated(x: Float[Array, "height width in"], channels: int) -> Float[Array, "height width out"]:
    """Each channel as often as it has filters; they lie side by side."""
    return repeat(x, "h w c -> h w (c filters)", filters=channels // x.shape[-1])


class Conv(eqx.Module):
    """A 2-D convolution; the weight is `(out, in / groups, height, width)` as in Equinox and PyTorch.

    `padding` is one number for all sides, one for each axis, or (before, after) for each axis; zeros are padded.
    `groups == in_channels` is a depthwise convolution. The default initialisation is PyTorch's, weight and bias.
    """

    weight: Float[Array, "out in_per_group kernel_height kernel_width"]
    bias: Float[Array, " out"] | None
    stride: tuple[int, int] = eqx.field(static=True)
    padding: tuple[tuple[int, int], tuple[int, int]] = eqx.field(static=True)
    groups: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        groups: int = 1,
        use_bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        key: PRNGKeyArray,
    ) -> None:
        height, width = pair(kernel_size)
        default = fan_in_uniform(in_channels // groups * height * width)
        self.weight = (weight_init or default)(key, (out_channels, in_channels // groups, height, width))
        # Folded in, not split: a bias never changes what the weight draws.
        self.bias = (bias_init or default)(jax.random.fold_in(key, 1), (out_channels,)) if use_bias else None
        self.stride = pair(stride)
        top_bottom, left_right = (padding, padding) if isinstance(padding, int) else padding
        self.padding = (pair(top_bottom), pair(left_right))
        self.groups = groups

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "new_height new_width out"]:
        y = convolve(x, self.weight, stride=self.stride, padding=self.padding, groups=self.groups)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)
