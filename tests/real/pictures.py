"""Pictures of what the model sees: the attention of each head, and principal components as colours."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from eqx_vit.models.source import IMAGENET_MEAN, IMAGENET_STD


def draw_attention(path: Path, image: np.ndarray, maps: np.ndarray) -> None:
    """The photo beside the map of each of six heads, and their mean; each on a scale of its own."""
    heads = {f"head {index}": one for index, one in enumerate(maps)}
    _draw_panels(path, {"photo": to_photo(image), **heads, "mean of the heads": maps.mean(axis=0)}, columns=4)


def draw_components(path: Path, image: np.ndarray, components: np.ndarray) -> None:
    """The photo, the patches in which the first component is positive, and the first three as red, green and blue."""
    low, high = np.percentile(components, [1, 99], axis=(0, 1))
    panels = {
        "photo": to_photo(image),
        "first component above 0": components[..., 0] > 0,
        "first three components": np.clip((components - low) / (high - low), 0, 1),
    }
    _draw_panels(path, panels, columns=3)


def draw_row(path: Path, image: np.ndarray, maps: np.ndarray, colours: np.ndarray) -> None:
    """The picture of the README: the photo, its patch features as colours, and three heads."""
    heads = {f"layer 11, head {index}": maps[index] for index in (2, 4, 5)}
    _draw_panels(path, {"photo": to_photo(image), "patch features": colours, **heads}, columns=5)


def to_photo(image: np.ndarray) -> np.ndarray:
    return np.clip(image * np.asarray(IMAGENET_STD) + np.asarray(IMAGENET_MEAN), 0, 1)


def _draw_panels(path: Path, panels: Mapping[str, np.ndarray], columns: int) -> None:
    rows, photo = len(panels) // columns, panels["photo"]
    width, height = 4.0, 4.0 * photo.shape[0] / photo.shape[1] + 0.3  # of a panel with its title, in inches
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    for (title, picture), axes in zip(panels.items(), np.ravel(figure.subplots(rows, columns)), strict=True):
        axes.imshow(picture)
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=100)
