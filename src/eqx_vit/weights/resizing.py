"""Position tables for another image size, by the rule of the code that the weights come from.

A model's own `resized` is the rule of its paper's code and of timm; the table below holds the sources that do it
otherwise.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from einops import rearrange

from eqx_vit.layers import resize_grid, resize_grid_corners
from eqx_vit.models.parallel_vit import ParallelViTConfig, ParallelViTHMLPConfig
from eqx_vit.models.simple_vit import SimpleViTConfig
from eqx_vit.models.vit import ViTConfig
from eqx_vit.surface import rebuilt, resize

_bicubic = functools.partial(resize_grid, antialias=False)

# Rules for a map of (rows, columns, dim) that becomes one of another (rows, columns).
RULES: Mapping[tuple[Any, str], Callable[[Any, tuple[int, int]], Any]] = {
    (ViTConfig, "official"): _bicubic,  # facebookresearch/deit, which is older than antialiasing in PyTorch
    (ParallelViTConfig, "official"): _bicubic,
    (ParallelViTHMLPConfig, "official"): _bicubic,
    (ViTConfig, "hf"): _bicubic,
    (ViTConfig, "flax"): resize_grid_corners,  # google-research: scipy.ndimage.zoom
    (SimpleViTConfig, "timm"): resize_grid,
}


def resized(model: Any, image_size: int | tuple[int, int], source: str) -> Any:
    """The model for another image size, its position table resampled as `source` does it.

    **Raises:** `ValueError` for a size that the config refuses, and for models whose tables have no official rule.
    """
    rule = RULES.get((type(model.config), source))
    if rule is None:
        return resize(model, image_size)
    config, changed = model.resized(image_size)
    if "position_embedding" in changed:
        rows, columns = model.config.grid
        table = model.position_embedding
        prefix, patches = table[: table.shape[0] - rows * columns], table[table.shape[0] - rows * columns :]
        grid = rule(rearrange(patches, "(rows columns) dim -> rows columns dim", rows=rows), config.grid)
        flat = rearrange(grid, "rows columns dim -> (rows columns) dim")
        changed = {"position_embedding": jnp.concatenate([prefix, flat])}
    return rebuilt(model, config, changed)
