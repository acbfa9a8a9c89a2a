"""Batches whose images are mixed with each other or partly erased: Mixup, CutMix and random erasing, on the device.

All of it is a pure function of a key and traces under `jax.jit`; images and targets are float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

ERASED_AREAS = (0.02, 1 / 3)  # share of the image, drawn uniformly
FLATTEST_ERASED = 0.3  # height by width, uniform in its logarithm up to the inverse
TRIES = 10  # to draw a rectangle that fits into the image

Scalar = Float[Array, ""]
Position = Int[Array, ""]


def mix_batch(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
    probability: float = 1.0,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Each image and its target mixed with those at the same place from the end of the batch, by one share for all.

    The share that stays is drawn from Beta(alpha, alpha). Mixup (1710.09412, alpha `mixup`) adds whole images; CutMix
    (1905.04899, alpha `cutmix`) replaces a rectangle, and the target follows the area that it has inside the image.
    An alpha of 0 turns one off; of both, CutMix is taken with probability `switch`. With `probability` anything is
    mixed at all. timm's Mixup in mode "batch".
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    chance_key, switch_key, share_key, centre_key = jax.random.split(key, 4)
    cuts = jax.random.bernoulli(switch_key, switch if mixup > 0 and cutmix > 0 else float(cutmix > 0))
    alpha = jnp.where(cuts, jnp.float32(cutmix), jnp.float32(mixup))
    share = jax.random.beta(share_key, alpha, alpha)
    share = jnp.where(jax.random.bernoulli(chance_key, probability), share, jnp.ones_like(share))
    _, height, width, _ = images.shape
    centre = jax.random.randint(centre_key, (2,), 0, jnp.array([height, width]))
    # The weight that the pixels of an image keep is one number for Mixup, and 1 or 0 for CutMix.
    outside = _keep_outside((height, width), share, centre)
    weights = jnp.where(cuts, outside, jnp.broadcast_to(share, outside.shape))
    return _mix(images, weights), _mix(targets, jnp.where(cuts, jnp.mean(outside), share))


def erase_randomly(
    key: PRNGKeyArray, images: Float[Array, "batch height width channels"], probability: float
) -> Float[Array, "batch height width channels"]:
    """In each image, with `probability`, a rectangle replaced by noise of mean 0 and standard deviation 1.

    Random erasing (1708.04896) as timm's mode "pixel"; the images are already normalised. A rectangle that does not
    fit is drawn again, ten times in all; then the image stays as it is.
    """
    keys = jax.random.split(key, len(images))
    return jax.vmap(functools.partial(_erase_one, probability=probability))(keys, images)


def _mix(values: Float[Array, "*shape"], weights: Float[Array, "*kept"]) -> Float[Array, "*shape"]:
    """Values by `weights`, of the axes that follow the batch, plus those of the reversed batch by what is left."""
    weights = weights.reshape(1, *weights.shape, *(1,) * (values.ndim - 1 - weights.ndim))
    return values * weights + values[::-1] * (1 - weights)


def _keep_outside(size: tuple[int, int], share: Scalar, centre: Int[Array, "2"]) -> Float[Array, "height width"]:
    """0 in CutMix's rectangle, of the image's shape and 1 - `share` of its area before the edges cut it; 1 outside."""
    height, width = (jnp.floor(length * jnp.sqrt(1 - share)).astype(jnp.int32) for length in size)
    inside = _fill_rectangle(size, centre[0] - height // 2, centre[1] - width // 2, height, width)
    return 1 - inside.astype(jnp.float32)


def _erase_one(
    key: PRNGKeyArray, image: Float[Array, "height width channels"], probability: float
) -> Float[Array, "height width channels"]:
    chance_key, rectangle_key, noise_key = jax.random.split(key, 3)
    height, width, _ = image.shape
    chosen = jax.random.bernoulli(chance_key, probability) & _draw_rectangle(rectangle_key, (height, width))
    return jnp.where(chosen[..., None], jax.random.normal(noise_key, image.shape), image)


def _draw_rectangle(key: PRNGKeyArray, size: tuple[int, int]) -> Bool[Array, "height width"]:
    """True in the first of ten random rectangles that fits, nowhere if none does."""
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    smallest, largest = (share * size[0] * size[1] for share in ERASED_AREAS)
    areas = jax.random.uniform(area_key, (TRIES,), minval=smallest, maxval=largest)
    most = -math.log(FLATTEST_ERASED)
    aspects = jnp.exp(jax.random.uniform(aspect_key, (TRIES,), minval=-most, maxval=most))
    height, width = _choose_fitting(size, jnp.sqrt(areas * aspects), jnp.sqrt(areas / aspects))
    top = jax.random.randint(top_key, (), 0, size[0] - height + 1)
    left = jax.random.randint(left_key, (), 0, size[1] - width + 1)
    return _fill_rectangle(size, top, left, height, width)


def _choose_fitting(
    size: tuple[int, int], heights: Float[Array, " tries"], widths: Float[Array, " tries"]
) -> tuple[Position, Position]:
    """(height, width) in whole pixels of the first rectangle that is smaller than the image both ways, or (0, 0)."""
    sides = jnp.round(jnp.stack([heights, widths])).astype(jnp.int32)
    fits = (sides[0] < size[0]) & (sides[1] < size[1])
    height, width = jnp.where(jnp.any(fits), sides[:, jnp.argmax(fits)], 0)
    return height, width


def _fill_rectangle(
    size: tuple[int, int], top: Position, left: Position, height: Position, width: Position
) -> Bool[Array, "height width"]:
    """True inside of the rectangle, which may reach over the edges."""
    rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])[None]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
