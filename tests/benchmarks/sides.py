"""One contender of a benchmark, and its calls: each runs once, and returns when the result is there."""

from collections.abc import Callable
from typing import NamedTuple

Measured = Callable[[], object]


class Side(NamedTuple):
    """A model in some framework, ready to be timed."""

    parameters: int
    forward: Callable[[int], Measured]  # by batch size
    training: Callable[[int], Measured]  # forward, backward, AdamW
    matmul: Callable[[int], Measured]  # of two square matrices
    peak_memory: Callable[[], int]  # of the accelerator, in bytes; 0 on a CPU
