"""Labelled images in memory: scikit-learn's digits or an image folder, one fixed split, one order for each epoch."""

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import ExifTags, Image, ImageOps

from eqx_vit.layers.config import check
from eqx_vit.train.progress import ProgressLog
from eqx_vit.weights.preprocessing import to_8_bit

SPLIT_SEED = 1797  # the same split whatever the run's seed, so that runs compare
SHARES = {"training": 7, "validation": 1, "test": 2}
SPELLINGS = {  # of the sub-folders of an image folder that comes with its split
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation", "eval", "evaluation"),
    "test": ("test", "testing"),
}
USES = {  # what each folder is for: one for everything; a split of two, of three
    1: (("training", "validation", "test"),),
    2: (("training",), ("validation", "test")),
    3: (("training",), ("validation",), ("test",)),
}
THUMBNAILS = ("__MACOSX", "@eaDir")  # copies that macOS and Synology put beside images, without a dot
UPRIGHT: dict[object, Image.Transpose] = {  # what turns an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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


class Layout(NamedTuple):
    """How an image folder is laid out.

    **Attributes:**

    - `classes`: their names.
    - `parts`: the folders that hold a sub-folder for each class, with the uses of their images.
    - `left_out`: one line for each folder or link that is neither, with the reason.
    """

    classes: list[str]
    parts: dict[Path, tuple[str, ...]]
    left_out: list[str]


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


def find_classes(folder: Path) -> list[str]:
    """The names of the classes of an image folder, in alphabetical order.

    **Raises:** `ValueError` as `find_layout` does.
    """
    return find_layout(folder).classes


def find_layout(folder: Path) -> Layout:
    """An image folder's sub-folders as its classes or, where `train` stands beside `val` or `test`, as its split.

    **Raises:** `ValueError` for a folder that does not exist or holds fewer than two classes, and a split whose parts
    have different classes.
    """
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: --data takes a folder with one sub-folder for each class")
    names, left_out = _list_folders(folder)
    given: dict[str, Path] = {}
    others: list[Path] = []
    for name in names:
        use = next((use for use, spellings in SPELLINGS.items() if name.casefold() in spellings), None)
        if use is None or use in given:
            others.append(folder / name)
        else:
            given[use] = folder / name
    # Among others, "train" and "test" may be things to tell apart: only classes inside them make them a split.
    if "training" not in given or len(given) == 1 or (others and not _list_folders(given["training"])[0]):
        _check_classes(folder, names)
        return Layout(names, {folder: USES[1][0]}, left_out)

    left_out += [f"{path} is no part of the split" for path in others]
    if "test" in given and not _list_folders(given["test"])[0]:
        left_out.append(f"{given.pop('test')} has no sub-folders, which would tell the classes of its images")
    places = [given[use] for use in SPELLINGS if use in given]
    for place in places:
        own, broken = _list_folders(place)
        left_out += broken
        _check_classes(place, own)
        names = names if place != places[0] else own
        check(
            own == names,
            f"{place} must have the classes of {places[0]}: missing {list_names(sorted({*names} - {*own})) or 'none'}, "
            f"unknown {list_names(sorted({*own} - {*names})) or 'none'}",
        )
    return Layout(names, dict(zip(places, USES[len(places)], strict=True)), left_out)


def list_names(names: Sequence[str]) -> str:
    """Up to ten names, each on the screen's terms, and how many more there are."""
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return ", ".join(to_printable(name)[:80] for name in names[:10]) + more


def to_printable(text: str) -> str:
    """`text` without control characters and bytes of a file name that are not UTF-8, which nothing can show."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


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
                image.load()
                return _to_opaque_8_bit(_turn_upright(image)).convert("L" if channels == 1 else "RGB")
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # decoders raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is damaged: {reason}") from error


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
        for path in _list_files(folder / name, left_out)
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


def _list_folders(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the sub-folders, in alphabetical order, and a line for each link that leads nowhere."""
    paths = sorted(path for path in folder.iterdir() if not _is_hidden(path.name))
    broken = [f"{path} is a broken link" for path in paths if path.is_symlink() and not path.exists()]
    return [path.name for path in paths if path.is_dir()], broken


def _list_files(folder: Path, left_out: list[str]) -> list[Path]:
    """The files at any depth, in alphabetical order; `left_out` gets a line for each thing that is none."""
    files: list[Path] = []
    for place, folders, names in os.walk(
        folder, onerror=lambda error: left_out.append(f"{error.filename} cannot be listed: {error.strerror}")
    ):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        paths = [Path(place, name) for name in folders]
        left_out.extend(f"{path} is a link to a folder" for path in paths if path.is_symlink())
        files += [Path(place, name) for name in names if not _is_hidden(name)]
    files.sort()
    for path in files:
        if not os.path.isfile(path):
            left_out.append(f"{path} is {'a broken link' if os.path.islink(path) else 'not a file that can be read'}")
    return [path for path in files if os.path.isfile(path)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in THUMBNAILS


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    check(bool(names), f"{folder} has no sub-folders: it needs one for each class, with the images inside")
    if len(names) == 1:
        within = _list_folders(folder / names[0])[0]
        hint = f"; if its sub-folders are the classes, give {folder / names[0]}" if within else ""
        raise ValueError(f"{folder} has one class only, {names[0]!r}: telling classes apart needs two or more{hint}")


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
