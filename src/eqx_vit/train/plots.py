"""The two figures that a run leaves behind."""

import io
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from eqx_vit.files import write_atomically
from eqx_vit.train.image_folder import to_printable
from eqx_vit.train.run_folder import EpochMetrics

TRAINING, VALIDATION, WRONG, GREY = "#7a8ba3", "#1f6feb", "#c62828", "#555555"
GAP = 1.35  # from one row of samples to the next, in widths of an image: the labels are between


def draw_curves(path: Path, history: Sequence[EpochMetrics], title: str) -> None:
    """Loss, accuracy and learning rate by epoch, the best epoch marked."""
    epochs = [metrics.epoch for metrics in history]
    best = max(history, key=lambda metrics: metrics.score)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    for axes, name, value in (
        (loss, "loss", f"{best.validation_loss:.3f}"),
        (accuracy, "accuracy", f"{best.validation_accuracy:.1%}"),
    ):
        training = [getattr(metrics, f"train_{name}") for metrics in history]
        validation = [getattr(metrics, f"validation_{name}") for metrics in history]
        axes.plot(epochs, training, color=TRAINING, label="training (augmented images)")
        axes.plot(epochs, validation, color=VALIDATION, label="validation (averaged weights)")
        label = f"best, epoch {best.epoch}: {value}"
        axes.plot(best.epoch, getattr(best, f"validation_{name}"), "o", color=VALIDATION, label=label)
        axes.legend(frameon=False, fontsize="small")
    loss.set(title="cross-entropy", yscale="log")
    accuracy.set(title="accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    rate.plot(epochs, [metrics.learning_rate for metrics in history], color=GREY)
    rate.set(title="learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(to_printable(title), parse_math=False)
    write_figure(path, figure)


def draw_samples(
    path: Path,
    images: UInt8[np.ndarray, "images height width channels"],
    labels: Int[np.ndarray, " images"],
    probabilities: Float[np.ndarray, "images classes"],
    classes: Sequence[str],
    title: str,
) -> None:
    """Up to 40 images, the predicted label above the true one: mistakes in red, then the least certain correct ones."""
    predicted = probabilities.argmax(axis=1)
    wrong = predicted != labels
    order = pick_samples(probabilities, labels)
    columns = min(10, len(order))
    rows = -(-len(order) // columns)
    # All images in one frame, each in a cell one wide and GAP high: a frame an image takes matplotlib ten times longer.
    figure = Figure(figsize=(max(1.4 * columns, 6), 1.4 * GAP * rows + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    for cell, index in enumerate(order):
        top, left = GAP * (cell // columns), cell % columns
        image = images[index]
        axes.imshow(
            image[..., 0] if image.shape[-1] == 1 else image,
            extent=(left + 0.03, left + 0.97, top + GAP - 0.03, top + GAP - 0.97),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="bicubic",
        )
        guess, confidence = shorten_label(classes[int(predicted[index])]), probabilities[index].max()
        text = f"{guess} ({confidence:.0%})\ntrue {shorten_label(classes[int(labels[index])])}"
        colour = WRONG if wrong[index] else GREY
        place = (left + 0.5, top + GAP - 1)
        # Dollar signs in the name of a class are no mathematics.
        axes.text(*place, text, fontsize=7.5, color=colour, ha="center", va="bottom", parse_math=False)
    axes.set(xlim=(-0.05, columns + 0.05), ylim=(GAP * rows, -0.05))  # imshow has moved them
    figure.suptitle(to_printable(title), parse_math=False)
    write_figure(path, figure)


def pick_samples(
    probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]
) -> Int[np.ndarray, " chosen"]:
    """The places of the images that tell most: mistakes, then the least certain correct ones."""
    wrong = probabilities.argmax(axis=1) != labels
    return np.lexsort((probabilities.max(axis=1), ~wrong))[:40]


def shorten_label(name: str, width: int = 14) -> str:
    """The name, or as much of it as `width` places hold; Chinese letters and their like take two."""
    name = to_printable(name)
    ends = list(accumulate(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name))
    return name if not ends or ends[-1] <= width else name[: sum(end <= width - 1 for end in ends)] + "…"


def write_figure(path: Path, figure: Figure) -> None:
    """The figure as a PNG file, whole or not at all."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font does not have
        figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
