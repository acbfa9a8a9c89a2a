"""Convolutions of one height x width x channels map: ordinary, strided, grouped and depthwise."""

import functools

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import kernels
from eqx_vit.layers.config import pair
from eqx_vit.layers.init import Initializer, fan_in_uniform
from eqx_vit.layers.linear import add_bias
from eqx_vit.layers.remat import save_for_backward

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
    correlate = functools.partial(_correlate, stride=stride, padding=padding, groups=groups)
    if groups == x.shape[-1] > 1:
        y = kernels.convolve_depthwise(x, weight, stride=stride, padding=padding, default=correlate)
    else:
        y = correlate(x, weight)
    return save_for_backward(y)


def _correlate(
    x: Float[Array, "height width in"],
    weight: Float[Array, "out in_per_group kernel_height kernel_width"],
    *,
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    groups: int,
) -> Float[Array, "new_height new_width out"]:
    y = jax.lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=stride,
        padding=padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=groups,
    )
    return y[0]


class Conv(eqx.Module):
    """A 2-D convolution; the weight is `(out, in / groups, height, width)` as in Equinox and PyTorch."""

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
        """**Arguments:**

        - `in_channels`, `out_channels`; `kernel_size` and `stride`, one number or (height, width).
        - `padding`: zeros on all sides, on those of each axis, or (before, after) for each axis.
        - `groups`: of channels that do not mix; `in_channels` of them make a depthwise convolution.
        - `use_bias`: whether there is a bias.
        - `weight_init`, `bias_init`: functions of (key, shape), where None is PyTorch's default.
        """
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
        return add_bias(y, self.bias)
