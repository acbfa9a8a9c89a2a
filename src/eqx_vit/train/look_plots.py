"""The figures of `eqx-vit look`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from eqx_vit.train.image_folder import to_printable
from eqx_vit.train.plots import shorten_label, write_figure

COLUMNS = 6
SIDE = 2.1  # of an image, in inches


class Panel(NamedTuple):
    """A map of the image, and whether it is drawn over it."""

    title: str
    values: Float[np.ndarray, "rows columns"]
    over_image: bool


def draw_look(
    path: Path,
    pixels: UInt8[np.ndarray, "height width colours"],
    ranking: Sequence[tuple[str, float]],
    panels: Sequence[Panel],
    title: str,
) -> None:
    """The image, its five likeliest classes, then the maps: those over the image beside it, the others below."""
    above = [panel for panel in panels if panel.over_image]
    below = [panel for panel in panels if not panel.over_image]
    columns = max(min(COLUMNS, len(below)), len(above) + 2)
    rows = 1 + -(-len(below) // columns)
    shape = pixels.shape[0] / pixels.shape[1]
    figure = Figure(figsize=(SIDE * columns, (SIDE * shape + 0.3) * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    _show(grid[0, 0], pixels)
    grid[0, 0].set_title("image", fontsize=9)
    for axes, panel in zip(grid[0, 1:], above, strict=False):
        _show(axes, pixels)
        _draw_map(axes, panel, pixels.shape[:2])
    if ranking:
        _draw_ranking(grid[0, len(above) + 1], ranking[:5])
    for axes, panel in zip(grid[1:].flat, below, strict=False):
        _draw_map(axes, panel, pixels.shape[:2])
    figure.suptitle(to_printable(title), parse_math=False, fontsize=10)
    write_figure(path, figure)


def draw_features(
    path: Path,
    pixels: UInt8[np.ndarray, "height width colours"],
    rgb: Float[np.ndarray, "rows columns 3"],
    title: str,
) -> None:
    """The image beside its features as colours."""
    shape = pixels.shape[0] / pixels.shape[1]
    figure = Figure(figsize=(8, 4 * shape + 0.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_axis_off()
    _show(left, pixels)
    right.imshow(rgb, interpolation="nearest", extent=(0, pixels.shape[1], pixels.shape[0], 0))
    right.set_title("patch features, three principal components", fontsize=9)
    figure.suptitle(to_printable(title), parse_math=False, fontsize=10)
    write_figure(path, figure)


def _show(axes: Any, pixels: UInt8[np.ndarray, "height width colours"]) -> None:
    image = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic", extent=extent)


def _draw_map(axes: Any, panel: Panel, size: tuple[int, int]) -> None:
    """Over the image the map is as opaque as it is high; alone it fills the frame."""
    values = panel.values - panel.values.min()
    values = values / max(float(values.max()), np.finfo(np.float32).tiny)
    extent = (0, size[1], size[0], 0)
    if panel.over_image:
        axes.imshow(values, cmap="jet", alpha=0.5, interpolation="bilinear", extent=extent)
    else:
        axes.imshow(values, cmap="inferno", interpolation="nearest", extent=extent)
    axes.set_title(shorten_label(panel.title, 30), fontsize=9, parse_math=False)


def _draw_ranking(axes: Any, ranking: Sequence[tuple[str, float]]) -> None:
    """Bars with names inside: the names of classes may be long."""
    axes.set(xlim=(0, 1), ylim=(4.6, -0.6))
    for place, (name, probability) in enumerate(ranking):
        axes.barh(place, probability, height=0.8, color="#9ec5ff")
        label = f"{shorten_label(name, 22)}  {probability:.1%}"
        axes.text(0.02, place, label, va="center", fontsize=8.5, parse_math=False)
    axes.set_title("likeliest classes", fontsize=9)
