"""Picture files of any size and kind as arrays."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


def read_picture(path: Path, size: tuple[int, int], channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """A picture cropped about its centre to the shape of `size` and resized to it, (height, width).

    `channels` is 1 (grey) or 3.

    **Raises:** `ValueError` that names the file and says why it cannot be read.
    """
    picture = open_picture(path).convert("L" if channels == 1 else "RGB")
    picture = ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.uint8).reshape(*size, channels)


def open_picture(path: Path) -> Image.Image:
    """A picture turned upright; transparent pixels become white, as on paper; 16-bit grey becomes 8-bit.

    **Raises:** `ValueError` that names the file and says why it cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a picture")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _plain(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = "is no picture that Pillow can read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"{path} {reason}" if reason.startswith("is ") else f"{path} is damaged: {reason}") from error


def _plain(image: Image.Image) -> Image.Image:
    """The picture without transparency, and with 8 bits a channel."""
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
        wide = np.asarray(image, dtype=np.int64)
        return Image.fromarray((wide // 257 if wide.max() > 255 else wide).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
