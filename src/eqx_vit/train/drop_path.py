"""Drop-path rates that differ between models which are trained as one program."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from eqx_vit.layers import DropPath, Stack


def scale_drop_path(model: PyTree, factor: Float[Array, ""], depths: tuple[int, ...] = ()) -> PyTree:
    """The model with each drop-path rate times a factor of 0 to 1; it stays a model of the same config.

    `depths` of the stacks around `model`: an array in a stack has an axis for each.
    """

    def scale(node: PyTree) -> PyTree:
        if isinstance(node, Stack):
            block = scale_drop_path(node.block, factor, (*depths, node.depth))
            return eqx.tree_at(lambda stack: stack.block, node, block)
        if isinstance(node, DropPath):
            spread = jnp.broadcast_to(factor, depths)
            return eqx.tree_at(lambda drop: drop.factor, node, spread, is_leaf=lambda leaf: leaf is None)
        return node

    return jax.tree.map(scale, model, is_leaf=lambda node: isinstance(node, Stack | DropPath))
