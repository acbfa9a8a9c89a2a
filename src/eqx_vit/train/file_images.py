"""Images that stay in their files, and are decoded when they are needed."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from eqx_vit.train.crops import centre_crop
from eqx_vit.train.pictures import check_header, open_image, read_image
from eqx_vit.weights.preprocessing import Preprocessing

THREADS = 16  # that look at the headers of files, which may lie on a network
AT_ONCE = 4096  # headers: of a million files, a task for each would take a gigabyte


@dataclass(frozen=True)
class FileImages:
    """Image files, to be indexed like an array of all their images.

    **Attributes:** `paths`, an array of bytes, which a worker is sent in one piece; `size`, (height, width), and
    `channels` of the arrays; `crop_fraction`, the share of the resized image that is kept about its centre; `expected`,
    where the images are to be normalised too.
    """

    paths: np.ndarray
    size: tuple[int, int]
    channels: int
    crop_fraction: float
    expected: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return Path(os.fsdecode(bytes(self.paths[index])))

    def open(self, index: int) -> Image.Image:
        """The whole image, upright.

        **Raises:** `ValueError` that names the file and says why it cannot be read.
        """
        return open_image(self.path(index), self.channels)

    @property
    def dtype(self) -> np.dtype:
        """Of the arrays."""
        return np.dtype(np.uint8 if self.expected is None else np.float32)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of all images in one array."""
        return (len(self), *self.size, self.channels)

    def __getitem__(self, index: int | Int[np.ndarray, " indices"]) -> Shaped[np.ndarray, "..."]:
        """An image as evaluation sees it, or several.

        **Raises:** `ValueError` as `open` does.
        """
        if isinstance(index, np.ndarray):
            return np.stack([self[int(one)] for one in index])
        if self.expected is not None:
            return self.expected.apply(self.open(index))
        if self.crop_fraction == 1:
            return read_image(self.path(index), self.size, self.channels)
        return to_array(centre_crop(self.open(index), self.size, self.crop_fraction))


def to_array(image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    """An 8-bit image as an array, with an axis of channels where it is grey."""
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def look_at_headers(paths: Sequence[bytes], show: Callable[[int, int], None]) -> tuple[list[int], list[str]]:
    """(the places of the files that are images, why the others are none): only their headers are read.

    `show(done, total)` is told of the progress.
    """
    kept: list[int] = []
    problems: list[str] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), AT_ONCE):
            for place, problem in enumerate(pool.map(_find_problem, paths[start : start + AT_ONCE]), start):
                if problem is None:
                    kept.append(place)
                else:
                    problems.append(problem)
                show(place + 1, len(paths))
    return kept, problems


def _find_problem(path: bytes) -> str | None:
    try:
        check_header(Path(os.fsdecode(path)))
    except ValueError as error:
        return str(error)
    return None
