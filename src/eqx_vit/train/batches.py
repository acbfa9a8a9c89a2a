"""Batches of images in the order of a run, read ahead: each is a function of (seed, step), whoever reads it.

An image that turns out to be unreadable is left out of an evaluation; in training the next one of the data set that can
be read takes its place, so that every run with these files sees the same.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from eqx_vit.layers.config import check
from eqx_vit.train.crops import random_resized_crop, simple_random_crop
from eqx_vit.train.file_images import FileImages, to_array
from eqx_vit.train.policies import RandAugment, jitter_colours, parse_rand_augment, rand_augment, three_augment
from eqx_vit.train.settings import Crop, Settings

Indices = Int[np.ndarray, " indices"]
ArrayImages: TypeAlias = UInt8[np.ndarray, "images height width channels"]
Images: TypeAlias = ArrayImages | FileImages
NOTHING = -1  # in place of the index of an image that could not be read


class Batch(NamedTuple):
    """**Attributes:** `images`; `labels`; `unreadable`, for each place the index of an image that could not be read and
    is not there, or -1.
    """

    images: Shaped[np.ndarray, "batch height width channels"]
    labels: Int[np.ndarray, " batch"]
    unreadable: Int[np.ndarray, " batch"]


class Changes(NamedTuple):
    """What happens to a training image before it is in a batch; see `Settings`. `fill` is the colour of the outside."""

    crop: Crop
    crop_scale: float
    rand_augment: RandAugment | None
    three_augment: bool
    colour_jitter: float
    fill: tuple[int, ...]

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        is_cropped = self.crop != "whole"
        return is_cropped or self.rand_augment is not None or self.three_augment or self.colour_jitter > 0


def make_changes(settings: Settings, mean: tuple[float, ...]) -> Changes:
    """The changes that the settings say; `mean` of the training images, of 0 to 1, is what surrounds them."""
    policy = None if settings.rand_augment is None else parse_rand_augment(settings.rand_augment)
    fill = tuple(round(255 * value) for value in mean)
    return Changes(settings.crop, settings.crop_scale, policy, settings.three_augment, settings.colour_jitter, fill)


def draw_batches(
    train: Indices, seed: int, epoch: int, batch_size: int, repeats: int = 1
) -> Int[np.ndarray, "steps batch"]:
    """The batches of an epoch: a function of (seed, epoch) alone, so that a resumed run sees the same ones.

    The images that do not fill a whole batch sit this epoch out. With `repeats`, an image is so many times in a row,
    and the epoch is as long, of as many fewer images (repeated augmentation, arXiv 1902.05509, as in DeiT).
    """
    order = np.random.default_rng([seed, epoch]).permutation(train)
    order = np.repeat(order[: -(-len(order) // repeats)], repeats)[: len(order)]
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def choose_batch_size(settings: Settings, train: Indices) -> int:
    """The batch size of a run: no more than there are training images, even where images are mixed in pairs, and a
    multiple of the parts in which its gradients are computed.

    **Raises:** `ValueError` where there is none.
    """
    size = min(settings.batch_size, len(train))
    unit = math.lcm(2 if settings.mixup or settings.cutmix else 1, settings.accumulate)
    check(
        size >= unit,
        f"a batch of {size} ({len(train)} training images) is too small: mixup, cutmix and --accumulate need {unit}",
    )
    return size - size % unit


@dataclass(frozen=True)
class TrainingExamples:
    """The images of a whole run, in its order: those of the first batch, those of the second.

    **Attributes:** `train`, the indices of the training images; `total`, the number of steps; `places`, those of each
    batch that are read here, of `batch_size`; the others as in `Settings`.
    """

    images: Images
    labels: np.ndarray
    train: np.ndarray
    changes: Changes
    seed: int
    batch_size: int
    repeats: int
    total: int
    places: np.ndarray
    _drawn: dict[int, np.ndarray] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return self.total * len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        step, number = divmod(index, len(self.places))
        place = int(self.places[number])
        wanted = int(self.rows(step)[number])
        for chosen in self._from(wanted):
            try:
                image = self._read(chosen, np.random.default_rng([self.seed, 2, step, place]))
            except ValueError:
                continue
            return image, np.asarray(self.labels[chosen]), np.asarray(NOTHING if chosen == wanted else wanted)
        raise ValueError("none of the training images can be read any more")

    def rows(self, step: int) -> Int[np.ndarray, " own"]:
        """The indices of the images of a step that are read here."""
        epoch, position = divmod(step, len(self.train) // self.batch_size)
        drawn = self._drawn.get(epoch)
        if drawn is None:
            drawn = draw_batches(self.train, self.seed, epoch, self.batch_size, self.repeats)
            self._drawn.clear()  # one epoch is enough
            self._drawn[epoch] = drawn
        return drawn[position][self.places]

    def _from(self, index: int) -> Iterator[int]:
        """The index, and those after it."""
        yield index
        start = int(np.searchsorted(self.train, index)) + 1
        yield from (int(self.train[(start + more) % len(self.train)]) for more in range(len(self.train) - 1))

    def _read(self, index: int, rng: np.random.Generator) -> np.ndarray:
        if not self.changes.any:
            return self.images[index]
        return to_array(_change(_open(self.images, index, self.changes), self.images, self.changes, rng))


@dataclass(frozen=True)
class EvaluationExamples:
    """The images at some indices, as they are; black where one cannot be read."""

    images: Images
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wanted = int(self.indices[index])
        try:
            return self.images[wanted], np.asarray(self.labels[wanted]), np.asarray(NOTHING)
        except ValueError:
            black = np.zeros(self.images.shape[1:], dtype=self.images.dtype)
            return black, np.asarray(self.labels[wanted]), np.asarray(wanted)


@contextmanager
def read_batches(
    examples: TrainingExamples | EvaluationExamples, batch_size: int, start: int = 0, workers: int = 0
) -> Iterator[Iterator[Batch]]:
    """Batches from batch number `start` on; the last of an evaluation may be smaller. Ends what reads ahead with it.

    Files are read ahead by as many processes as `workers` says, by threads where it is 0: the batches are the same.

    **Raises:** `ValueError` where a worker process has ended.
    """
    if isinstance(examples.images, np.ndarray):
        yield _take_batches(examples, batch_size, start)
        return
    iterator = _read_ahead(examples, batch_size, start, workers)
    try:
        yield _check_workers(iterator)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _take_batches(examples: TrainingExamples | EvaluationExamples, batch_size: int, start: int) -> Iterator[Batch]:
    """Batches of images in memory: a look-up, unless each is changed by itself."""
    images, labels = examples.images, examples.labels
    for first in range(start * batch_size, len(examples), batch_size):
        if isinstance(examples, EvaluationExamples):
            rows = examples.indices[first : first + batch_size]
        elif examples.changes.any:
            changed = [examples[number] for number in range(first, first + batch_size)]
            yield Batch(*map(np.stack, zip(*changed, strict=True)))
            continue
        else:
            rows = examples.rows(first // batch_size)
        yield Batch(images[rows], labels[rows], np.full(len(rows), NOTHING))


def _read_ahead(
    examples: TrainingExamples | EvaluationExamples, batch_size: int, start: int, workers: int
) -> Iterator[tuple[np.ndarray, ...]]:
    import grain
    from absl import flags
    from grain.multiprocessing import MultiprocessingOptions

    if not flags.FLAGS.is_parsed():  # grain asks for some of its own, which this program does not have
        flags.FLAGS.mark_as_parsed()
    threads = max(2, os.cpu_count() or 1) if workers == 0 else 2
    source = grain.MapDataset.source(examples)[start * batch_size :].batch(batch_size)
    # Counted in batches, as what is read ahead takes memory.
    ahead = source.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    options = MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return iter(ahead.mp_prefetch(options, worker_init_fn=_follow_parent))


def _follow_parent(_index: int, _count: int) -> None:
    """In a worker: leave Ctrl-C to the program, and end with it, even where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _check_workers(iterator: Iterator[tuple[np.ndarray, ...]]) -> Iterator[Batch]:
    while True:
        try:
            parts = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:  # grain's, of a process that is gone
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"a worker that reads images has ended; --resume goes on from what was saved last: {reason}"
            ) from error
        yield Batch(*parts)


def _open(images: Images, index: int, changes: Changes) -> Image.Image:
    if isinstance(images, FileImages) and changes.crop != "whole":
        return images.open(index)
    image = images[index]
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _change(image: Image.Image, images: Images, changes: Changes, rng: np.random.Generator) -> Image.Image:
    size = (images.shape[1], images.shape[2])
    if changes.crop == "random":
        image = random_resized_crop(image, size, rng, scale=(changes.crop_scale, 1.0))
    elif changes.crop == "simple":
        image = simple_random_crop(image, size, rng)
    if changes.rand_augment is not None:
        image = rand_augment(image, rng, changes.rand_augment, changes.fill[: len(image.getbands())])
    if changes.three_augment:
        image = three_augment(image, rng)
    if changes.colour_jitter > 0:
        image = jitter_colours(image, rng, changes.colour_jitter)
    return image
