"""Random changes of one picture that leave its class as it is: RandAugment, 3-Augment and colour jitter.

Every function takes a Pillow image, RGB or grey ("L"), and returns one of the same size and mode. What changes
saturation leaves a grey image as it is.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from eqx_vit.layers.config import check

HIGHEST_LEVEL = 10.0  # magnitudes are clipped to 0 to this
UNIFORM_DEVIATION = 100.0  # of a larger deviation timm makes a uniform magnitude, from 0 to the policy's
PARTS_OF_POLICY = {"m": HIGHEST_LEVEL, "mstd": 0.0, "n": 2.0, "inc": 0.0, "p": 0.5}  # what timm takes if not given
SOLARISE_FROM = 128
BLUR_RADII = (0.1, 2.0)  # of 3-Augment


class RandAugment(NamedTuple):
    """How much `rand_augment` changes an image; `parse_rand_augment` reads it from timm's spelling.

    **Attributes:**

    - `magnitude`: how strong the operations are, 0 to 10.
    - `deviation`: the standard deviation of the magnitude of each operation; above 100, uniform from 0 to `magnitude`.
    - `layers`: how many operations are drawn for an image.
    - `increasing`: every operation grows stronger with its magnitude; some grow weaker without.
    - `probability`: with which an operation that was drawn is done.
    """

    magnitude: float
    deviation: float
    layers: int
    increasing: bool
    probability: float = 0.5


class Strength(NamedTuple):
    """What is drawn for one operation. `level`, 0 to 10; `sign`, 1 or -1; `fill`, the colour outside of the image."""

    level: float
    sign: int
    resample: Image.Resampling
    fill: tuple[int, ...]

    def up_to(self, most: float) -> float:
        """The level as an amount from 0 to `most`."""
        return self.level / HIGHEST_LEVEL * most

    def either_way(self, most: float) -> float:
        """The same, positive or negative."""
        return self.sign * self.up_to(most)


Operation = Callable[[Image.Image, Strength], Image.Image]
Enhancement = type[ImageEnhance.Color | ImageEnhance.Contrast | ImageEnhance.Brightness | ImageEnhance.Sharpness]


class Variants(NamedTuple):
    """An operation as the first code had it, where some grow weaker with the level, and one that always grows."""

    plain: Operation
    increasing: Operation


def rand_augment(
    image: Image.Image, rng: np.random.Generator, policy: RandAugment, fill: tuple[int, ...]
) -> Image.Image:
    """RandAugment (1909.13719) in timm's version: operations drawn with replacement, each done by chance.

    `fill` is the colour of what comes into view from outside, a number for each band: timm takes the mean of the
    training images. Resampling is bilinear or bicubic by chance.
    """
    for drawn in rng.integers(len(OPERATIONS), size=policy.layers):
        if rng.random() < policy.probability:
            variants = list(OPERATIONS.values())[drawn]
            operation = variants.increasing if policy.increasing else variants.plain
            image = operation(image, _draw_strength(rng, policy, fill))
    return image


def parse_rand_augment(text: str) -> RandAugment:
    """timm's spelling of a policy, such as "rand-m9-mstd0.5-inc1".

    After `rand`, in any order: `m` magnitude (10 if not given), `mstd` its deviation (0), `n` layers (2), `inc1` for
    the increasing variants, `p` probability (0.5).

    **Raises:** `ValueError` that says what was given and what is right.
    """
    start, *parts = text.split("-")
    found = [re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part) for part in parts]
    given = {match[1]: float(match[2]) for match in found if match}
    values = PARTS_OF_POLICY | given
    right = start == "rand" and len(given) == len(parts) and len(values) == len(PARTS_OF_POLICY)
    check(
        right and values["n"] in range(1, 100) and values["inc"] in (0, 1) and values["p"] <= 1,
        "a RandAugment policy is spelt like rand-m9-mstd0.5-inc1: rand, then each at most once m (magnitude, 0 to 10), "
        f"mstd (its deviation), n (layers, 1 to 99), inc (0 or 1), p (probability, 0 to 1); given {text!r}",
    )
    return RandAugment(values["m"], values["mstd"], int(values["n"]), values["inc"] == 1, values["p"])


def three_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """DeiT III's 3-Augment (2204.07118, section 3.2): grey, or solarised, or blurred, each as often as the others."""
    match rng.integers(3):
        case 0:
            return image.convert("L").convert(image.mode)
        case 1:
            return ImageOps.solarize(image, SOLARISE_FROM)
        case _:
            return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADII)))


