"""The shapes of features and logits, without compilation."""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, PyTree

from eqx_vit.arguments import check_arguments
from eqx_vit.registry import AnyConfig, AnyModel

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Shape | tuple[Shape, ...]


@check_arguments
def shapes(model_class: type[AnyModel], config: AnyConfig, image_size: tuple[int, int]) -> tuple[Shapes, Shape]:
    """(shape of `features`, shape of the logits) of a model for one image of (height, width).

    Nothing is compiled and no memory taken (`jax.eval_shape`), so hundreds of configurations cost seconds: made for
    property tests. `features` that come as several arrays give a tuple of shapes.

    **Raises:** whatever building or calling the model raises.
    """
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(model_class), config, key=jax.random.key(0))
    return shapes_of(model, state, image_size)


def shapes_of(model: AnyModel, state: State, image_size: tuple[int, int]) -> tuple[Shapes, Shape]:
    """`shapes` of a model that exists, with arrays or with shapes in place of them."""

    def call(model: AnyModel, image: Array, state: State) -> tuple[PyTree, Array]:
        model = eqx.nn.inference_mode(model)
        return model.features(image, state)[0], model(image, state)[0]

    image = jax.ShapeDtypeStruct((*image_size, model.config.channels), jnp.float32)
    features, logits = eqx.filter_eval_shape(call, model, image, state)
    return _shape_of(features), logits.shape


def _shape_of(features: PyTree) -> Shapes:
    is_array = isinstance(features, jax.ShapeDtypeStruct)
    return features.shape if is_array else tuple(part.shape for part in features)
