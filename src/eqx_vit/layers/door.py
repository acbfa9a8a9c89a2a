"""The door of every model: an image that does not fit is refused before anything runs, in words that say what to do."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eqx_vit.layers.drop import REMEDIES, is_live


def image_door(method: Callable[..., Any]) -> Callable[..., Any]:
    """Check and cast the image, and the key, of a model's `method(self, image, *rest, key=None)`.

    The image becomes a JAX array of the parameters' dtype (numpy images are taken). `self.config` must have `channels`
    and `check_image_size(height, width)`. Where no dropout is live the key is dropped, so that it costs nothing.

    **Raises:** `ValueError` for a wrong rank, axis order, channel count, dtype or size, and for a missing key.
    """

    @functools.wraps(method)
    def checked(self: Any, image: Any, *rest: Any, key: Any = None) -> Any:
        name = type(self).__name__
        image = admit_image(image, self.config, name).astype(parameter_dtype(self))
        live = is_live(self)
        if live and key is None:
            raise ValueError(f"{name} has live dropout and got no key: {REMEDIES}")
        return method(self, image, *rest, key=key if live else None)

    return checked


def parameter_dtype(model: Any) -> Any:
    """The dtype of a model's first floating-point array: the dtype it computes in."""
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))[0].dtype


def admit_image(image: Any, config: Any, name: str) -> Float[Array, "height width channels"]:
    """The image as a JAX array, or the `ValueError` that says what does not fit and what would."""
    expected = f"{name} takes one float image of (height, width, {config.channels})"
    if not isinstance(image, jax.Array | np.ndarray):
        raise ValueError(f"{expected}, given a {type(image).__name__}: convert it with jnp.asarray")
    fix = _rank_or_channels(image.shape, config.channels)
    if fix:
        raise ValueError(f"{expected}, given shape {image.shape}: {fix}")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"{expected}, given dtype {image.dtype}: scale it first, e.g. image.astype('float32') / 255")
    config.check_image_size(*image.shape[:2])
    return jnp.asarray(image)


def _rank_or_channels(shape: tuple[int, ...], channels: int) -> str | None:
    match shape:
        case (_, _, last) if last == channels:
            return None
        case (first, _, _) if first == channels:
            return "looks channels-first, use jnp.moveaxis(image, 0, -1)"
        case (_, _, last):
            return f"its last axis has {last} channels, the config says channels={channels}"
        case (_, _, _, last) if last == channels:
            return "looks batched, use jax.vmap(model)(images) or eqx_vit.forward(model, state, images)"
        case (_, first, _, _) if first == channels:
            return "looks batched and channels-first, use jax.vmap(model)(jnp.moveaxis(images, 1, -1))"
        case (_, _):
            return "the channel axis is missing, use image[..., None] and channels=1"
    return f"it has {len(shape)} axes"
