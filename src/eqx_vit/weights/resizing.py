"""Position tables for another image size, by the rule of the code that the weights come from.

A model's own `resize_spec` is the rule of its paper's code and of timm; other sources' are in `Checkpoints.resize`.
"""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from eqx_vit.layers.config import Size
from eqx_vit.paths import named_leaves
from eqx_vit.surgery import Model, rebuild, resize
from eqx_vit.weights.checkpoints import ResizeRule, find_checkpoints


def resize_from(model: Model, image_size: Size, source: str) -> Model:
    """The model for another image size, its position table resampled as `source` does it.

    **Raises:** `ValueError` for a size that the config refuses, and for models whose tables have no official rule.
    """
    rule = find_checkpoints(model.config).resize.get(source)
    if rule is None:
        return resize(model, image_size)
    config, changed = model.resize_spec(image_size)
    leaves, old, new = named_leaves(model), model.config.grid, config.grid
    return rebuild(model, config, {name: _resize_table(jnp.asarray(leaves[name]), old, new, rule) for name in changed})


def _resize_table(
    table: Float[Array, "old_tokens dim"], old: tuple[int, int], new: tuple[int, int], rule: ResizeRule
) -> Float[Array, "new_tokens dim"]:
    """A position table, row-major, whose rows for prefix tokens stay as they are."""
    prefix, patches = jnp.split(table, [table.shape[0] - old[0] * old[1]])
    grid = rule(rearrange(patches, "(rows columns) dim -> rows columns dim", rows=old[0]), new)
    return jnp.concatenate([prefix, rearrange(grid, "rows columns dim -> (rows columns) dim")])
