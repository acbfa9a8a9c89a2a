"""What of a model is exported: the function of a batch of images that gives its logits in inference, weights inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jax.core import Tracer
from jaxtyping import Array, Float

from eqx_vit.files import is_finite
from eqx_vit.forward import forward
from eqx_vit.inputs import check_state
from eqx_vit.layers.config import Size, list_some, no_type_check, pair
from eqx_vit.parameters import cast
from eqx_vit.paths import named_leaves
from eqx_vit.registry import AnyModel, find_architecture
from eqx_vit.surgery import find_ensemble_size

Batch = int | Literal["dynamic"]
DYNAMIC_BATCHES = (1, 3)  # the sizes at which a program for any batch is tried


@dataclass(frozen=True, eq=False)
class Program:
    """A model in inference mode and its state, and the images that it is exported for."""

    model: AnyModel
    state: State
    batch: Batch
    image_size: tuple[int, int]

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        return forward(self.model, self.state, images)[0]

    def describe_images(self) -> jax.ShapeDtypeStruct:
        """The images' shape; of a dynamic batch its first axis is a new symbol of `jax.export`."""
        batch = jax.export.symbolic_shape("batch")[0] if self.batch == "dynamic" else self.batch
        return jax.ShapeDtypeStruct((batch, *self.image_size, self.model.config.channels), jnp.float32)

    def make_examples(self) -> list[np.ndarray]:
        """A batch for each size that the program is tried at: noise, as bright and as varied as normalised pictures."""
        batches = DYNAMIC_BATCHES if self.batch == "dynamic" else (self.batch,)
        noise = np.random.default_rng(0)
        shape = (*self.image_size, self.model.config.channels)
        return [noise.standard_normal((batch, *shape), dtype=np.float32) for batch in batches]

    def compute(self, examples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The logits of the model in float32, at the highest precision of its products."""
        model = cast(self.model, jnp.float32)
        with jax.default_matmul_precision("highest"):
            return [np.asarray(_compute(model, self.state, jnp.asarray(images))) for images in examples]


@eqx.filter_jit
def _compute(model: AnyModel, state: State, images: Float[Array, "batch height width channels"]) -> Array:
    return forward(model, state, images)[0]


@no_type_check
def make_program(name: str, model: AnyModel, state: State, batch: Batch, image_size: Size | None) -> Program:
    """The program of a model; `name` is the function that was called.

    **Raises:** `ValueError` for a batch or size that cannot be, and a model that cannot be run: without values,
    with weights that are not finite, an ensemble, or with another's state.
    """
    find_architecture(model.config)
    if isinstance(batch, bool) or (batch != "dynamic" and batch < 1):
        raise ValueError(f"{name}: batch must be 'dynamic' or a number from 1 on, given {batch!r}")
    arrays = named_leaves(model)
    if any(isinstance(array, jax.ShapeDtypeStruct | Tracer) for array in arrays.values()):
        raise ValueError(f"{name} takes arrays with values: call it outside of jax.jit and eqx.filter_eval_shape")
    size = find_ensemble_size(model)
    if size is not None:
        raise ValueError(f"{name} takes one model, and this is an ensemble of {size}: export each of them")
    infinite = [key for key, array in arrays.items() if not is_finite(np.asarray(array))]
    if infinite:
        raise ValueError(f"{name}: the model has infinite or NaN weights: {list_some(infinite)}")
    check_state(model, state)
    height, width = pair(image_size or getattr(model.config, "image_size", 224))
    model.config.check_image_size(height, width)
    return Program(eqx.nn.inference_mode(model), state, batch, (height, width))
