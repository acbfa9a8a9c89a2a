"""The two figures that a run leaves behind."""

import io
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
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
        _tidy(axes)
    figure.suptitle(to_printable(title), parse_math=False)
    write_figure(path, figure)


def draw_population(path: Path, history: Sequence[Sequence[EpochMetrics]], title: str) -> None:
    """Loss, accuracy and learning rate of several runs by epoch: their mean, and a band from lowest to highest."""
    epochs = [metrics.epoch for metrics in history[0]]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    frames = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    for axes, name in zip(frames, ("loss", "accuracy", "learning_rate"), strict=True):
        kinds = [("", GREY)] if name == "learning_rate" else [("train_", TRAINING), ("validation_", VALIDATION)]
        for kind, colour in kinds:
            values = np.array([[getattr(metrics, kind + name) for metrics in own] for own in history])
            words = {"train_": "training", "validation_": "validation", "": "learning rate"}[kind]
            last = f"{values[:, -1].mean():.3f} ± {values[:, -1].std(ddof=1):.3f}"
            label = words if name == "learning_rate" else f"{words}, at the end {last}"
            axes.plot(epochs, values.mean(axis=0), color=colour, label=label)
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.25, linewidth=0)
        axes.set_title(name.replace("_", " "))
        axes.legend(frameon=False, fontsize="small")
        _tidy(axes)
    frames[0].set_yscale("log")
    frames[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    frames[2].set_ylim(0, None)
    figure.suptitle(to_printable(title), parse_math=False)
    write_figure(path, figure)


def _tidy(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


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
    captions = [
        f"{shorten_label(classes[int(predicted[index])])} ({probabilities[index].max():.0%})\n"
        f"true {shorten_label(classes[int(labels[index])])}"
        for index in order
    ]
    _draw_grid(path, images[order], captions, [WRONG if wrong[index] else GREY for index in order], title)


def draw_batch(
    path: Path,
    images: UInt8[np.ndarray, "images height width channels"],
    targets: Float[np.ndarray, "images classes"],
    classes: Sequence[str],
    title: str,
) -> None:
    """Up to 40 images of a training batch, each with its classes: of a mixture, with their shares."""
    captions = []
    for target in targets[:40]:
        present = [index for index in np.argsort(-target) if target[index] > 0][:2]
        names = [shorten_label(classes[int(index)]) for index in present]
        shares = [f" ({target[index]:.0%})" if len(present) > 1 else "" for index in present]
        captions.append("\n".join(name + share for name, share in zip(names, shares, strict=True)))
    _draw_grid(path, images[:40], captions, [GREY] * len(captions), title)


def _draw_grid(
    path: Path,
    images: UInt8[np.ndarray, "images height width channels"],
    captions: Sequence[str],
    colours: Sequence[str],
    title: str,
) -> None:
    columns = min(10, len(images))
    rows = -(-len(images) // columns)
    # All images in one frame, each in a cell one wide and GAP high: a frame an image takes matplotlib ten times longer.
    figure = Figure(figsize=(max(1.4 * columns, 6), 1.4 * GAP * rows + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    for cell, (image, caption, colour) in enumerate(zip(images, captions, colours, strict=True)):
        top, left = GAP * (cell // columns), cell % columns
        axes.imshow(
            image[..., 0] if image.shape[-1] == 1 else image,
            extent=(left + 0.03, left + 0.97, top + GAP - 0.03, top + GAP - 0.97),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="bicubic",
        )
        place = (left + 0.5, top + GAP - 1)
        # Dollar signs in the name of a class are no mathematics.
        axes.text(*place, caption, fontsize=7.5, color=colour, ha="center", va="bottom", parse_math=False)
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
