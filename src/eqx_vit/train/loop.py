"""The training loop: starts where the folder's training state says, and leaves a finished run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from eqx_vit.create import load
from eqx_vit.surface import count_params, to_dicts
from eqx_vit.train.checkpoint import load_training_state, save_averaged, save_training_state
from eqx_vit.train.data import Data, epoch_order
from eqx_vit.train.evaluation import Evaluation, evaluate
from eqx_vit.train.optimiser import learning_rate, make_optimiser
from eqx_vit.train.pixels import moves_of
from eqx_vit.train.plots import draw_curves, draw_samples
from eqx_vit.train.report import Report
from eqx_vit.train.run import BEST, CURVES, LAST, SAMPLES, TRAINING_STATE, Run, write_metrics
from eqx_vit.train.step import EvalStep, TrainState, averaged, initial_state, make_eval_step, make_train_step

SAVE_SECONDS = 60.0  # within long epochs, the state is saved this often


def train_run(folder: Path, run: Run, data: Data, report: Report, stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Train to the end, and return the last line of metrics.jsonl: the best epoch, and its loss and accuracy on the
    test images. None where `stopped()` became true first; the folder can then be resumed.

    A run that is killed at any instant and resumed reaches the weights of one that was not: all randomness is a
    function of (seed, step) or (seed, epoch), and the training state is one file that is replaced whole.

    **Raises:** `ValueError` where the loss stops being a number, or the training state is damaged.
    """
    settings = run.settings
    batch_size = min(settings.batch_size, len(data.train))
    epoch_steps = len(data.train) // batch_size
    total = settings.epochs * epoch_steps
    optimiser = make_optimiser(run.config, settings, total)
    train_step = make_train_step(run.config, optimiser, settings, run.pixels, moves_of(settings))
    eval_step = make_eval_step(run.config, run.pixels)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)

    train, history = _restored(folder, lambda: initial_state(run.config, optimiser, settings.seed))
    first = int(train.step)
    report.started(first, total)
    order = epoch_order(data.train, settings.seed, first // epoch_steps, batch_size)
    saved = time.monotonic()
    began = saved - (history[-1]["seconds"] if history else 0)
    for step in range(first, total):
        epoch, position = divmod(step, epoch_steps)
        if position == 0:
            order = epoch_order(data.train, settings.seed, epoch, batch_size)
            train = train._replace(loss=jnp.zeros_like(train.loss), correct=jnp.zeros_like(train.correct))
        train, loss = train_step(train, images, labels, order[position])
        report.stepped(step + 1, epoch + 1, settings.epochs, _finite(loss, step))

        if position == epoch_steps - 1:
            validation = evaluate(eval_step, averaged(train), images, data.labels, data.validation, batch_size)
            seen = epoch_steps * batch_size
            entry = _entry(run, epoch + 1, step + 1, total, train, seen, validation, time.monotonic() - began)
            best = not history or _merit(entry) > max(map(_merit, history))
            history.append(entry)
            if best:
                save_averaged(folder / BEST, run.config, train)
            save_averaged(folder / LAST, run.config, train)
            write_metrics(folder, history)
            report.epoch(entry, settings.epochs, best)
        if position == epoch_steps - 1 or stopped() or time.monotonic() - saved > SAVE_SECONDS:
            # Last of all: a kill before this line repeats the epoch, and writes the same files again.
            save_training_state(folder / TRAINING_STATE, train, history)
            saved = time.monotonic()
        if stopped() and step + 1 < total:
            return None
    return _finish(folder, run, data, history, eval_step)


def _restored(folder: Path, make_initial: Callable[[], TrainState]) -> tuple[TrainState, list[dict[str, Any]]]:
    """The training state of the folder, or the initial one where the run was killed before it saved any."""
    path = folder / TRAINING_STATE
    return load_training_state(path, make_initial) if path.exists() else (make_initial(), [])


def _finite(loss: Any, step: int) -> float:
    value = float(loss)
    if not np.isfinite(value):
        raise ValueError(f"the loss is {value} after step {step + 1}: try a smaller --learning-rate")
    return value


def _merit(entry: dict[str, Any]) -> tuple[float, float]:
    """What makes an epoch the best: validation accuracy, and among equals the smaller loss."""
    return entry["validation_accuracy"], -entry["validation_loss"]


def _entry(
    run: Run, epoch: int, step: int, total: int, train: TrainState, seen: int, validation: Evaluation, seconds: float
) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {
        "epoch": epoch,
        "step": step,
        "learning_rate": float(learning_rate(run.settings, total)(step - 1)),
        "train_loss": float(train.loss) / seen,
        "train_accuracy": float(train.correct) / seen,
        "validation_loss": validation.loss,
        "validation_accuracy": validation.accuracy,
        "seconds": round(seconds, 2),
    }


def _finish(folder: Path, run: Run, data: Data, history: list[dict[str, Any]], step: EvalStep) -> dict[str, Any]:
    """Test the best checkpoint, and draw the two pictures."""
    model, state = load(folder / BEST)
    images = jnp.asarray(data.images)
    batch_size = min(run.settings.batch_size, len(data.train))
    test = evaluate(step, to_dicts(model, state), images, data.labels, data.test, batch_size)
    result = {
        "checkpoint": BEST,
        "epoch": max(history, key=_merit)["epoch"],
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
    }
    write_metrics(folder, [*history, result])
    title = (
        f"{run.settings.model}, {count_params(model):,} parameters: {test.accuracy:.2%} of {len(data.test)} test images"
    )
    draw_curves(folder / CURVES, history, title)
    mistakes = round((1 - test.accuracy) * len(data.test))
    draw_samples(
        folder / SAMPLES,
        data.images[data.test],
        data.labels[data.test],
        test.probabilities,
        data.classes,
        f"{mistakes} of {len(data.test)} test images wrong; then the least certain right ones",
    )
    return result
