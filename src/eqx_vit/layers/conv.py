"""Convolutions of one height x width x channels map: ordinary, strided, grouped and depthwise."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.config import pair
from eqx_vit.layers.init import Initializer, fan_in_uniform
from eqx_vit.layers.precision import widened

Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: Float[Array, "height width in"],
    weight: Float[Array, "out in_per_group kernel_height kernel_width"],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    groups: int = 1,
) -> Float[Array, "new_height new_width out"]:
    """The 2-D convolution (cross-correlation) of one map, zeros padded (before, after) on each axis."""
    if groups == x.shape[-1] > 1:
        return _depthwise(x, weight, stride, padding)
    return jax.lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=stride,
        padding=padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=groups,
    )[0]


def _depthwise(
    x: Float[Array, "height width in"],
    weight: Float[Array, "out 1 kernel_height kernel_width"],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "new_height new_width out"]:
    """One channel at a time, as a sum over the kernel's places; output `o` reads input `o // (out / in)`.

    XLA's own takes seconds for the gradient of one small layer on a CPU, hundreds of times as long as this.
    """
    out, _, height, width = weight.shape
    taps = widened(weight.reshape(x.shape[-1], -1, height, width))
    padded = widened(jnp.pad(x, (*padding, (0, 0))))
    rows = (padded.shape[0] - height) // stride[0] + 1
    columns = (padded.shape[1] - width) // stride[1] + 1
    total = jnp.zeros((rows, columns, *taps.shape[:2]), dtype=taps.dtype)
    for row in range(height):
        for column in range(width):
            seen = padded[row : row + rows * stride[0] : stride[0], column : column + columns * stride[1] : stride[1]]
            total = total + seen[:rows, :columns, :, None] * taps[None, None, :, :, row, column]
    return total.reshape(rows, columns, out).astype(x.dtype)


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
