"""Image files as arrays: upright, grey or RGB, of one size; whatever a decoder raises is one unreadable file."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from eqx_vit.weights.preprocessing import to_8_bit

UPRIGHT: dict[object, Image.Transpose] = {  # what turns an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path, size: tuple[int, int], channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """An image file cropped about its centre to the shape of `size` and resized to it, (height, width).

    `channels` is 1 (grey) or 3.

    **Raises:** `ValueError` that names the file and says why it cannot be read.
    """
    height, width = size
    image = ImageOps.fit(open_image(path, channels), (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def open_image(path: Path, channels: int) -> Image.Image:
    """An image turned upright, grey (`channels` 1) or RGB (3).

    Transparent pixels become white, as on paper; 16-bit grey becomes 8-bit.

    **Raises:** `ValueError` that names the file and says why it cannot be read.
    """
    with _opened(path) as image:
        image.load()
        return _to_opaque_8_bit(_turn_upright(image)).convert("L" if channels == 1 else "RGB")


def check_header(path: Path) -> None:
    """Raise `ValueError` that names the file unless it begins as an image does. What follows may still be damaged."""
    with _opened(path):
        pass


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file; whatever goes wrong with it, here or within, is a `ValueError` that names it."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an image")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of more pixels than half its limit
            with Image.open(path) as image:
                yield image
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # decoders raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is damaged: {reason}") from error


def _turn_upright(image: Image.Image) -> Image.Image:
    """As its EXIF says; as it lies where that is damaged.

    Pillow's own function rewrites the other fields too, which fails for those that are damaged.
    """
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # as many kinds as there are ways to damage a file
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_opaque_8_bit(image: Image.Image) -> Image.Image:
    image = to_8_bit(image)
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
