"""The helpers of our own test suite that a user's variant can use too: shapes without compilation, and the contract."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Shapes = Any


def shapes(model_class: Any, config: Any, image_size: tuple[int, int]) -> tuple[Shapes, Shapes]:
    """(shape of `features`, shape of the logits) of a model for one image of (height, width).

    Nothing is compiled and no memory taken (`jax.eval_shape`), so hundreds of configurations cost seconds: made for
    property tests. `features` that come as several arrays give a tuple of shapes.

    **Raises:** whatever building or calling the model raises.
    """
    image = jax.ShapeDtypeStruct((*image_size, config.channels), jnp.float32)
    model: Any
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(model_class), config, key=jax.random.key(0))
    model = eqx.nn.inference_mode(model)
    if not isinstance(model, eqx.nn.StatefulLayer):
        return _shape(eqx.filter_eval_shape(_call, model.features, image)), _shape(
            eqx.filter_eval_shape(_call, model, image)
        )
    features, _ = eqx.filter_eval_shape(_call, model.features, image, state)
    logits, _ = eqx.filter_eval_shape(_call, model, image, state)
    return _shape(features), _shape(logits)


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def _shape(tree: PyTree) -> Shapes:
    return tree.shape if isinstance(tree, jax.ShapeDtypeStruct) else tuple(_shape(part) for part in tree)
