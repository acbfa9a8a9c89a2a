"""The part of a picture that a model sees: a random one in training, the middle in evaluation.

Each function takes a Pillow image, `size` as (height, width), and returns an image of that size, resized bicubically.
The sides of a Pillow image come as (width, height), and its boxes as (left, top, right, bottom).
"""

import math

import numpy as np
from PIL import Image

from eqx_vit.weights.preprocessing import Preprocessing

TRIES = 10  # to draw a box that fits into the image
SIMPLE_PADDING = 4  # pixels around the resized image, before `simple_random_crop`


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A box of random area, shape and place, resized to `size`, as Inception was trained (1409.4842, section 6).

    `scale` bounds the share of the image's area, drawn uniformly; `ratio` the width of the box by its height, uniform
    in its logarithm. timm's and torchvision's rule: a box that does not fit is drawn again, ten times in all; then it
    is the largest in the middle whose shape is within `ratio`.
    """
    return _cut_out(image, _draw_box(*image.size, rng, scale, ratio), size)


def simple_random_crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The whole image but its ends: DeiT III's simple random crop (2204.07118, section 3.2).

    The image is resized until it just covers `size`, padded by four pixels of its mirror image on each side, and cut
    at a random place. A square takes the shorter side to its own, as DeiT III does; other sizes as in `centre_crop`.
    """
    height, width = size
    resized = np.asarray(image.resize(_covering_size(image, size, 1.0), Image.Resampling.BICUBIC))
    around = [(SIMPLE_PADDING, SIMPLE_PADDING)] * 2 + [(0, 0)] * (resized.ndim - 2)
    padded = Image.fromarray(np.pad(resized, around, mode="reflect"))
    top = int(rng.integers(padded.height - height, endpoint=True))
    left = int(rng.integers(padded.width - width, endpoint=True))
    return padded.crop((left, top, left + width, top + height))


def centre_crop(image: Image.Image, size: tuple[int, int], fraction: float) -> Image.Image:
    """The middle of the image, timm's view for evaluation: that of `Preprocessing.apply`, as an image.

    The image is resized until it just covers `size` divided by `fraction`, rounded down.

    **Raises:** `ValueError` unless `fraction` is above 0 and at most 1.
    """
    height, width = size
    resized = image.resize(_covering_size(image, size, fraction), Image.Resampling.BICUBIC)
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def _draw_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    narrowest, widest = ratio
    for _ in range(TRIES):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        # An extreme `scale` of a tiny image rounds to nothing, which cannot be resized.
        if 0 < columns <= width and 0 < rows <= height:
            top = int(rng.integers(height - rows, endpoint=True))
            left = int(rng.integers(width - columns, endpoint=True))
            return left, top, left + columns, top + rows
    columns, rows = min(width, round(height * widest)), min(height, round(width / narrowest))
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows


def _cut_out(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    # Not `resize(box=...)`, whose filter reaches beyond the box.
    return image.crop(box).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def _covering_size(image: Image.Image, size: tuple[int, int], fraction: float) -> tuple[int, int]:
    """(width, height) at which the image just covers `size` divided by `fraction`."""
    rule = Preprocessing(image_size=size, mean=(0.0,), std=(1.0,), interpolation="bicubic", crop=fraction, classes=1)
    return rule._size_before_crop(*image.size)
