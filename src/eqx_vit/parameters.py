"""The parameters of a model: which there are, which decay, how many, and in which dtype."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from eqx_vit.layers import Buffer, Conv, Linear
from eqx_vit.layers.config import no_type_check, shorten
from eqx_vit.paths import is_array

Tree = TypeVar("Tree")


def trainable(model: PyTree) -> PyTree:
    """The parameters alone: every floating-point array but the buffers, None in all other places.

    For the optimiser, `optimiser.init(trainable(model))`, and for gradients, `trainable(gradients)`.
    """
    parameters = eqx.filter(model, lambda leaf: is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact))
    return jax.tree.map(
        lambda node: jax.tree.map(lambda _: None, node) if _is_buffer(node) else node, parameters, is_leaf=_is_buffer
    )


def decay_mask(model: PyTree) -> PyTree:
    """True for the parameters that weight decay should reach: the weights of linear maps and convolutions.

    Norms, biases, tokens, position tables and layer scales are False. Fits `trainable(model)`, as optax wants it:
    `optax.adamw(..., mask=decay_mask)`.
    """

    def mark(node: PyTree) -> PyTree:
        mask = jax.tree.map(lambda _: False, node)
        if _has_decayed_weight(node) and node.weight is not None:
            return eqx.tree_at(lambda layer: layer.weight, mask, True)
        return mask

    return jax.tree.map(mark, trainable(model), is_leaf=_has_decayed_weight)


def count_params(model: PyTree) -> int:
    """The number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(trainable(model)))


@no_type_check
def cast(model: Tree, dtype: DTypeLike) -> Tree:
    """The model with its floating-point arrays in another dtype, such as `jnp.bfloat16`.

    Softmax and normalisation statistics stay in float32; so does BatchNorm's state.

    **Raises:** `ValueError` for a dtype that is not floating-point.
    """
    try:
        floating = not is_array(dtype) and jnp.issubdtype(dtype, jnp.floating)
    except (TypeError, ValueError):
        floating = False
    if not floating:
        raise ValueError(f"cast takes a floating-point dtype such as jnp.bfloat16, given {shorten(dtype)}")
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, model)


def _is_buffer(node: object) -> bool:
    return isinstance(node, Buffer)


def _has_decayed_weight(node: object) -> bool:
    return isinstance(node, Linear | Conv | eqx.nn.Linear | eqx.nn.Conv)
