"""Accuracy, loss and predictions of a model on stored images."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from eqx_vit.train.step import Arrays, EvalStep


class Evaluation(NamedTuple):
    """How well a model does: `loss` is the mean cross-entropy, `accuracy` a share, `probabilities` one row an image."""

    loss: float
    accuracy: float
    probabilities: Float[np.ndarray, "images classes"]


def evaluate(
    step: EvalStep,
    model: tuple[Arrays, Arrays],
    images: Array,
    labels: Int[np.ndarray, " all"],
    chosen: Int[np.ndarray, " images"],
    batch_size: int,
) -> Evaluation:
    """Evaluate (params, state) on the images of index `chosen`."""
    probabilities = predict(step, model, images, chosen, batch_size)
    right = labels[chosen]
    likelihood = probabilities[np.arange(len(chosen)), right]
    loss = -np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()
    return Evaluation(float(loss), float((probabilities.argmax(axis=1) == right).mean()), probabilities)


def predict(
    step: EvalStep,
    model: tuple[Arrays, Arrays],
    images: Array,
    chosen: Int[np.ndarray, " images"],
    batch_size: int,
) -> Float[np.ndarray, "images classes"]:
    """The probabilities of each class for the images of index `chosen`."""
    pieces: list[Any] = []
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        # The last batch is filled up with its first image: another shape would compile again.
        filled = np.concatenate([part, np.full(batch_size - len(part), part[0], dtype=part.dtype)])
        pieces.append(step(*model, images, filled)[: len(part)])
    logits = np.concatenate([np.asarray(piece) for piece in pieces]).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
