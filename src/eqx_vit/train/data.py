"""Labelled images in memory: scikit-learn's digits or an image folder, one fixed split, one order for each epoch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from eqx_vit.layers.config import check
from eqx_vit.train.image_folder import find_layout, list_files, list_names, to_printable
from eqx_vit.train.pictures import read_image
from eqx_vit.train.progress import ProgressLog

SPLIT_SEED = 1797  # the same split whatever the run's seed, so that runs compare
SHARES = {"training": 7, "validation": 1, "test": 2}
DIGITS = tuple(str(digit) for digit in range(10))

Indices = Int[np.ndarray, " indices"]
Images = UInt8[np.ndarray, "images height width channels"]
Labels = Int[np.ndarray, " images"]
Parts = dict[str, Int[np.ndarray, " _"]]  # the indices of each part of the split


class Data(NamedTuple):
    """All images of a task in one array, and which of them are for what.

    **Attributes:**

    - `images`: (images, height, width, channels), 0 black to 255.
    - `labels`: for each image the number of its class, an index of `classes`.
    - `train, validation, test`: indices of images; together all of them.
    - `fingerprint`: a digest of images, labels and names: equal data, equal fingerprint.
    - `unreadable`: one line for each file or folder that was left out, with the reason.
    - `split`: the folders that gave the split, such as ("train", "val"); none where it was made here, by class.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    train: Indices
    validation: Indices
    test: Indices
    fingerprint: str
    unreadable: tuple[str, ...]
    split: tuple[str, ...] = ()


def load_data(folder: str | None, size: tuple[int, int], channels: int, log: ProgressLog) -> Data:
    """The digits (None) as they are, or an image folder at that size; unreadable files are logged.

    **Raises:** `ValueError` for a wrong folder; `ImportError` where scikit-learn is not installed.
    """
    if folder is None:
        return load_digits()
    data = load_image_folder(Path(folder), size, channels, log)
    if data.split:
        shared = f"; {data.split[1]} is shared between validation and test" if len(data.split) == 2 else ""
        log.write(f"split as given: {', '.join(data.split)}{shared}")
    if data.unreadable:
        total = len(data.labels) + len(data.unreadable)
        log.write(f"{len(data.unreadable)} of {total} files left out:")
        for line in data.unreadable[:10]:
            log.write(f"  {to_printable(line)}")
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
    labels = labels.astype(np.int32)
    parts = _split_by_class(labels, np.arange(len(labels)), tuple(SHARES))
    return _make_data(images, labels, DIGITS, parts, (), ())


def load_image_folder(folder: Path, size: tuple[int, int], channels: int, log: ProgressLog) -> Data:
    """An image folder with one sub-folder for each class, cropped and resized to `size`, (height, width).

    Hidden files and folders are no part of it; files that are not a readable image, linked folders and broken links
    are left out. Split by class: 20 % test, 10 % validation (at least one image each), the rest training. A folder that
    comes with its split (`find_layout`) keeps it; with one folder for validation and test, a third of it is for
    validation.

    **Raises:** `ValueError` as `find_layout` does, and for a class with too few readable images.
    """
    classes, parts, left_out = find_layout(folder)
    images, labels, sources, unreadable = _read_folders(list(parts), classes, size, channels, log)
    unreadable = [*left_out, *unreadable]
    split: Parts = {}
    for source, (place, uses) in enumerate(parts.items()):
        members = np.flatnonzero(sources == source)
        counts = np.bincount(labels[members], minlength=len(classes))
        too_small = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < len(uses)]
        reasons = f"; {len(unreadable)} left out, such as {unreadable[0]}" if unreadable else ""
        needed = "a readable image" if len(uses) == 1 else f"{len(uses)} readable images or more"
        check(
            not too_small,
            f"every class of {place} needs {needed} ({', '.join(uses)}), "
            f"these have fewer: {list_names(too_small)}{reasons}",
        )
        split |= _split_by_class(labels, members, uses)
    given = tuple(place.name for place in parts) if len(parts) > 1 else ()
    return _make_data(images, labels, tuple(classes), split, tuple(unreadable), given)


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


def _read_folders(
    folders: Sequence[Path], classes: Sequence[str], size: tuple[int, int], channels: int, log: ProgressLog
) -> tuple[Images, Labels, Labels, list[str]]:
    """(images, labels, for each image the number of its folder, a line for each thing left out).

    The sub-folders `classes` of each folder are read in their order.
    """
    left_out: list[str] = []
    files = [
        (source, label, path)
        for source, folder in enumerate(folders)
        for label, name in enumerate(classes)
        for path in list_files(folder / name, left_out)
    ]
    images: list[np.ndarray] = []
    read: list[tuple[int, int]] = []
    for done, (source, label, path) in enumerate(files, 1):
        try:
            images.append(read_image(path, size, channels))
            read.append((source, label))
        except ValueError as error:
            left_out.append(str(error))
        log.show_reading(done, len(files))
    stacked = np.stack(images) if images else np.zeros((0, *size, channels), dtype=np.uint8)
    sources, labels = np.asarray(read, dtype=np.int32).reshape(-1, 2).T
    return stacked, labels, sources, left_out


def _split_by_class(labels: Labels, members: Indices, uses: tuple[str, ...]) -> Parts:
    """The images `members` by use, in the proportions of `SHARES`, at least one of every class in each."""
    rng = np.random.default_rng(SPLIT_SEED)
    parts: list[list[np.ndarray]] = [[] for _ in uses]
    shares = [SHARES[use] / sum(SHARES[use] for use in uses) for use in uses[1:]]
    for label in np.unique(labels[members]):
        own = rng.permutation(members[labels[members] == label])
        counts = [max(1, round(share * len(own))) for share in shares]
        ends = len(own) - np.cumsum(counts[::-1])[::-1]
        for part, indices in zip(parts, np.split(own, ends), strict=True):
            part.append(indices)
    sorted_parts = (np.sort(np.concatenate(part)).astype(np.int32) for part in parts)
    return dict(zip(uses, sorted_parts, strict=True))


def _make_data(
    images: Images,
    labels: Labels,
    classes: tuple[str, ...],
    parts: Parts,
    unreadable: tuple[str, ...],
    split: tuple[str, ...],
) -> Data:
    train, validation, test = (parts[use] for use in SHARES)
    digest = hashlib.sha256(repr((images.shape, classes)).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i4").tobytes())  # in the order of folders and classes: it tells a given split
    return Data(images, labels, classes, train, validation, test, digest.hexdigest()[:16], unreadable, split)
