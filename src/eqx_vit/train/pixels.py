"""From stored pixels to what a model sees: one bilinear sampling that moves, resizes and normalises at once.

Each image is read once at the places where the moved and resized pixels lie. Digits of 8 x 8 are thus never blurred
twice, and training and evaluation share one path: evaluation does not move.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from eqx_vit.train.settings import Settings


class Pixels(NamedTuple):
    """How stored images become a model's input.

    **Attributes:** `size`, (height, width) of the model's images; `channels` of them, a grey image is repeated;
    `mean, std` per channel of the training images, in units of 0 to 1.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Moves(NamedTuple):
    """How far training images are moved at random; see `Settings`. All zero: not at all."""

    rotate: float
    shift: float
    zoom: float
    flip: bool


def moves_of(settings: Settings) -> Moves:
    """The part of the settings that is about moving images."""
    return Moves(settings.rotate, settings.shift, settings.zoom, settings.flip)


def prepare(
    images: UInt8[Array, "batch rows columns stored"], pixels: Pixels, maps: Float[Array, "batch 2 3"]
) -> Float[Array, "batch height width channels"]:
    """A batch of stored images moved by `maps` (see `identity_maps`), resized and normalised."""
    sampled = jax.vmap(sample, in_axes=(0, 0, None))(images.astype(jnp.float32) / 255, maps, pixels.size)
    shape = (*sampled.shape[:3], pixels.channels)
    mean = jnp.broadcast_to(jnp.asarray(pixels.mean, dtype=jnp.float32), shape)
    std = jnp.broadcast_to(jnp.asarray(pixels.std, dtype=jnp.float32), shape)
    return (jnp.broadcast_to(sampled, shape) - mean) / std


def identity_maps(batch: int) -> Float[Array, "batch 2 3"]:
    """Maps that leave images where they are. A map takes (y, x, 1), the frame being -1 to 1, to the place to read."""
    return jnp.broadcast_to(jnp.eye(2, 3), (batch, 2, 3))


def random_maps(key: PRNGKeyArray, batch: int, moves: Moves) -> Float[Array, "batch 2 3"]:
    """Maps that rotate, zoom, shift and mirror each image by its own random amounts."""
    rotate_key, zoom_key, shift_key, flip_key = jax.random.split(key, 4)
    limit = jnp.deg2rad(jnp.float32(moves.rotate))
    angle = jax.random.uniform(rotate_key, (batch,), minval=-limit, maxval=limit)
    zoom = jax.random.uniform(zoom_key, (batch,), minval=1 - moves.zoom, maxval=1 + moves.zoom)
    shift = jax.random.uniform(shift_key, (batch, 2), minval=-2 * moves.shift, maxval=2 * moves.shift)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (batch,)) if moves.flip else jnp.zeros(batch, dtype=bool)
    mirror = jnp.where(mirrored, -1.0, 1.0)
    cosine, sine = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    rows = (
        jnp.stack([cosine, -sine * mirror, shift[:, 0]], axis=-1),
        jnp.stack([sine, cosine * mirror, shift[:, 1]], -1),
    )
    return jnp.stack(rows, axis=1)


def sample(
    image: Float[Array, "rows columns channels"], mapping: Float[Array, "2 3"], size: tuple[int, int]
) -> Float[Array, "height width channels"]:
    """The image read bilinearly at the places where `mapping` takes the pixels of `size`; black outside its frame."""
    height, width = size
    y, x = jnp.meshgrid(_centres(height), _centres(width), indexing="ij")
    places = jnp.einsum("ij,jhw->ihw", mapping, jnp.stack([y, x, jnp.ones_like(y)]))
    # One black pixel around the frame, and places outside moved onto it, make the outside black with no further case.
    framed = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    rows, columns, _ = image.shape
    top, below = _split((places[0] + 1) * (rows / 2) + 0.5, rows)
    left, right = _split((places[1] + 1) * (columns / 2) + 0.5, columns)
    upper = _mix(framed[top, left], framed[top, left + 1], right)
    lower = _mix(framed[top + 1, left], framed[top + 1, left + 1], right)
    return _mix(upper, lower, below)


def _centres(length: int) -> Float[Array, " length"]:
    """The centres of pixels, where the frame is -1 to 1."""
    return (2 * jnp.arange(length, dtype=jnp.float32) + 1) / length - 1


def _split(
    place: Float[Array, "height width"], length: int
) -> tuple[Int[Array, "height width"], Float[Array, "height width"]]:
    """(pixel before the place, share of the pixel after it), in the image with its frame."""
    place = jnp.clip(place, 0, length + 1)
    before = jnp.clip(jnp.floor(place), 0, length)
    return before.astype(jnp.int32), place - before


def _mix(
    first: Float[Array, "height width channels"],
    second: Float[Array, "height width channels"],
    share: Float[Array, "height width"],
) -> Float[Array, "height width channels"]:
    share = jnp.broadcast_to(share[..., None], first.shape)
    return first + (second - first) * share
