"""Labelled images in memory: scikit-learn's digits or an image folder, one fixed split, one order for each epoch."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from eqx_vit.train.progress import ProgressLog

SPLIT_SEED = 1797  # the same split whatever the run's seed, so that runs compare
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
DIGITS = tuple(str(digit) for digit in range(10))

Indices = Int[np.ndarray, " indices"]
Images = UInt8[np.ndarray, "images height width channels"]
Labels = Int[np.ndarray, " images"]


class Data(NamedTuple):
    """All images of a task in one array, and which of them are for what.

    **Attributes:**

    - `images`: (images, height, width, channels), 0 black to 255.
    - `labels`: for each image the number of its class, an index of `classes`.
    - `train, validation, test`: indices of images; together all of them.
    - `fingerprint`: a digest of images, labels and names: equal data, equal fingerprint.
    - `unreadable`: one line for each file that was left out, with the reason.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    train: Indices
    validation: Indices
    test: Indices
    fingerprint: str
    unreadable: tuple[str, ...]


def load_data(folder: str | None, size: tuple[int, int], channels: int, log: ProgressLog) -> Data:
    """The digits (None) as they are, or an image folder at that size; unreadable files are logged.

    **Raises:** `ValueError` for a wrong folder; `ImportError` where scikit-learn is not installed.
    """
    if folder is None:
        return load_digits()
    data = load_image_folder(Path(folder), size, channels, log)
    if data.unreadable:
        total = len(data.labels) + len(data.unreadable)
        log.write(f"{len(data.unreadable)} of {total} files left out:")
        for line in data.unreadable[:10]:
            log.write(f"  {line}")
        if len(data.unreadable) > 10:
            log.write(f"  ... and {len(data.unreadable) - 10} more")
    return data


def load_digits() -> Data:
    """The 1,797 handwritten digits that scikit-learn carries (8 x 8, grey; UCI's optical recognition test set).

    Split by class: 20 % test, 10 % validation, 70 % training.

    **Raises:** `ImportError` where scikit-learn is not installed.
    """
    from sklearn import datasets

    pixels, labels = (np.asarray(part) for part in datasets.load_digits(return_X_y=True))
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _split_by_class(images, labels.astype(np.int32), DIGITS, ())


def load_image_folder(folder: Path, size: tuple[int, int], channels: int, log: ProgressLog) -> Data:
    """An image folder with one sub-folder for each class, cropped and resized to `size`, (height, width).

    Files that are not a readable image are left out. Split by class: 20 % test, 10 % validation (at least one image
    each), the rest training.

    **Raises:** `ValueError` for a folder without classes, or a class with fewer than three readable images.
    """
    names = find_classes(folder)
    images, labels, unreadable = _read_folder(folder, names, size, channels, log)
    counts = np.bincount(labels, minlength=len(names))
    too_small = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < 3]
    if too_small:
        reasons = f"; {len(unreadable)} unreadable, such as {unreadable[0]}" if unreadable else ""
        raise ValueError(
            f"every class of {folder} needs 3 readable images or more (training, validation, test), "
            f"these have fewer: {', '.join(too_small)}{reasons}"
        )
    return _split_by_class(images, labels, tuple(names), tuple(unreadable))


def find_classes(folder: Path) -> list[str]:
    """The names of the sub-folders, in alphabetical order: the classes.

    **Raises:** `ValueError` for a folder that does not exist or holds fewer than two.
    """
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: --data takes a folder with one sub-folder for each class")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no sub-folders: it needs one for each class, with the images inside")
    if len(names) == 1:
        raise ValueError(f"{folder} has one class only, {names[0]!r}: telling classes apart needs two or more")
    return names


def read_image(path: Path, size: tuple[int, int], channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """An image file cropped about its centre to the shape of `size` and resized to it, (height, width).

    `channels` is 1 (grey) or 3.

    **Raises:** `ValueError` that names the file and says why it cannot be read.
    """
    height, width = size
    image = open_image(path).convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def open_image(path: Path) -> Image.Image:
    """An image turned upright; transparent pixels become white, as on paper; 16-bit grey becomes 8-bit.

    **Raises:** `ValueError` that names the file and says why it cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an image")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _to_opaque_8_bit(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def draw_batches(train: Indices, seed: int, epoch: int, batch_size: int) -> Int[np.ndarray, "steps batch"]:
    """The batches of an epoch: a function of (seed, epoch) alone, so that a resumed run sees the same ones.

    The images that do not fill a whole batch sit this epoch out.
    """
    order = np.random.default_rng([seed, epoch]).permutation(train)
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def channel_statistics(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel of the training images, in units of 0 to 1."""
    channels = data.images.shape[-1]
    counts = np.stack([np.bincount(data.images[data.train, ..., c].ravel(), minlength=256) for c in range(channels)])
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    # Images of one flat colour have no spread; 1/255 is the smallest that pixels can show.
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 255.0**-2)).tolist())


def _read_folder(
    folder: Path, names: Sequence[str], size: tuple[int, int], channels: int, log: ProgressLog
) -> tuple[Images, Labels, list[str]]:
    """(images, labels, a line for each unreadable file) of the sub-folders `names`, in their order."""
    files = [
        (label, path)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    images: list[np.ndarray] = []
    labels: list[int] = []
    unreadable: list[str] = []
    for done, (label, path) in enumerate(files, 1):
        try:
            images.append(read_image(path, size, channels))
            labels.append(label)
        except ValueError as error:
            unreadable.append(str(error))
        log.show_reading(done, len(files))
    stacked = np.stack(images) if images else np.zeros((0, *size, channels), dtype=np.uint8)
    return stacked, np.asarray(labels, dtype=np.int32), unreadable


def _to_opaque_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
        wide = np.asarray(image, dtype=np.int64)
        return Image.fromarray((wide // 257 if wide.max() > 255 else wide).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _split_by_class(images: Images, labels: Labels, classes: tuple[str, ...], unreadable: tuple[str, ...]) -> Data:
    rng = np.random.default_rng(SPLIT_SEED)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for label in range(len(classes)):
        members = rng.permutation(np.flatnonzero(labels == label))
        test = max(1, round(TEST_SHARE * len(members)))
        validation = max(1, round(VALIDATION_SHARE * len(members)))
        ends = np.split(members, [len(members) - test - validation, len(members) - test])
        for part, indices in zip(parts, ends, strict=True):
            part.append(indices)
    train, validation, test = (np.sort(np.concatenate(part)).astype(np.int32) for part in parts)
    return Data(images, labels, classes, train, validation, test, _fingerprint(images, labels, classes), unreadable)


def _fingerprint(images: Images, labels: Labels, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((images.shape, classes)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()[:16]
