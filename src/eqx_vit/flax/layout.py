"""Which axis of a batch holds the channels, and how many there are."""

import dataclasses
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from eqx_vit.layers.config import no_type_check
from eqx_vit.registry import AnyConfig

Batch: TypeAlias = (
    Float[Array, "batch height width channels"]
    | Float[np.ndarray, "batch height width channels"]
    | Float[Array, "batch channels height width"]
    | Float[np.ndarray, "batch channels height width"]
)


@no_type_check
def read_channels(images: Batch | jax.ShapeDtypeStruct, config: AnyConfig) -> tuple[int, AnyConfig]:
    """The axis of the channels of a batch of images, 1 or 3, and the config with their number of channels.

    The reading whose channel count is the config's decides; where neither or both have it, the one whose size the
    config takes. Plain channels-last batches of another channel count are taken as they are: the count is inferred.

    **Raises:** `ValueError` for what is not such a batch; naming both readings where none fits, or where both do.
    """
    is_array = isinstance(images, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    if not is_array or len(images.shape) != 4 or 0 in images.shape:
        if is_array:
            given = f"shape {images.shape}: one image is a batch of one"
        else:
            given = f"a {type(images).__name__}: convert it with jnp.asarray"
        raise ValueError(f"images must be an array of (batch, height, width, channels), given {given}")
    shape = images.shape
    axis = _find_axis(shape, config)
    same = shape[axis] == config.channels
    return axis, config if same else dataclasses.replace(config, channels=shape[axis])


def _find_axis(shape: tuple[int, ...], config: AnyConfig) -> int:
    last = _explain_refusal(config, shape[1:3])
    first = _explain_refusal(config, shape[2:4])
    if (last is None) != (first is None):
        return 3 if last is None else 1
    if last is not None:
        raise ValueError(
            f"images of shape {shape} fit in no layout: read channels-last, {last}; read channels-first, {first}"
        )
    counts = (shape[3] == config.channels, shape[1] == config.channels)
    if counts[0] == counts[1] and shape[1] <= shape[3]:
        raise ValueError(
            f"images of shape {shape} fit in both layouts: as {shape[1:3]} images of {shape[3]} channels, and as "
            f"{shape[2:4]} images of {shape[1]} channels; give channels=... or move the axis with jnp.moveaxis"
        )
    return 1 if counts[1] and not counts[0] else 3


def _explain_refusal(config: AnyConfig, size: tuple[int, ...]) -> str | None:
    """Why the config takes no images of this size, or None where it does."""
    try:
        config.check_image_size(*size)
    except ValueError as error:
        return str(error)
    return None
