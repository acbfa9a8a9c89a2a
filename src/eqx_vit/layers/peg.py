"""The positional encoding generator: positions from a depthwise convolution."""

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.conv import Conv, convolve
from eqx_vit.layers.init import Initializer
from eqx_vit.layers.linear import add_bias


class PEG(eqx.Module):
    """Conditional positions (Chu et al., arXiv 2102.10882): a depthwise convolution with a residual.

    Zero padding tells the tokens where they are. The official codes do not decay its weight: hence no `Conv` inside,
    which `decay_mask` would find.
    """

    weight: Float[Array, "dim 1 kernel_height kernel_width"]
    bias: Float[Array, " dim"] | None

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        *,
        use_bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `dim`: channels of the map; `kernel_size`: odd, so that the map keeps its size; `use_bias`,
        `weight_init`, `bias_init` as `Conv` takes them.
        """
        conv = Conv(
            dim,
            dim,
            kernel_size,
            groups=dim,
            use_bias=use_bias,
            weight_init=weight_init,
            bias_init=bias_init,
            key=key,
        )
        self.weight = conv.weight
        self.bias = conv.bias

    def __call__(self, x: Float[Array, "height width dim"]) -> Float[Array, "height width dim"]:
        dim, _, height, width = self.weight.shape
        padding = ((height // 2, height // 2), (width // 2, width // 2))
        y = x + convolve(x, self.weight, padding=padding, groups=dim)
        return add_bias(y, self.bias)
