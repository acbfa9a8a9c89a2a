"""What a released model expects of an image, and the resizing and cropping that gets it there."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eqx_vit.arguments import check_arguments
from eqx_vit.layers.config import check, no_type_check, pair
from eqx_vit.models.source import IMAGENET_MEAN, IMAGENET_STD
from eqx_vit.registry import find_preset, list_models
from eqx_vit.weights.checkpoints import find_image_size
from eqx_vit.weights.locate import find_source, read_description, read_model_fields

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input: resized, cropped at the centre, scaled by (x - mean) / std."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop: float  # the share of the resized image that the crop keeps
    classes: int

    def __post_init__(self) -> None:
        check(
            self.interpolation in ("bicubic", "bilinear"),
            f"interpolation must be 'bicubic' or 'bilinear', given {self.interpolation!r}",
        )
        check(0 < self.crop <= 1, f"crop must be above 0 and at most 1, given {self.crop}")
        check(
            len(self.mean) == len(self.std) > 0 and all(value > 0 for value in self.std),
            f"mean and std must have a number for each channel, std above 0; given {self.mean} and {self.std}",
        )

    def apply(self, image: object) -> np.ndarray:
        """A Pillow image, or an array of bytes (height, width, channels), as float32 (height, width, channels).

        timm's rule for evaluation: the image is resized until the crop is `crop` of it, keeping its proportions. Grey
        and RGB images are converted to what the model takes; for others the image must have the model's channels.

        **Raises:** `ValueError` for anything else; `ImportError` without Pillow.
        """
        from PIL import Image

        bands = _split_bands(image, len(self.mean))
        height, width = self.image_size
        columns, rows = self._size_before_crop(*bands[0].size)
        left, top = round((columns - width) / 2), round((rows - height) / 2)
        check(
            columns * rows < 2**28,
            f"an image of {bands[0].width} x {bands[0].height} pixels would become {columns} x {rows}: crop it first",
        )
        method = Image.Resampling[self.interpolation.upper()]
        box = (left, top, left + width, top + height)
        crops = [np.asarray(band.resize((columns, rows), method).crop(box), dtype=np.float32) for band in bands]
        pixels = np.stack(crops, axis=-1) / 255
        return (pixels - np.asarray(self.mean, dtype=np.float32)) / np.asarray(self.std, dtype=np.float32)

    def _size_before_crop(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which an image of this size is resized."""
        rows, columns = (math.floor(length / self.crop) for length in self.image_size)
        if rows != columns:
            ratio = min(height / rows, width / columns)
            return round(width / ratio), round(height / ratio)
        if width <= height:
            return columns, int(columns * height / width)
        return int(rows * width / height), rows


@no_type_check
def to_8_bit(image: "Image.Image") -> "Image.Image":
    """Grey of more than 8 bits, which Pillow's `convert` clips at 255, as 8 bits; other images as they are.

    The largest value tells the range: for floats up to 1, for all up to 255 or 65535.

    **Raises:** `ValueError` for values beyond.
    """
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    wide = np.asarray(image)
    largest = wide.max()
    check(0 <= largest < 2**16, f"its grey values reach {largest}, expected at most 65535")
    if largest > 255:
        wide = wide // 257
    elif largest <= 1 and image.mode == "F":
        wide = wide * 255
    return Image.fromarray(wide.clip(0, 255).astype(np.uint8))


@check_arguments
def preprocessing(name: str | os.PathLike[str]) -> Preprocessing:
    """What the released weights of a preset expect, or those of `hf-hub:owner/name` or a folder in timm's format.

    **Raises:** `ValueError` for an unknown name, one without released weights, a folder of another format;
    `FileNotFoundError` for a description that is neither here nor can be downloaded.
    """
    place = os.fspath(name)
    if place in list_models():
        source = find_source(place)
        return Preprocessing(
            image_size=pair(find_image_size(find_preset(place)) or source.image_size),
            mean=source.mean,
            std=source.std,
            interpolation=source.interpolation,
            crop=source.crop,
            classes=source.classes,
        )
    if not (place.startswith("hf-hub:") or Path(place).is_dir()):
        raise ValueError(
            f"{place!r} is neither a preset (eqx_vit.list_models() names them), hf-hub:owner/name nor a folder"
        )
    described = read_description(place)
    layout, model_fields = read_model_fields(described, place)
    if layout != "timm":
        raise ValueError(f"the preprocessing of {place} is not in timm's format")
    plain = described.get("pretrained_cfg", described)
    channels, crop = model_fields.get("channels", 3), plain.get("crop_pct", 0.875)
    check(isinstance(crop, int | float), f"crop_pct of {place} must be a number, given {crop!r}")
    return Preprocessing(
        image_size=pair(model_fields.get("image_size", 224)),
        mean=_spread("mean", plain.get("mean", IMAGENET_MEAN), channels, place),
        std=_spread("std", plain.get("std", IMAGENET_STD), channels, place),
        interpolation=str(plain.get("interpolation", "bicubic")),
        crop=float(crop),
        classes=model_fields.get("num_classes", 1000),
    )


@no_type_check
def _split_bands(image: object, channels: int) -> "list[Image.Image]":
    """An image for a model of so many channels, as a grey image of 8 bits for each."""
    from PIL import Image

    given, picture = f"a {type(image).__name__}", image
    if isinstance(image, np.ndarray):
        given = f"{image.dtype} {image.shape}"
        if image.dtype == np.uint8 and image.ndim == 3 and image.size:
            if image.shape[-1] == channels:
                return [Image.fromarray(image[..., channel]) for channel in range(channels)]
            if image.shape[-1] in (1, 3):
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if isinstance(picture, Image.Image):
        given = f"{picture.width} x {picture.height} pixels of {', '.join(picture.getbands())}"
        if channels in (1, 3) and 0 not in picture.size:
            picture = to_8_bit(picture).convert("L" if channels == 1 else "RGB")
        if len(picture.getbands()) == channels and 0 not in picture.size:
            return list(picture.split())
    raise ValueError(f"expected a Pillow image or uint8 array of (height, width, {channels}), given {given}")


def _spread(name: str, values: object, channels: int, place: str) -> tuple[float, ...]:
    """A description's values, one for each channel; equal ones stand for any number, as in timm."""
    given = values if isinstance(values, list | tuple) else ()
    numbers = tuple(float(value) for value in given if isinstance(value, int | float))
    if len(set(numbers)) == 1:
        return numbers[:1] * channels
    check(
        len(numbers) == channels,
        f"{place} does not tell the {name} of its {channels} channels: make a Preprocessing of your own",
    )
    return numbers