def jitter_colours(image: Image.Image, rng: np.random.Generator, amount: float) -> Image.Image:
    """Brightness, contrast and saturation, in random order, each times a factor of 1 - amount to 1 + amount.

    torchvision's ColorJitter with the same amount for the three and no change of hue, timm's `--color-jitter`.

    **Raises:** `ValueError` for a negative amount.
    """
    check(amount >= 0, f"amount must not be negative, given {amount}")
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in rng.permutation(len(kinds)):
        image = kinds[kind](image).enhance(rng.uniform(max(0, 1 - amount), 1 + amount))
    return image


def _draw_strength(rng: np.random.Generator, policy: RandAugment, fill: tuple[int, ...]) -> Strength:
    uniform = policy.deviation > UNIFORM_DEVIATION
    level = rng.uniform(0, policy.magnitude) if uniform else rng.normal(policy.magnitude, policy.deviation)
    return Strength(
        level=float(np.clip(level, 0, HIGHEST_LEVEL)),
        sign=1 if rng.random() < 0.5 else -1,
        resample=Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC,
        fill=fill,
    )


# --- the operations: Pillow's, and how far each goes at the highest level


def _stretch_contrast(image: Image.Image, strength: Strength) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalise(image: Image.Image, strength: Strength) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, strength: Strength) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, strength: Strength) -> Image.Image:
    return image.rotate(strength.either_way(30.0), strength.resample, fillcolor=strength.fill)


def _posterise(image: Image.Image, strength: Strength) -> Image.Image:
    return _keep_bits(image, int(strength.up_to(4.0)))


def _posterise_more(image: Image.Image, strength: Strength) -> Image.Image:
    return _keep_bits(image, 4 - int(strength.up_to(4.0)))


def _keep_bits(image: Image.Image, bits: int) -> Image.Image:
    # Pillow's `posterize`, which refuses the 0 bits of the highest level in newer versions: a black image.
    mask = 256 - 2 ** (8 - bits)
    return image.point([value & mask for value in range(256)] * len(image.getbands()))


def _solarise(image: Image.Image, strength: Strength) -> Image.Image:
    return ImageOps.solarize(image, int(strength.up_to(256.0)))


def _solarise_more(image: Image.Image, strength: Strength) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(strength.up_to(256.0)))


def _lighten_dark(image: Image.Image, strength: Strength) -> Image.Image:
    added = int(strength.up_to(110.0))
    table = [value + added if value < SOLARISE_FROM else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(kind: Enhancement) -> Variants:
    def plain(image: Image.Image, strength: Strength) -> Image.Image:
        return kind(image).enhance(strength.up_to(1.8) + 0.1)

    def increasing(image: Image.Image, strength: Strength) -> Image.Image:
        return kind(image).enhance(max(0.1, 1 + strength.either_way(0.9)))

    return Variants(plain, increasing)


def _shear_x(image: Image.Image, strength: Strength) -> Image.Image:
    return _move(image, (1.0, strength.either_way(0.3), 0.0, 0.0, 1.0, 0.0), strength)


def _shear_y(image: Image.Image, strength: Strength) -> Image.Image:
    return _move(image, (1.0, 0.0, 0.0, strength.either_way(0.3), 1.0, 0.0), strength)


def _translate_x(image: Image.Image, strength: Strength) -> Image.Image:
    return _move(image, (1.0, 0.0, strength.either_way(0.45) * image.width, 0.0, 1.0, 0.0), strength)


def _translate_y(image: Image.Image, strength: Strength) -> Image.Image:
    return _move(image, (1.0, 0.0, 0.0, 0.0, 1.0, strength.either_way(0.45) * image.height), strength)


def _move(image: Image.Image, matrix: tuple[float, ...], strength: Strength) -> Image.Image:
    """`matrix`, in rows, takes (x, y, 1) of a pixel to the (x, y) to read."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, strength.resample, fillcolor=strength.fill)


OPERATIONS = {  # by timm's names
    "AutoContrast": Variants(_stretch_contrast, _stretch_contrast),
    "Equalize": Variants(_equalise, _equalise),
    "Invert": Variants(_invert, _invert),
    "Rotate": Variants(_rotate, _rotate),
    "Posterize": Variants(_posterise, _posterise_more),
    "Solarize": Variants(_solarise, _solarise_more),
    "SolarizeAdd": Variants(_lighten_dark, _lighten_dark),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": Variants(_shear_x, _shear_x),
    "ShearY": Variants(_shear_y, _shear_y),
    "TranslateXRel": Variants(_translate_x, _translate_x),
    "TranslateYRel": Variants(_translate_y, _translate_y),
}
