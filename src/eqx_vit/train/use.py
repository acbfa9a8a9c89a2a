"""Using a finished, or half-finished, run: its accuracy, and its opinion of picture files."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from eqx_vit.create import load
from eqx_vit.surface import to_dicts
from eqx_vit.train.evaluation import evaluate, predict
from eqx_vit.train.pictures import read_picture
from eqx_vit.train.report import Report
from eqx_vit.train.run import Run, read_run
from eqx_vit.train.start import data_of
from eqx_vit.train.step import Arrays, make_eval_step

BATCH = 64

Opinions = list[tuple[Path, list[tuple[str, float]]]]


def evaluate_run(folder: Path, checkpoint: str, split: str) -> str:
    """A report on the model of a run: loss, accuracy, accuracy by class. `checkpoint` is best or last; `split` is
    train, validation or test.

    **Raises:** `ValueError` for what is no run folder, damaged files, and data that have changed since training.
    """
    run, model = _read(folder, checkpoint)
    with Report() as report:
        data = data_of(run, report)
    chosen = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    step = make_eval_step(run.config, run.pixels)
    result = evaluate(step, model, jnp.asarray(data.images), data.labels, chosen, BATCH)
    right = result.probabilities.argmax(axis=1) == data.labels[chosen]
    width = max(len(name) for name in data.classes)
    lines = [
        f"{folder / f'{checkpoint}.safetensors'} on {len(chosen)} {split} images: "
        f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f}"
    ]
    for label, name in enumerate(data.classes):
        of_class = right[data.labels[chosen] == label]
        lines.append(f"  {name:{width}}  {of_class.mean():7.2%}  ({of_class.sum()} of {len(of_class)})")
    return "\n".join(lines)


def predict_files(folder: Path, checkpoint: str, paths: Sequence[Path], invert: bool) -> Opinions:
    """For each picture file its path and the classes, (name, probability), the likeliest first.

    **Raises:** `ValueError` for what is no run folder, damaged files, and every picture that cannot be read.
    """
    run, model = _read(folder, checkpoint)
    images: list[np.ndarray] = []
    problems: list[str] = []
    stored_channels = 1 if run.settings.data is None else run.pixels.channels
    for path in paths:
        try:
            images.append(read_picture(path, run.stored, stored_channels))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    stacked = 255 - np.stack(images) if invert else np.stack(images)
    step = make_eval_step(run.config, run.pixels)
    chosen = np.arange(len(images), dtype=np.int32)
    rows = predict(step, model, jnp.asarray(stacked), chosen, min(BATCH, len(images)))[:, : len(run.classes)]
    return [(path, ranked(row, run.classes)) for path, row in zip(paths, rows, strict=True)]


def _read(folder: Path, checkpoint: str) -> tuple[Run, tuple[Arrays, Arrays]]:
    run = read_run(folder)
    path = folder / f"{checkpoint}.safetensors"
    if not path.exists():
        raise ValueError(f"{folder} has no {path.name} yet: the run has not finished its first epoch")
    model, state = load(path)
    if model.config != run.config:
        raise ValueError(f"{path} holds another model than {folder / 'config.json'} describes")
    return run, to_dicts(model, state)


def ranked(row: np.ndarray, classes: Sequence[str]) -> list[tuple[str, float]]:
    """The (class, probability) pairs of an image, the likeliest first."""
    return [(classes[index], float(row[index])) for index in np.argsort(-row, kind="stable")]
