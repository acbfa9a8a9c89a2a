"""From source images to a model's input: one bilinear sampling that augments, resizes and normalises at once.

Each image is read once, at the places where the pixels of the moved and resized image lie. Digits of 8 x 8 are thus
never blurred twice, and training and evaluation share one path: evaluation samples with the identity.

An affine map takes (y, x, 1) of a pixel in the model's image to the (y, x) to read in the source image; both images
extend from -1 to 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8


class InputSpec(NamedTuple):
    """How source images become a model's input.

    **Attributes:** `size`, (height, width) of the model's images; `channels` of them, a grey image is repeated;
    `mean, std` per channel of the training images, in units of 0 to 1.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class AffineAugmentation(NamedTuple):
    """How far training images are moved at random; see `Settings`. All zero: not at all."""

    rotate: float
    shift: float
    zoom: float
    flip: bool

    @property
    def moves(self) -> bool:
        """Whether images are read between their pixels, and not mirrored at most."""
        return self.rotate > 0 or self.shift > 0 or self.zoom > 0


def prepare_batch(
    images: UInt8[Array, "batch rows columns source_channels"], spec: InputSpec, affines: Float[Array, "batch 2 3"]
) -> Float[Array, "batch height width channels"]:
    """A batch of source images, each moved by its affine map, resized and normalised."""
    return normalise(jax.vmap(sample_bilinear, in_axes=(0, 0, None))(_to_unit(images), affines, spec.size), spec)


def augment_batch(
    key: PRNGKeyArray,
    images: UInt8[Array, "batch rows columns source_channels"],
    spec: InputSpec,
    augmentation: AffineAugmentation,
) -> Float[Array, "batch height width channels"]:
    """A batch of source images, moved at random, resized and normalised."""
    if augmentation.moves or images.shape[1:3] != spec.size:
        return prepare_batch(images, spec, random_affines(key, len(images), augmentation))
    # Images of the model's size that are mirrored at most need no sampling.
    flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1)) & augmentation.flip
    return normalise(_to_unit(jnp.where(jnp.broadcast_to(flipped, images.shape), images[:, :, ::-1], images)), spec)


def normalise(
    images: Float[Array, "batch height width source_channels"], spec: InputSpec
) -> Float[Array, "batch height width channels"]:
    """Images of 0 to 1 by the mean and the standard deviation of `spec`; grey ones are repeated for its channels."""
    shape = (*images.shape[:3], spec.channels)
    mean = jnp.broadcast_to(jnp.asarray(spec.mean, dtype=jnp.float32), shape)
    std = jnp.broadcast_to(jnp.asarray(spec.std, dtype=jnp.float32), shape)
    return (jnp.broadcast_to(images, shape) - mean) / std


def _to_unit(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    return images.astype(jnp.float32) / 255


def identity_affines(batch: int) -> Float[Array, "batch 2 3"]:
    """Affine maps that leave images where they are."""
    return jnp.broadcast_to(jnp.eye(2, 3), (batch, 2, 3))


def random_affines(key: PRNGKeyArray, batch: int, augmentation: AffineAugmentation) -> Float[Array, "batch 2 3"]:
    """Affine maps that rotate, zoom, shift and mirror each image by its own random amounts."""
    rotate_key, zoom_key, shift_key, flip_key = jax.random.split(key, 4)
    max_angle = jnp.deg2rad(jnp.float32(augmentation.rotate))
    max_zoom, max_shift = augmentation.zoom, 2 * augmentation.shift
    angle = jax.random.uniform(rotate_key, (batch,), minval=-max_angle, maxval=max_angle)
    zoom = jax.random.uniform(zoom_key, (batch,), minval=1 - max_zoom, maxval=1 + max_zoom)
    shift = jax.random.uniform(shift_key, (batch, 2), minval=-max_shift, maxval=max_shift)
    flipped = jax.random.bernoulli(flip_key, 0.5, (batch,)) if augmentation.flip else jnp.zeros(batch, dtype=bool)
    mirror = jnp.where(flipped, -1.0, 1.0)
    cosine, sine = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    rows = (
        jnp.stack([cosine, -sine * mirror, shift[:, 0]], axis=-1),
        jnp.stack([sine, cosine * mirror, shift[:, 1]], axis=-1),
    )
    return jnp.stack(rows, axis=1)


def sample_bilinear(
    image: Float[Array, "rows columns channels"], affine: Float[Array, "2 3"], size: tuple[int, int]
) -> Float[Array, "height width channels"]:
    """The image read at the places where `affine` takes the pixels of `size`; black outside."""
    height, width = size
    y, x = jnp.meshgrid(_pixel_centres(height), _pixel_centres(width), indexing="ij")
    places = jnp.einsum("ij,jhw->ihw", affine, jnp.stack([y, x, jnp.ones_like(y)]))
    # One black pixel around the image, and places outside moved onto it, make the outside black with no further case.
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    rows, columns, _ = image.shape
    top, below = _split_position((places[0] + 1) * (rows / 2) + 0.5, rows)
    left, right = _split_position((places[1] + 1) * (columns / 2) + 0.5, columns)
    upper = _interpolate(padded[top, left], padded[top, left + 1], right)
    lower = _interpolate(padded[top + 1, left], padded[top + 1, left + 1], right)
    return _interpolate(upper, lower, below)


def _pixel_centres(length: int) -> Float[Array, " length"]:
    return (2 * jnp.arange(length, dtype=jnp.float32) + 1) / length - 1


def _split_position(
    position: Float[Array, "height width"], length: int
) -> tuple[Int[Array, "height width"], Float[Array, "height width"]]:
    """(pixel before the position, weight of the pixel after it), in the padded image."""
    position = jnp.clip(position, 0, length + 1)
    before = jnp.clip(jnp.floor(position), 0, length)
    return before.astype(jnp.int32), position - before


def _interpolate(
    first: Float[Array, "height width channels"],
    second: Float[Array, "height width channels"],
    weight: Float[Array, "height width"],
) -> Float[Array, "height width channels"]:
    weight = jnp.broadcast_to(weight[..., None], first.shape)
    return first + (second - first) * weight
