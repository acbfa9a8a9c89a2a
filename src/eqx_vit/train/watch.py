"""How fast a run goes, what it waits for, and how much memory it takes."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax


class Speed(NamedTuple):
    """Images a second, and the share of the time in which the run waited for images."""

    images_per_second: float
    data_wait: float

    def describe(self) -> str:
        """In words, for the progress bar."""
        return f"{self.images_per_second:,.0f} images/s, {self.data_wait:.0%} waiting for data"


class Watch:
    """Counts images and seconds from one `lap` to the next."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._began, self._images, self._waited = time.monotonic(), 0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, the run waits for images."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def count(self, images: int) -> None:
        """Note that a step with so many images is done."""
        self._images += images

    def read(self) -> "Speed":
        """The speed since the last lap."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        return Speed(self._images / seconds, self._waited / seconds)

    def lap(self) -> None:
        """Start counting anew."""
        self._start()


def peak_memory() -> float | None:
    """The most memory held so far, in 2^30 bytes: of the device where it says so, else of this process.

    None on Windows, which does not tell.
    """
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 2**30
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
