"""Predictions for image files: of a run, or of a preset's released weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from eqx_vit.latency import compiled
from eqx_vit.train.predictor import Predictor, read_pictures


class Prediction(NamedTuple):
    """The (class, probability) pairs of an image file, the likeliest first."""

    path: Path
    ranking: list[tuple[str, float]]


def predict_files(predictor: Predictor, paths: Sequence[Path], invert: bool) -> list[Prediction]:
    """The predictions for image files; `invert` swaps dark and bright.

    **Raises:** `ValueError` that names every file that cannot be read.
    """
    pictures = read_pictures(predictor, paths, invert)
    size = pictures[0].image.shape[:2]  # all are brought to the size that the model is given
    logits = compiled(predictor.model, predictor.state, image_size=size)
    count = len(predictor.classes)
    rows = [softmax(np.asarray(logits(picture.image[None])[0]))[:count] for picture in pictures]
    return [Prediction(path, rank(row, predictor.classes)) for path, row in zip(paths, rows, strict=True)]


def rank(probabilities: Float[np.ndarray, " classes"], classes: Sequence[str]) -> list[tuple[str, float]]:
    """The (class, probability) pairs, the likeliest first."""
    return [(classes[int(index)], float(probabilities[index])) for index in np.argsort(-probabilities, kind="stable")]


def softmax(logits: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Probabilities, over the last axis."""
    exponentials = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float64))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)
