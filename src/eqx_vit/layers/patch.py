"""Cutting an image into patches, and embedding them."""

import equinox as eqx
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.init import Initializer, fan_in_uniform
from eqx_vit.layers.linear import Linear


def patchify(
    image: Float[Array, "height width channels"], patch_size: tuple[int, int]
) -> Float[Array, "rows columns pixels"]:
    """Non-overlapping patches, each flattened in the order patch height, patch width, channels."""
    height, width = patch_size
    return rearrange(image, "(rows ph) (columns pw) c -> rows columns (ph pw c)", ph=height, pw=width)


class PatchEmbedding(eqx.Module):
    """A convolution whose kernel is its stride, as reshape + matmul: the grid of embedded patches.

    The default initialisation is PyTorch's for convolutions, weight and bias.
    """

    linear: Linear
    patch_size: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        patch_size: tuple[int, int],
        channels: int,
        dim: int,
        *,
        use_bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        key: PRNGKeyArray,
    ) -> None:
        pixels = patch_size[0] * patch_size[1] * channels
        default = fan_in_uniform(pixels)
        self.linear = Linear(
            pixels,
            dim,
            use_bias=use_bias,
            weight_init=weight_init or default,
            bias_init=bias_init or default,
            key=key,
        )
        self.patch_size = patch_size

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "rows columns dim"]:
        return self.linear(patchify(image, self.patch_size))
