"""Images with labels in memory: scikit-learn's digits, or an image folder; one fixed split, one order per epoch."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from eqx_vit.train.pictures import read_picture

SPLIT_SEED = 1797  # the same split whatever the run's seed, so that runs compare
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1

Indices = Int[np.ndarray, " some"]


class Data(NamedTuple):
    """All images of a task in one array, and which of them are for what.

    **Attributes:**

    - `images`: (images, height, width, channels), 0 black to 255.
    - `labels`: for each image the number of its class, an index of `classes`.
    - `train, validation, test`: indices of images; together all of them.
    - `fingerprint`: a digest of images, labels and names: equal data, equal fingerprint.
    - `unreadable`: one line for each file that was left out, with the reason.
    """

    images: UInt8[np.ndarray, "images height width channels"]
    labels: Int[np.ndarray, " images"]
    classes: tuple[str, ...]
    train: Indices
    validation: Indices
    test: Indices
    fingerprint: str
    unreadable: tuple[str, ...]


def digits() -> Data:
    """The 1,797 handwritten digits that scikit-learn carries (8 x 8, grey; UCI's optical recognition test set).

    Split by class: 20 % test, 10 % validation, 70 % training.

    **Raises:** `ImportError` where scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return _split(images, bunch.target.astype(np.int32), tuple(str(digit) for digit in range(10)), ())


def class_names(folder: Path) -> list[str]:
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


def image_folder(folder: Path, size: tuple[int, int], channels: int, tick: Callable[[int, int], None]) -> Data:
    """An image folder with one sub-folder for each class, cropped and resized to `size`, (height, width).

    Files that are no readable image are left out and reported. Split by class: 20 % test, 10 % validation (at least
    one image each), the rest training. `tick(done, total)` is told about each file.

    **Raises:** `ValueError` for a folder without classes, or a class with fewer than three readable images.
    """
    names = class_names(folder)
    images, labels, unreadable = read_folder(folder, names, size, channels, tick)
    counts = np.bincount(labels, minlength=len(names))
    poor = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < 3]
    if poor:
        reasons = f"; {len(unreadable)} unreadable, such as {unreadable[0]}" if unreadable else ""
        raise ValueError(
            f"every class of {folder} needs 3 readable images or more (training, validation, test), "
            f"these have fewer: {', '.join(poor)}{reasons}"
        )
    return _split(images, labels, tuple(names), tuple(unreadable))


def read_folder(
    folder: Path, names: Sequence[str], size: tuple[int, int], channels: int, tick: Callable[[int, int], None]
) -> tuple[UInt8[np.ndarray, "images height width channels"], Int[np.ndarray, " images"], list[str]]:
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
            images.append(read_picture(path, size, channels))
            labels.append(label)
        except ValueError as error:
            unreadable.append(str(error))
        tick(done, len(files))
    stacked = np.stack(images) if images else np.zeros((0, *size, channels), dtype=np.uint8)
    return stacked, np.asarray(labels, dtype=np.int32), unreadable


def epoch_order(train: Indices, seed: int, epoch: int, batch_size: int) -> Int[np.ndarray, "steps batch"]:
    """The batches of an epoch: a function of (seed, epoch) alone, so that a resumed run sees the same ones.

    The images that fill no whole batch sit this epoch out.
    """
    order = np.random.default_rng([seed, epoch]).permutation(train)
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def _split(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], unreadable: tuple[str, ...]) -> Data:
    random = np.random.default_rng(SPLIT_SEED)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for label in range(len(classes)):
        members = random.permutation(np.flatnonzero(labels == label))
        test = max(1, round(TEST_SHARE * len(members)))
        validation = max(1, round(VALIDATION_SHARE * len(members)))
        ends = np.split(members, [len(members) - test - validation, len(members) - test])
        for part, indices in zip(parts, ends, strict=True):
            part.append(indices)
    train, validation_part, test_part = (np.sort(np.concatenate(part)).astype(np.int32) for part in parts)
    return Data(
        images, labels, classes, train, validation_part, test_part, _fingerprint(images, labels, classes), unreadable
    )


def _fingerprint(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((images.shape, classes)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()[:16]
