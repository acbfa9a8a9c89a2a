"""The accuracy of a trained model, and predictions for image files: of a run, or of a preset's released weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, Int

from eqx_vit.forward import forward
from eqx_vit.functional import to_dicts
from eqx_vit.registry import AnyModel
from eqx_vit.train.image_folder import to_printable
from eqx_vit.train.predictor import Predictor, load_run, read_pictures
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import move_data, reload_data
from eqx_vit.train.step import Arrays, EvalStep, make_eval_step

BATCH_SIZE = 64


class Evaluation(NamedTuple):
    """How well a model does: the mean cross-entropy, the accuracy (0 to 1), and a row of probabilities an image."""

    loss: float
    accuracy: float
    probabilities: Float[np.ndarray, "images classes"]


class Prediction(NamedTuple):
    """The (class, probability) pairs of an image file, the likeliest first."""

    path: Path
    ranking: list[tuple[str, float]]


def evaluate(
    step: EvalStep,
    model: tuple[Arrays, Arrays],
    images: Array,
    labels: Int[np.ndarray, " all"],
    indices: Int[np.ndarray, " images"],
    batch_size: int,
) -> Evaluation:
    """Evaluate (params, state) on the images at `indices`."""
    probabilities = predict(step, model, images, indices, batch_size)
    targets = labels[indices]
    likelihood = probabilities[np.arange(len(indices)), targets]
    loss = -np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()
    return Evaluation(float(loss), float((probabilities.argmax(axis=1) == targets).mean()), probabilities)


def predict(
    step: EvalStep,
    model: tuple[Arrays, Arrays],
    images: Array,
    indices: Int[np.ndarray, " images"],
    batch_size: int,
) -> Float[np.ndarray, "images classes"]:
    """The probabilities of each class for the images at `indices`."""
    chunks: list[Array] = []
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        # The last batch is filled up with its first image: another shape would compile again.
        filled = np.concatenate([batch, np.full(batch_size - len(batch), batch[0], dtype=batch.dtype)])
        chunks.append(step(*model, images, filled)[: len(batch)])
    logits = np.concatenate([np.asarray(chunk) for chunk in chunks]).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def evaluate_run(folder: Path, checkpoint: str, split: str, data_folder: str | None) -> str:
    """A report on the model of a run: loss, accuracy, accuracy by class. `checkpoint` is best or last; `split` is
    train, validation or test; `data_folder` is where the data are now (None: where they were).

    **Raises:** `ValueError` for what is not a run folder, damaged files, and data that have changed since training.
    """
    run, model, state = load_run(folder, checkpoint)
    with ProgressLog() as log:
        data = reload_data(run if data_folder is None else move_data(run, data_folder), log)
    indices = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    step = make_eval_step(run.config, run.input_spec)
    result = evaluate(step, to_dicts(model, state), jnp.asarray(data.images), data.labels, indices, BATCH_SIZE)
    correct = result.probabilities.argmax(axis=1) == data.labels[indices]
    names = [to_printable(name) for name in data.classes]
    width = max(map(len, names))
    lines = [
        f"{folder / f'{checkpoint}.safetensors'} on {len(indices)} {split} images: "
        f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f}"
    ]
    for label, name in enumerate(names):
        of_class = correct[data.labels[indices] == label]
        lines.append(f"  {name:{width}}  {of_class.mean():7.2%}  ({of_class.sum()} of {len(of_class)})")
    return "\n".join(lines)


def predict_files(predictor: Predictor, paths: Sequence[Path], invert: bool) -> list[Prediction]:
    """The predictions for image files; `invert` swaps dark and bright.

    **Raises:** `ValueError` that names every file that cannot be read.
    """
    pictures = read_pictures(predictor, paths, invert)
    rows = [
        np.asarray(_probabilities(predictor.model, predictor.state, jnp.asarray(picture.image)))[
            : len(predictor.classes)
        ]
        for picture in pictures
    ]
    return [Prediction(path, rank(row, predictor.classes)) for path, row in zip(paths, rows, strict=True)]


@eqx.filter_jit
def _probabilities(
    model: AnyModel, state: State, image: Float[Array, "height width channels"]
) -> Float[Array, " classes"]:
    return jax.nn.softmax(forward(model, state, image[None])[0][0])


def rank(probabilities: Float[np.ndarray, " classes"], classes: Sequence[str]) -> list[tuple[str, float]]:
    """The (class, probability) pairs, the likeliest first."""
    return [(classes[int(index)], float(probabilities[index])) for index in np.argsort(-probabilities, kind="stable")]
