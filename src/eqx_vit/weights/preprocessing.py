"""What a released model expects of an image, and the resizing and cropping that gets it there."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eqx_vit.layers.config import check, pair
from eqx_vit.models.source import IMAGENET_MEAN, IMAGENET_STD
from eqx_vit.registry import find_preset, list_models
from eqx_vit.weights.checkpoints import find_image_size
from eqx_vit.weights.locate import find_source, read_description, read_model_fields


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

    def apply(self, image: object) -> np.ndarray:
        """A Pillow image, or an array of bytes (height, width, 3), as float32 (height, width, channels).

        timm's rule for evaluation: the image is resized until the crop is `crop` of it, keeping its proportions.

        **Raises:** `ValueError` for anything else; `ImportError` without Pillow.
        """
        from PIL import Image

        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(
                    f"expected a Pillow image or uint8 array of (height, width, 3), given {image.dtype} {image.shape}"
                )
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise ValueError(f"expected a Pillow image or uint8 array, given a {type(image).__name__}")
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        resample = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        image = image.resize(self._size_before_crop(*image.size), resample)
        height, width = self.image_size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
        return (pixels.reshape(height, width, len(self.mean)) - np.asarray(self.mean, dtype=np.float32)) / np.asarray(
            self.std, dtype=np.float32
        )

    def _size_before_crop(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which an image of this size is resized."""
        rows, columns = (math.floor(length / self.crop) for length in self.image_size)
        if rows != columns:
            ratio = min(height / rows, width / columns)
            return round(width / ratio), round(height / ratio)
        if width <= height:
            return columns, int(columns * height / width)
        return int(rows * width / height), rows


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
    return Preprocessing(
        image_size=pair(model_fields.get("image_size", 224)),
        mean=tuple(plain.get("mean", IMAGENET_MEAN)),
        std=tuple(plain.get("std", IMAGENET_STD)),
        interpolation=plain.get("interpolation", "bicubic"),
        crop=plain.get("crop_pct", 0.875),
        classes=model_fields.get("num_classes", 1000),
    )
