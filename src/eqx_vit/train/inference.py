"""The accuracy of a trained model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from eqx_vit.latency import compiled
from eqx_vit.layers.config import check
from eqx_vit.train.batches import EvaluationExamples, Indices, read_batches
from eqx_vit.train.image_folder import to_printable
from eqx_vit.train.predict import softmax
from eqx_vit.train.predictor import load_run, prepare_pixels
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.start import move_data, reload_data
from eqx_vit.train.step import AnyArray, Arrays, EvalStep

BATCH_SIZE = 64
MANY_IMAGES = 4096


class Evaluation(NamedTuple):
    """How well a model does: the mean cross-entropy, the accuracy (0 to 1), and a row of probabilities an image.

    `indices` are those of the images, without the ones that could not be read.
    """

    loss: float
    accuracy: float
    probabilities: Float[np.ndarray, "images classes"]
    indices: Int[np.ndarray, " images"]


def evaluate(
    step: EvalStep,
    model: tuple[Arrays, Arrays],
    examples: EvaluationExamples,
    batch_size: int,
    workers: int = 0,
    places: Indices | None = None,
) -> Evaluation:
    """Evaluate (params, state) on the images of `examples`; those that cannot be read do not count.

    Of each batch, this process reads the images at `places`, and the others read the rest; None: all.

    **Raises:** `ValueError` where none can be read, or a worker that reads them has ended.
    """

    def classify(images: np.ndarray) -> np.ndarray:
        return np.asarray(step(*model, images))[None]

    if places is None or len(places) == batch_size:
        return evaluate_all(classify, examples, batch_size, workers)[0]
    # Whole batches, as every process has to take part in each; the last image fills up the last one.
    padded = np.arange(-(-len(examples) // batch_size) * batch_size)
    positions = padded.reshape(-1, batch_size)[:, places].ravel()
    own = dataclasses.replace(examples, indices=examples.indices[np.minimum(positions, len(examples) - 1)])
    kept, (probabilities,) = _classify(classify, own, len(places), workers, lambda done, total: None)
    found = np.full(len(positions), -1)
    found[kept] = np.where(positions < len(examples), positions, -1)[kept]
    whole = np.zeros((len(positions), probabilities.shape[-1]), dtype=probabilities.dtype)
    whole[kept] = probabilities
    positions, probabilities = (
        np.asarray(multihost_utils.process_allgather(array, tiled=True)) for array in (found.astype(np.int32), whole)
    )
    order = np.argsort(positions, kind="stable")[np.count_nonzero(positions < 0) :]
    return _judge(probabilities[order], examples, positions[order])


def evaluate_all(
    classify: Callable[[np.ndarray], AnyArray],
    examples: EvaluationExamples,
    batch_size: int,
    workers: int = 0,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluation]:
    """Evaluate several models at once: `classify(images)` gives their logits (models, batch, classes).

    `show(done, total)` is told of the progress.

    **Raises:** `ValueError` as `evaluate` does.
    """
    found, probabilities = _classify(classify, examples, batch_size, workers, show)
    return [_judge(own, examples, found) for own in probabilities]


def _classify(
    classify: Callable[[np.ndarray], AnyArray],
    examples: EvaluationExamples,
    batch_size: int,
    workers: int,
    show: Callable[[int, int], None],
) -> tuple[Indices, Float[np.ndarray, "models images classes"]]:
    """(positions among the examples of those that can be read, their probabilities)."""
    found, probabilities = map_images(
        lambda images: np.moveaxis(softmax(np.asarray(classify(images))), 1, 0), examples, batch_size, workers, show
    )
    return found, np.moveaxis(probabilities, 0, 1)


def map_images(
    compute: Callable[[np.ndarray], np.ndarray],
    examples: EvaluationExamples,
    batch_size: int,
    workers: int,
    show: Callable[[int, int], None],
) -> tuple[Indices, Float[np.ndarray, "images ..."]]:
    """(positions among the examples of those that can be read, what `compute(batch of images)` makes of each).

    **Raises:** `ValueError` where there are none, or a worker that reads them has ended.
    """
    found: list[np.ndarray] = []
    chunks: list[np.ndarray] = []
    # To start processes takes seconds: of few images threads have read all of them by then.
    with read_batches(examples, batch_size, workers=workers if len(examples) > MANY_IMAGES else 0) as batches:
        for number, batch in enumerate(batches):
            kept = batch.unreadable < 0
            # The last batch is filled up with its last image: another shape would compile again.
            fill = [(0, batch_size - len(kept)), *[(0, 0)] * 3]
            images = np.pad(batch.images, fill, mode="edge") if len(kept) < batch_size else batch.images
            found.append(number * batch_size + np.flatnonzero(kept))
            chunks.append(compute(images)[: len(kept)][kept])
            show(min((number + 1) * batch_size, len(examples)), len(examples))
    check(bool(chunks), "there are no images to evaluate")
    return np.concatenate(found), np.concatenate(chunks)


def _judge(
    probabilities: Float[np.ndarray, "images classes"], examples: EvaluationExamples, found: Indices
) -> Evaluation:
    check(len(found) > 0, "none of the images can be read")
    indices = examples.indices[found]
    labels = examples.labels[indices]
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = -np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()
    return Evaluation(float(loss), float((probabilities.argmax(axis=1) == labels).mean()), probabilities, indices)


def evaluate_run(folder: Path, checkpoint: str, split: str, data_folder: str | None, workers: int = 0) -> str:
    """A report on the model of a run: loss, accuracy, accuracy by class. `checkpoint` is best or last; `split` is
    train, validation or test; `data_folder` is where the data are now (None: where they were); `workers` as in
    `read_batches`.

    **Raises:** `ValueError` for what is not a run folder, damaged files, and data that have changed since training.
    """
    run, model, state = load_run(folder, checkpoint)
    with ProgressLog() as log:
        data = reload_data(run if data_folder is None else move_data(run, data_folder), log)
    indices = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    logits = compiled(model, state, BATCH_SIZE, image_size=run.input_spec.size)
    examples = EvaluationExamples(data.images, data.labels, indices)

    def classify(images: np.ndarray) -> Array:
        return logits(prepare_pixels(run.input_spec, jnp.asarray(images)))[None].astype(np.float32)

    (result,) = evaluate_all(classify, examples, BATCH_SIZE, workers)
    labels = data.labels[result.indices]
    correct = result.probabilities.argmax(axis=1) == labels
    names = [to_printable(name) for name in data.classes]
    width = max(map(len, names))
    lines = [
        f"{folder / f'{checkpoint}.safetensors'} on {len(labels)} {split} images: "
        f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f}"
    ]
    for label, name in enumerate(names):
        of_class = correct[labels == label]
        share = f"{of_class.mean():7.2%}" if len(of_class) else f"{'-':>7}"
        lines.append(f"  {name:{width}}  {share}  ({of_class.sum()} of {len(of_class)})")
    return "\n".join(lines)
