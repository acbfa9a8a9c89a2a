"""Where else the numbers of a run go: TensorBoard, Weights & Biases, trackio. metrics.jsonl is written in any case."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

TRACKERS = ("tensorboard", "wandb", "trackio")


@runtime_checkable
class Tracker(Protocol):
    """Takes the numbers of a run as they come."""

    def log(self, step: int, numbers: Mapping[str, float | int]) -> None:
        """Take the numbers after so many steps."""
        ...

    def close(self) -> None:
        """Write what is not yet written."""
        ...


def make_tracker(name: str | None, folder: Path, settings: Mapping[str, object]) -> Tracker:
    """The tracker of this name, one of `TRACKERS`, for the run in a folder; None: one that forgets all.

    **Raises:** `ValueError` where the package that it needs is not installed, or fails.
    """
    try:
        match name:
            case None:
                return Forgetful()
            case "tensorboard":
                return TensorBoard(folder / "tensorboard")
            case _:
                return Service(importlib.import_module(name), folder.name, settings)
    except ImportError as error:
        package = error.name or name
        raise ValueError(f"--track {name} needs {package}: pip install {package}") from error
    except Exception as error:  # whatever a service raises, such as for want of a login
        raise ValueError(f"--track {name} failed: {error}") from error


class Forgetful:
    """A tracker that does nothing."""

    def log(self, step: int, numbers: Mapping[str, float | int]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))

    def log(self, step: int, numbers: Mapping[str, float | int]) -> None:
        """One scalar for each number."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Service:
    """wandb or trackio: a package with `init`, `log` and `finish`."""

    def __init__(self, package: ModuleType, name: str, settings: Mapping[str, object]) -> None:
        self._package = package
        package.init(project="eqx_vit", name=name, config=dict(settings))

    def log(self, step: int, numbers: Mapping[str, float | int]) -> None:
        """All numbers at once."""
        self._package.log(dict(numbers), step=step)

    def close(self) -> None:
        """End the run there."""
        self._package.finish()
