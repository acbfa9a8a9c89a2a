"""What a model is called with, checked once before anything runs: the image, the key, the state, the mode it is in."""

from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from eqx_vit.layers import NO_KEY_HINT, BatchNorm, Dropout, DropPath, check_key, dropout_active, split_or_none
from eqx_vit.layers.config import no_type_check, pair, shorten
from eqx_vit.paths import batch_norms, named_statistics


class ImageConfig(Protocol):
    """What a config says of the images that its model takes."""

    @property
    def channels(self) -> int: ...

    def check_image_size(self, height: int, width: int) -> None: ...


@no_type_check
def prepare(
    model: PyTree, config: ImageConfig, image: object, key: PRNGKeyArray | None
) -> tuple[Float[Array, "height width channels"], PRNGKeyArray | None, PRNGKeyArray | None]:
    """The checked image in the dtype of the parameters, and a key each for `embed` and `encode`: None where nothing is
    random, so that it costs nothing.

    **Raises:** `ValueError` for an image that does not fit, and for active dropout without a key.
    """
    name = type(model).__name__
    array = check_image(image, config, name)
    check_modes(model)
    active = dropout_active(model)
    if key is not None:
        check_key(key)
    elif active:
        raise ValueError(f"{name} has active dropout and got no key: {NO_KEY_HINT}")
    embed_key, encode_key = split_or_none(key if active else None)
    return array.astype(parameter_dtype(model)), embed_key, encode_key


def check_modes(model: PyTree) -> None:
    """Raise `ValueError` where a layer's `inference` is an array: which branch is computed is chosen when tracing."""
    for node in jax.tree.leaves(model, is_leaf=has_mode):
        if has_mode(node) and not isinstance(node.inference, bool):
            raise ValueError(
                f"{type(node).__name__}.inference is an array: jax.jit, jax.lax.scan, jax.device_put or a jax.tree.map "
                "was given all leaves of the model; use eqx.filter_jit, or hand over the arrays alone: "
                "arrays, static = eqx.partition(model, eqx.is_array), and eqx.combine(arrays, static) inside"
            )


def has_mode(node: object) -> bool:
    """Whether a layer behaves differently in training and in inference."""
    return isinstance(node, Dropout | DropPath | BatchNorm)


def parameter_dtype(model: PyTree) -> np.dtype:
    """The dtype of a model's first floating-point array: the dtype it computes in.

    **Raises:** `ValueError` for a model without one.
    """
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    if not arrays:
        raise ValueError(
            f"this {type(model).__name__} has no floating-point parameters to compute with: those of "
            "eqx_vit.create_abstract are shapes, to load weights into, and integers are no parameters"
        )
    return arrays[0].dtype


@no_type_check
def check_image(image: object, config: ImageConfig, name: str) -> Float[Array, "height width channels"]:
    """The image as a JAX array, or the `ValueError` that says what does not fit and what would."""
    expected = f"{name} takes one float image of (height, width, {config.channels})"
    if isinstance(image, eqx.Module):
        raise ValueError(
            f"{expected}, given a {type(image).__name__}: optax calls a mask or labels that can be called, as a model "
            "can; pass it a function, lambda _: labels"
        )
    if not isinstance(image, jax.Array | np.ndarray):
        raise ValueError(f"{expected}, given a {type(image).__name__}: convert it with jnp.asarray")
    hint = _rank_or_channels_hint(image.shape, config.channels)
    if hint:
        raise ValueError(f"{expected}, given shape {image.shape}: {hint}")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"{expected}, given dtype {image.dtype}: scale it first, e.g. image.astype('float32') / 255")
    config.check_image_size(*image.shape[:2])
    return jnp.asarray(image)


def _rank_or_channels_hint(shape: tuple[int, ...], channels: int) -> str | None:
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


@no_type_check
def check_state(model: PyTree, state: object) -> State:
    """The state, or the `ValueError` for one that was not made with the model: neither holds the other's part."""
    name = type(model).__name__
    if not isinstance(state, State):
        has = "has BatchNorm, and " if isinstance(model, eqx.nn.StatefulLayer) else ""
        raise ValueError(
            f"{name} {has}is called with the state that eqx_vit.create returned beside it, given {shorten(state)}: "
            "logits, state = model(image, state), or eqx_vit.forward(model, state, images) for a batch"
        )
    if any(jax.tree.leaves(norm.statistics) for _, norm in batch_norms(model)):
        raise ValueError(f"this {name} was made without its state: model, state = eqx_vit.create(config, key=key)")
    named_statistics(model, state)
    return state


@no_type_check
def image_size_of(config: object, default: tuple[int, int] = (224, 224)) -> tuple[int, int]:
    """The (height, width) that a config is made for: its `image_size`, or `default` for models that take any size."""
    if not hasattr(config, "check_image_size"):
        raise ValueError(f"expected the config of a model, given {shorten(config)}")
    size = getattr(config, "image_size", None)
    return default if size is None else pair(size)
