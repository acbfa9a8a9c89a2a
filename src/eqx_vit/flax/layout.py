"""Which axis of a batch holds the channels, and how many there are."""

from typing import Any

import jax.numpy as jnp


def channels_last(images: Any, config: Any) -> Any:
    """A batch of images as (batch, height, width, channels), whichever of the two layouts it came in.

    The reading whose channel count is the config's decides; where neither or both have it, the one whose size the
    config takes. Plain channels-last batches of another channel count are taken as they are: the count is inferred.

    **Raises:** `ValueError` that names both readings where none fits, or where both do.
    """
    shape = jnp.shape(images)
    if len(shape) != 4:
        raise ValueError(
            f"images must be (batch, height, width, channels), given shape {shape}: one image is a batch of one"
        )
    last = _refusal(config, shape[1:3])
    first = _refusal(config, shape[2:4])
    match (last is None, first is None):
        case (True, False):
            return images
        case (False, True):
            return jnp.moveaxis(images, 1, -1)
        case (False, False):
            raise ValueError(
                f"images of shape {shape} fit in no layout: read channels-last, {last}; read channels-first, {first}"
            )
    counts = (shape[3] == config.channels, shape[1] == config.channels)
    if counts[0] == counts[1] and shape[1] <= shape[3]:
        raise ValueError(
            f"images of shape {shape} fit in both layouts: as {shape[1:3]} images of {shape[3]} channels, and as "
            f"{shape[2:4]} images of {shape[1]} channels; give channels=... or move the axis with jnp.moveaxis"
        )
    return jnp.moveaxis(images, 1, -1) if counts[1] and not counts[0] else images


def _refusal(config: Any, size: tuple[int, int]) -> str | None:
    """Why the config takes no images of this size, or None where it does."""
    try:
        config.check_image_size(*size)
    except ValueError as error:
        return str(error)
    return None
