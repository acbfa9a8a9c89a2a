"""A batch of images through a model: the only place that distinguishes models with BatchNorm from those without."""

import equinox as eqx
import jax
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import BATCH_AXIS, check_key
from eqx_vit.layers.config import no_type_check
from eqx_vit.paths import batch_norms
from eqx_vit.registry import AnyModel

Images = Float[Array, "batch height width channels"] | Float[np.ndarray, "batch height width channels"]


@no_type_check
def forward(
    model: AnyModel, state: State, images: Images, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, "batch classes"], State]:
    """A batch of images to logits, and the state after it: for models with and without BatchNorm alike.

    **Arguments:** `state` as `create` returned it; `images` of (batch, height, width, channels); `key` for active
    dropout, split over the images.

    **Raises:** `ValueError` for images that do not fit the config, a missing key, or a stateful model without the
    state that `create` returned beside it.
    """
    if not isinstance(images, jax.Array | np.ndarray) or images.ndim != 4 or images.shape[0] == 0:
        given = f"shape {images.shape}" if isinstance(images, jax.Array | np.ndarray) else f"a {type(images).__name__}"
        raise ValueError(
            f"forward takes an array of (batch, height, width, channels), given {given}: one image is a batch of one, "
            "image[None]"
        )
    keys = None if key is None else jax.random.split(check_key(key), images.shape[0])
    if not isinstance(model, eqx.nn.StatefulLayer):
        return jax.vmap(lambda image, key: model(image, key=key))(images, keys), state
    if not _state_matches(state, model):
        raise ValueError(
            f"{type(model).__name__} has BatchNorm, and is made and called with its state: "
            "model, state = eqx_vit.create(config, key=key)"
        )
    return jax.vmap(
        lambda state, image, key: model(image, state, key=key),
        in_axes=(None, 0, 0),
        out_axes=(0, None),
        axis_name=BATCH_AXIS,
    )(state, images, keys)


def _state_matches(state: object, model: AnyModel) -> bool:
    """Whether the state is the one that `create` made beside the model: neither holds the other's part."""
    norms = [norm for _, norm in batch_norms(model)]
    if not isinstance(state, State) or any(jax.tree.leaves(norm.statistics) for norm in norms):
        return False
    try:
        state.substate(model)
    except KeyError:
        return False
    return True
