"""Position tables: fixed 2-D sine-cosine ones, and resizing learned ones to another grid."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from eqx_vit.layers.upcast import upcast


def sincos_2d(rows: int, columns: int, dim: int, *, temperature: float = 10_000.0) -> Float[Array, "rows columns dim"]:
    """The sine-cosine table of MoCo v3 and SimpleViT (arXiv 2205.01580): sin x, cos x, sin y, cos y, `dim / 4` each."""
    frequency = 1.0 / temperature ** (jnp.arange(dim // 4) / (dim // 4 - 1))
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    y, x = (jnp.einsum("hw,f->hwf", axis.astype(frequency.dtype), frequency) for axis in (y, x))
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)


def resize_grid(
    table: Float[Array, "rows columns dim"], grid: tuple[int, int], *, antialias: bool = True
) -> Float[Array, "new_rows new_columns dim"]:
    """Bicubic resizing with half-pixel centres and PyTorch's coefficients.

    `antialias=True` is timm's rule, `antialias=False` that of Hugging Face and of CrossViT's and T2T's official code.
    """
    if table.shape[:2] == grid:
        return table
    wide = upcast(table)
    method = jax.image.ResizeMethod.CUBIC_PYTORCH
    return jax.image.resize(wide, (*grid, table.shape[-1]), method, antialias=antialias).astype(table.dtype)


def resize_grid_corners(
    table: Float[Array, "rows columns dim"], grid: tuple[int, int]
) -> Float[Array, "new_rows new_columns dim"]:
    """Linear resizing that keeps the corners where they are: big_vision's rule, `scipy.ndimage.zoom(order=1)`."""
    down, across = (_corner_weights(*sizes) for sizes in zip(table.shape[:2], grid, strict=True))
    return jnp.einsum("rR,cC,RCd->rcd", down, across, upcast(table)).astype(table.dtype)


def _corner_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    distance = np.linspace(0, old - 1, new)[:, None] - np.arange(old)[None]
    return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)


def resize_table(
    table: Float[Array, "positions dim"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    antialias: bool = True,
) -> Float[Array, "new_positions dim"]:
    """`resize_grid` for a row-major table whose leading entries (class token, registers) belong to no patch."""
    prefix = table.shape[0] - old_grid[0] * old_grid[1]
    grid = rearrange(table[prefix:], "(rows columns) dim -> rows columns dim", rows=old_grid[0])
    resized = resize_grid(grid, new_grid, antialias=antialias)
    return jnp.concatenate([table[:prefix], rearrange(resized, "rows columns dim -> (rows columns) dim")])
