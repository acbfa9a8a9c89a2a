"""Cutting an image into patches, overlapping or not, and embedding them."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
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


def unfold(
    image: Float[Array, "height width channels"], kernel: int, stride: int, padding: int
) -> Float[Array, "rows columns pixels"]:
    """Overlapping patches over a zero-padded image, each flattened in the order patch height, patch width, channels.

    What is left beyond the last whole patch is cut off, as in PyTorch's `Unfold`.
    """
    height, width, _ = image.shape
    rows, columns = unfolded_size((height, width), kernel, stride, padding)
    strips = _windows(image, rows, kernel, stride, padding)
    patches = _windows(rearrange(strips, "rows ph width c -> width rows ph c"), columns, kernel, stride, padding)
    return rearrange(patches, "columns pw rows ph c -> rows columns (ph pw c)")


def unfolded_size(size: tuple[int, int], kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """(rows, columns) of the patches that `unfold` makes of an image of (height, width)."""
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    return rows, columns


def _windows(
    x: Float[Array, " side *rest"], count: int, kernel: int, stride: int, padding: int
) -> Float[Array, " count kernel *rest"]:
    """Windows along the first axis: neighbouring blocks of `stride` side by side, a reshape instead of a gather."""
    shifts = math.ceil(kernel / stride)
    after = (count + shifts - 1) * stride - x.shape[0] - padding  # negative: cut off
    edges = [(padding, after, 0), *[(0, 0, 0)] * (x.ndim - 1)]
    blocks = jax.lax.pad(x, jnp.zeros((), dtype=x.dtype), edges).reshape(-1, stride, *x.shape[1:])
    return jnp.concatenate([blocks[shift : shift + count] for shift in range(shifts)], axis=1)[:, :kernel]


def flatten_map(x: Float[Array, "*positions dim"], grid: tuple[int, int], dim: int) -> Float[Array, "tokens dim"]:
    """The map that a patch embedding made, as tokens row by row.

    **Raises:** `ValueError` for another than of (rows, columns, dim), or these tokens: of a user's own embedding.
    """
    rows, columns = grid
    if x.shape not in ((rows, columns, dim), (rows * columns, dim)):
        axes = "(rows, columns, dim)"
        raise ValueError(f"the patch embedding must make a map of {axes} = {(rows, columns, dim)}, and made {x.shape}")
    return x.reshape(-1, dim)


class PatchEmbedding(eqx.Module):
    """A convolution whose kernel is its stride, as reshape + matmul: the grid of embedded patches."""

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
        """**Arguments:** `patch_size`: (height, width) in pixels; `channels` of the image; `dim`: width of a token;
        `use_bias`: whether there is a bias; `weight_init`, `bias_init`: functions of (key, shape), where None is
        PyTorch's default for convolutions.
        """
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
