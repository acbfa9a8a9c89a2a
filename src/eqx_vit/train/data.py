"""Labelled images and one fixed split of them: scikit-learn's digits, or an image folder."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from eqx_vit.layers.config import check
from eqx_vit.train.batches import ArrayImages, EvaluationExamples, Images, Indices, read_batches
from eqx_vit.train.file_images import FileImages, look_at_headers
from eqx_vit.train.image_folder import find_layout, list_files, list_names, to_printable
from eqx_vit.train.pictures import read_image
from eqx_vit.train.progress import ProgressLog

SPLIT_SEED = 1797  # the same split whatever the run's seed, so that runs compare
SHARES = {"training": 7, "validation": 1, "test": 2}
DIGITS = tuple(str(digit) for digit in range(10))
IN_MEMORY = 2**28  # bytes: images that take no more are decoded once, others each time that they are needed
STATISTICS_IMAGES = 1024  # of those in files, so many tell mean and standard deviation

Labels = Int[np.ndarray, " images"]
Parts = dict[str, Int[np.ndarray, " _"]]  # the indices of each part of the split


class Data(NamedTuple):
    """All images of a task, and which of them are for what.

    **Attributes:**

    - `images`: (images, height, width, channels), 0 black to 255, in one array or in their files.
    - `labels`: for each image the number of its class, an index of `classes`.
    - `train, validation, test`: indices of images; together all of them.
    - `fingerprint`: a digest of images (in files: of their names and lengths), labels and classes: equal data, equal
        fingerprint.
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


class View(NamedTuple):
    """How images are seen: (height, width), channels, the share about the centre that is kept for evaluation, and
    whether training cuts them out of the whole image.
    """

    size: tuple[int, int]
    channels: int
    crop_fraction: float = 1.0
    from_whole: bool = False


def load_data(folder: str | None, view: View, log: ProgressLog) -> Data:
    """The digits (None) as they are, or an image folder; unreadable files are logged.

    **Raises:** `ValueError` for a wrong folder; `ImportError` where scikit-learn is not installed.
    """
    if folder is None:
        return load_digits()
    data = load_image_folder(Path(folder), view, log)
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
    return _make_data(images, labels, DIGITS, parts, _digest_array(images, DIGITS), (), ())


def load_image_folder(folder: Path, view: View, log: ProgressLog) -> Data:
    """An image folder with one sub-folder for each class.

    Hidden files and folders are no part of it; files that are not a readable image, linked folders and broken links
    are left out. Split by class: 20 % test, 10 % validation (at least one image each), the rest training. A folder that
    comes with its split (`find_layout`) keeps it; with one folder for validation and test, a third of it is for
    validation.

    A data set that takes up to `IN_MEMORY` bytes at that size is read once. Of others only the headers are read here:
    files that are damaged further on are found when their turn comes.

    **Raises:** `ValueError` as `find_layout` does, and for a class with too few readable images.
    """
    classes, parts, left_out = find_layout(folder)
    unreadable = list(left_out)
    files: list[bytes] = []  # a path takes ten times as much, and there may be millions
    places: list[tuple[int, int]] = []
    for source, place in enumerate(parts):
        for label, name in enumerate(classes):
            found = list_files(place / name, unreadable)
            files += map(os.fsencode, found)
            places += [(source, label)] * len(found)
    pixels = len(files) * view.size[0] * view.size[1] * view.channels
    in_memory = pixels <= IN_MEMORY and not view.from_whole and view.crop_fraction == 1
    images, kept, problems = (_decode if in_memory else _keep_in_files)(files, view, log)
    unreadable += problems
    sources, labels = np.asarray([places[index] for index in kept], dtype=np.int32).reshape(-1, 2).T
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
    in_files = isinstance(images, FileImages)
    digest = _digest_files(folder, images, classes) if in_files else _digest_array(images, classes)
    return _make_data(images, labels, tuple(classes), split, digest, tuple(unreadable), given)


def channel_statistics(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel of the training images, in units of 0 to 1.

    Of images in files, so many as `STATISTICS_IMAGES`, evenly spread over the data set.
    """
    train = data.train
    if isinstance(data.images, FileImages) and len(train) > STATISTICS_IMAGES:
        train = train[np.linspace(0, len(train) - 1, STATISTICS_IMAGES).astype(np.int32)]
    channels = range(data.images.shape[-1])
    counts = np.zeros((len(channels), 256), dtype=np.int64)
    with read_batches(EvaluationExamples(data.images, data.labels, train), 64) as batches:
        for batch in batches:
            images = batch.images[batch.unreadable < 0]
            counts += np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in channels])
    check(counts.sum() > 0, "none of the training images can be read")
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    # Images of one flat colour have no spread; 1/255 is the smallest that pixels can show.
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 255.0**-2)).tolist())


Found = tuple[Images, list[int], list[str]]  # images, the places of theirs among the files, a line for each other file


def _decode(paths: Sequence[bytes], view: View, log: ProgressLog) -> Found:
    """The images in one array."""
    images: list[np.ndarray] = []
    kept: list[int] = []
    problems: list[str] = []
    for place, path in enumerate(paths):
        try:
            images.append(read_image(Path(os.fsdecode(path)), view.size, view.channels))
            kept.append(place)
        except ValueError as error:
            problems.append(str(error))
        log.show_reading(place + 1, len(paths))
    stacked = np.stack(images) if images else np.zeros((0, *view.size, view.channels), dtype=np.uint8)
    return stacked, kept, problems


def _keep_in_files(paths: Sequence[bytes], view: View, log: ProgressLog) -> Found:
    """The images in their files."""
    kept, problems = look_at_headers(paths, log.show_reading)
    chosen = np.array([paths[place] for place in kept], dtype=np.bytes_)
    return FileImages(chosen, view.size, view.channels, view.crop_fraction), kept, problems


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
    digest: "hashlib._Hash",
    unreadable: tuple[str, ...],
    split: tuple[str, ...],
) -> Data:
    train, validation, test = (parts[use] for use in SHARES)
    digest.update(labels.astype("<i4").tobytes())  # in the order of folders and classes: it tells a given split
    return Data(images, labels, classes, train, validation, test, digest.hexdigest()[:16], unreadable, split)


def _digest_array(images: ArrayImages, classes: Sequence[str]) -> "hashlib._Hash":
    digest = hashlib.sha256(repr((images.shape, tuple(classes))).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest


def _digest_files(folder: Path, images: FileImages, classes: Sequence[str]) -> "hashlib._Hash":
    """Of names and lengths: to read a large data set for it would take as long as an epoch."""
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for path in map(images.path, range(len(images))):
        digest.update(os.fsencode(path.relative_to(folder)) + b"\0%d\n" % path.stat().st_size)
    return digest
