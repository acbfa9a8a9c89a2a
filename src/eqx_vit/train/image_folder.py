"""How a folder of images is laid out: its sub-folders are the classes, or the split with the classes inside."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eqx_vit.layers.config import check, list_some

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
    return list_some([to_printable(name)[:80] for name in names])


def to_printable(text: str) -> str:
    """`text` without control characters and bytes of a file name that are not UTF-8, which nothing can show."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _list_folders(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the sub-folders, in alphabetical order, and a line for each link that leads nowhere."""
    paths = sorted(path for path in folder.iterdir() if not _is_hidden(path.name))
    broken = [f"{path} is a broken link" for path in paths if path.is_symlink() and not path.exists()]
    return [path.name for path in paths if path.is_dir()], broken


def list_files(folder: Path, left_out: list[str]) -> list[Path]:
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
