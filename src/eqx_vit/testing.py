"""The helpers of our own test suite that a user's variant can use too: shapes without compilation, and the contract."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from eqx_vit.layers.config import pair

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
    if isinstance(model, eqx.nn.StatefulLayer):
        features, _ = eqx.filter_eval_shape(_features, model, image, state)
        logits, _ = eqx.filter_eval_shape(_logits, model, image, state)
    else:
        features = eqx.filter_eval_shape(_features, model, image)
        logits = eqx.filter_eval_shape(_logits, model, image)
    return _shape(features), _shape(logits)


def _features(model: Any, *arguments: Any) -> Any:
    return model.features(*arguments)


def _logits(model: Any, *arguments: Any) -> Any:
    return model(*arguments)


def _shape(tree: PyTree) -> Shapes:
    return tree.shape if isinstance(tree, jax.ShapeDtypeStruct) else tuple(_shape(part) for part in tree)


def image_size_of(config: Any, default: tuple[int, int] = (224, 224)) -> tuple[int, int]:
    """The (height, width) that a config is made for: its `image_size`, or `default` for models that take any size."""
    sizes = [getattr(config, field.name) for field in dataclasses.fields(config) if field.name == "image_size"]
    return pair(sizes[0]) if sizes else default
