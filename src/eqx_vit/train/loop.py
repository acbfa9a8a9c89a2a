"""The training loop: starts where the folder's training state ends, and leaves a finished run."""

import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from eqx_vit.functional import to_dicts
from eqx_vit.parameters import count_params
from eqx_vit.serialization import load
from eqx_vit.train.checkpoint import load_training_state, save_averaged_model, save_training_state
from eqx_vit.train.data import Data, draw_batches
from eqx_vit.train.inference import Evaluation, evaluate
from eqx_vit.train.plots import draw_curves, draw_samples
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import (
    BEST,
    CURVES,
    LAST,
    SAMPLES,
    TRAINING_STATE,
    EpochMetrics,
    FinalMetrics,
    Run,
    write_metrics,
)
from eqx_vit.train.step import (
    EvalStep,
    TrainState,
    averaged_model,
    initial_state,
    learning_rate,
    make_eval_step,
    make_optimiser,
    make_train_step,
)

SAVE_SECONDS = 60.0  # within long epochs, the state is saved this often


def train_run(folder: Path, run: Run, data: Data, log: ProgressLog, stopped: Callable[[], bool]) -> FinalMetrics | None:
    """Train to the end, and test the best epoch. None where `stopped()` became true first, or nobody reads the log any
    more; the folder can then be resumed.

    A run that is killed at any instant and resumed reaches the weights of one that was not: all randomness is a
    function of (seed, step) or (seed, epoch), and the training state is one file that is replaced whole.

    **Raises:** `ValueError` where the loss stops being a number, or the training state is damaged.
    """
    settings = run.settings
    batch_size = min(settings.batch_size, len(data.train))
    epoch_steps = len(data.train) // batch_size
    total = settings.epochs * epoch_steps
    optimiser = make_optimiser(run.config, settings, total)
    train_step = make_train_step(run.config, optimiser, settings, run.input_spec)
    eval_step = make_eval_step(run.config, run.input_spec)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)

    train, history = _load_or_make(folder, lambda: initial_state(run.config, optimiser, settings.seed))
    first = int(train.step)
    log.start_training(first, total)
    batches = draw_batches(data.train, settings.seed, first // epoch_steps, batch_size)
    saved = time.monotonic()
    began = saved - (history[-1].seconds if history else 0)
    for step in range(first, total):
        epoch, position = divmod(step, epoch_steps)
        if position == 0:
            batches = draw_batches(data.train, settings.seed, epoch, batch_size)
            train = train._replace(loss=jnp.zeros_like(train.loss), correct=jnp.zeros_like(train.correct))
        train, loss = train_step(train, images, labels, batches[position])
        log.show_step(step + 1, epoch + 1, settings.epochs, _check_finite(float(loss), step))

        if position == epoch_steps - 1:
            validation = evaluate(eval_step, averaged_model(train), images, data.labels, data.validation, batch_size)
            rate = float(learning_rate(settings, total)(step))
            metrics = _epoch_metrics(epoch, train, batches.size, rate, validation, time.monotonic() - began)
            is_best = not history or metrics.score > max(earlier.score for earlier in history)
            history.append(metrics)
            if is_best:
                save_averaged_model(folder / BEST, run.config, train)
            save_averaged_model(folder / LAST, run.config, train)
            write_metrics(folder, history)
            log.write(_describe(metrics, settings.epochs) + ("  best" if is_best else ""))
        stopping = stopped() or log.closed
        if position == epoch_steps - 1 or stopping or time.monotonic() - saved > SAVE_SECONDS:
            # Last of all: a kill before this line repeats the epoch, and writes the same files again.
            save_training_state(folder / TRAINING_STATE, train, history)
            saved = time.monotonic()
        if stopping and step + 1 < total:
            return None
    return _finish(folder, run, data, history, eval_step, log)


def _load_or_make(folder: Path, make_initial: Callable[[], TrainState]) -> tuple[TrainState, list[EpochMetrics]]:
    """The training state of the folder, or the initial one where the run was killed before it saved any."""
    path = folder / TRAINING_STATE
    return load_training_state(path, make_initial) if path.exists() else (make_initial(), [])


def _check_finite(loss: float, step: int) -> float:
    if not np.isfinite(loss):
        raise ValueError(f"the loss is {loss} after step {step + 1}: try a smaller --learning-rate")
    return loss


def _epoch_metrics(
    epoch: int, train: TrainState, images: int, rate: float, validation: Evaluation, seconds: float
) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch + 1,
        step=int(train.step),
        learning_rate=rate,
        train_loss=float(train.loss) / images,
        train_accuracy=float(train.correct) / images,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        seconds=round(seconds, 2),
    )


def _describe(metrics: EpochMetrics, epochs: int) -> str:
    return (
        f"epoch {metrics.epoch:{len(str(epochs))}d}/{epochs}  "
        f"train loss {metrics.train_loss:.4f} accuracy {metrics.train_accuracy:6.2%}  "
        f"validation loss {metrics.validation_loss:.4f} accuracy {metrics.validation_accuracy:6.2%}"
    )


def _finish(
    folder: Path, run: Run, data: Data, history: list[EpochMetrics], step: EvalStep, log: ProgressLog
) -> FinalMetrics:
    """Test the best checkpoint, and draw the two figures."""
    model, state = load(folder / BEST)
    images = jnp.asarray(data.images)
    batch_size = min(run.settings.batch_size, len(data.train))
    test = evaluate(step, to_dicts(model, state), images, data.labels, data.test, batch_size)
    best = max(history, key=lambda metrics: metrics.score)
    result = FinalMetrics(BEST, best.epoch, test.loss, test.accuracy)
    write_metrics(folder, [*history, result])
    title = (
        f"{run.settings.model}, {count_params(model):,} parameters: {test.accuracy:.2%} of {len(data.test)} test images"
    )
    mistakes = round((1 - test.accuracy) * len(data.test))
    samples = data.images[data.test], data.labels[data.test], test.probabilities, data.classes
    caption = f"{mistakes} of {len(data.test)} test images wrong; then the least certain correct ones"
    for name, draw in (
        (CURVES, lambda path: draw_curves(path, history, title)),
        (SAMPLES, lambda path: draw_samples(path, *samples, caption)),
    ):
        try:
            draw(folder / name)
        except Exception as error:  # whatever a plotting library raises: the result is there
            log.write(f"{name} could not be drawn: {' '.join(str(error).split())}")
    return result
