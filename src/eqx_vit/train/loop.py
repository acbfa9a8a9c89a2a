"""The training loop: starts where the folder's training state ends, and leaves a finished run."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int

from eqx_vit.functional import to_dicts
from eqx_vit.layers.config import check
from eqx_vit.parameters import count_params
from eqx_vit.serialization import load
from eqx_vit.train.batches import (
    Batch,
    EvaluationExamples,
    TrainingExamples,
    choose_batch_size,
    make_changes,
    read_batches,
)
from eqx_vit.train.checkpoint import load_training_state, save_averaged_model, save_training_state
from eqx_vit.train.data import Data
from eqx_vit.train.image_folder import to_printable
from eqx_vit.train.inference import Evaluation, evaluate
from eqx_vit.train.initial_weights import load_start
from eqx_vit.train.optimiser import learning_rate, make_optimiser
from eqx_vit.train.placement import Placement
from eqx_vit.train.plots import draw_curves, draw_samples, pick_samples
from eqx_vit.train.processes import any_of, do_together, is_first, share_error
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
    epoch_name,
    remove_epochs_before,
    write_metrics,
)
from eqx_vit.train.step import (
    EvalStep,
    TrainState,
    averaged_model,
    initial_state,
    make_eval_step,
    make_train_step,
)
from eqx_vit.train.teacher import load_teacher
from eqx_vit.train.trackers import Forgetful, Tracker
from eqx_vit.train.watch import Speed, Watch, peak_memory

SAVE_SECONDS = 60.0  # within long epochs, the state is saved this often
TRACK_STEPS = 50  # within epochs, a tracker is told this often


def train_run(
    folder: Path,
    run: Run,
    data: Data,
    log: ProgressLog,
    stopped: Callable[[], bool],
    *,
    workers: int = 0,
    tracker: Tracker | None = None,
    profile: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
    keep: int = 0,
) -> FinalMetrics | None:
    """Train to the end, and test the best epoch. None where `stopped()` became true first, or nobody reads the log any
    more; the folder can then be resumed.

    A run that is killed at any instant and resumed reaches the weights of one that was not: all randomness is a
    function of (seed, step) or (seed, epoch), and the training state is one file that is replaced whole.

    **Arguments:** `workers`: the processes that read image files, 0 for threads; `tracker` is told of the numbers as
    they come; `profile`: from the first to the second of these steps, a trace for xprof is written to the folder;
    `mesh`, of `eqx_vit.make_mesh`: the devices to train on, which may be others when the run goes on; `keep`: so many
    epochs, the last ones, leave their models in a file each.

    In several processes, each calls this with the same arguments and a `folder` that all of them see; the first one
    writes. A signal to one of them stops all.

    **Raises:** `ValueError` where the loss stops being a number, the training state is damaged, a worker has ended, or
    the devices of the mesh cannot share a batch equally.
    """
    settings = run.settings
    tracker = Forgetful() if tracker is None else tracker
    placement = Placement(run.config, mesh)
    placement.check_batch(choose_batch_size(settings, data.train) // settings.accumulate)
    examples = make_examples(run, data, placement.local_places)
    batch_size = examples.batch_size
    epoch_steps = len(data.train) // batch_size
    span = "" if profile is None else f"--profile {profile[0]}:{profile[1]}"
    check(profile is None or profile[0] < examples.total, f"{span}: the run has {examples.total} steps, from 0 on")
    optimiser = make_optimiser(run.config, settings, examples.total)
    spec = run.input_spec
    teacher = None
    if settings.teacher:
        name = settings.teacher
        teacher = do_together(lambda: load_teacher(name, run.config.num_classes, spec))
        teacher = teacher._replace(arrays=placement.place(teacher.arrays))
    train_step = make_train_step(run.config, optimiser, settings, spec, teacher, placement.keep)
    eval_step = placement.place_images(make_eval_step(run.config, spec))
    held_out = EvaluationExamples(data.images, data.labels, data.validation)
    rate = learning_rate(settings, examples.total)

    train, history = do_together(lambda: _load_or_make(folder, run, optimiser, placement))
    first = int(train.step)
    log.start_training(first, examples.total)
    reported = _Reported(data, log)
    watch, saved = Watch(), time.monotonic()
    began = saved - (history[-1].seconds if history else 0)
    with (
        read_batches(examples, len(examples.places), first, workers) as batches,
        _profiling(folder, profile) as begin_step,
        placement.in_force(),
    ):
        for step in range(first, examples.total):
            epoch, position = divmod(step, epoch_steps)
            if position == 0:
                train = train._replace(loss=jnp.zeros_like(train.loss), correct=jnp.zeros_like(train.correct))
            if position == 0 or step == first + 1:  # the first step of all compiles
                watch.lap()
            begin_step(step)
            try:
                with watch.waiting():
                    batch = next(batches)
            except ValueError:
                alone = jax.process_count() == 1  # others could not help to write what they hold
                if alone and (step > first or not (folder / TRAINING_STATE).exists()):
                    save_training_state(folder / TRAINING_STATE, train, history)
                raise
            reported.report(batch)
            train, numbers = train_step(train, *placement.place_batch(batch.images, batch.labels))
            loss = _check_finite(float(numbers.loss), step)
            watch.count(batch_size)
            now = {"learning_rate": float(rate(step)), "gradient_norm": float(numbers.gradient_norm)}
            held = f", {memory:.1f} GiB" if (memory := peak_memory()) is not None else ""
            note = (
                f"{watch.read().describe()}{held}, rate {now['learning_rate']:.2g}, gradient {now['gradient_norm']:.2g}"
            )
            log.show_step(step + 1, epoch + 1, settings.epochs, loss, note)
            if step % TRACK_STEPS == 0:
                tracker.log(step + 1, {"loss": loss, **now, **watch.read()._asdict()})

            if position == epoch_steps - 1:
                speed, images = watch.read(), epoch_steps * batch_size
                validation = evaluate(eval_step, averaged_model(train), held_out, batch_size, workers, examples.places)
                reported.report_missing(held_out, validation)
                metrics = make_epoch_metrics(
                    step + 1,
                    epoch_steps,
                    float(rate(step)),
                    (float(train.loss) / images, float(train.correct) / images),
                    validation,
                    time.monotonic() - began,
                    float(numbers.gradient_norm),
                    speed,
                )
                is_best = not history or metrics.score > max(earlier.score for earlier in history)
                history.append(metrics)
                if is_best:
                    save_averaged_model(folder / BEST, run.config, train)
                save_averaged_model(folder / LAST, run.config, train)
                if keep:
                    save_averaged_model(folder / epoch_name(metrics.epoch), run.config, train)
                if is_first():
                    write_metrics(folder, history)
                    if keep:
                        remove_epochs_before(folder, metrics.epoch - keep + 1)
                told = {name: value for name, value in metrics._asdict().items() if value is not None}
                tracker.log(step + 1, told)
                log.write(_describe(metrics, settings.epochs) + ("  best" if is_best else ""))
            stopping, due = any_of(stopped() or log.closed, time.monotonic() - saved > SAVE_SECONDS)
            if position == epoch_steps - 1 or stopping or due:
                # Last of all: a kill before this line repeats the epoch, and writes the same files again.
                save_training_state(folder / TRAINING_STATE, train, history)
                saved = time.monotonic()
            if stopping and step + 1 < examples.total:
                return None
        return _finish(folder, run, data, history, eval_step, log, workers, placement)


def make_examples(
    run: Run, data: Data, local_places: Callable[[int], Int[np.ndarray, " own"]] = np.arange
) -> TrainingExamples:
    """The training images of a run, in its order; of a batch of so many, those at `local_places` are read here."""
    settings = run.settings
    batch_size = choose_batch_size(settings, data.train)
    total = settings.epochs * (len(data.train) // batch_size)
    changes = make_changes(settings, run.input_spec.mean)
    return TrainingExamples(
        data.images,
        data.labels,
        data.train,
        changes,
        settings.seed,
        batch_size,
        settings.repeats,
        total,
        local_places(batch_size),
    )


class _Reported:
    """Says of each file that turns out to be unreadable so, once."""

    def __init__(self, data: Data, log: ProgressLog) -> None:
        self._data, self._log, self._seen = data, log, set[int]()

    def report(self, batch: Batch) -> None:
        """Name the images of a training batch that could not be read."""
        self._say(batch.unreadable[batch.unreadable >= 0].tolist(), "the next image takes its place")

    def report_missing(self, examples: EvaluationExamples, found: Evaluation) -> None:
        """Name the images of an evaluation that could not be read."""
        self._say(np.setdiff1d(examples.indices, found.indices).tolist(), "it is left out of the evaluation")

    def _say(self, indices: Sequence[int], consequence: str) -> None:
        for index in indices:
            if index not in self._seen and not isinstance(self._data.images, np.ndarray):
                self._seen.add(index)
                path = self._data.images.path(index)
                self._log.warn(to_printable(f"{path} cannot be read, {consequence}"))


def _load_or_make(
    folder: Path, run: Run, optimiser: optax.GradientTransformation, placement: Placement
) -> tuple[TrainState, list[EpochMetrics]]:
    """The training state of the folder, or the initial one where the run was killed before it saved any."""
    make_fresh = functools.partial(initial_state, run.config, optimiser, run.settings.seed)
    path = folder / TRAINING_STATE
    if path.exists():
        train, history = load_training_state(path, make_fresh)
        return placement.place(train), history
    start = load_start(run)
    return placement.make(make_fresh) if start is None else placement.place(make_fresh(start)), []


@contextmanager
def _profiling(folder: Path, profile: tuple[int, int] | None) -> Iterator[Callable[[int], None]]:
    """A function to call before each step, which starts and stops the trace; it ends with the run at the latest."""
    first, last = profile or (0, 0)
    running = False

    def begin_step(step: int) -> None:
        nonlocal running
        wanted = first <= step < last
        if wanted and not running:
            jax.profiler.start_trace(str(folder / "profile"))
        elif running and not wanted:
            jax.profiler.stop_trace()
        running = wanted

    try:
        yield begin_step
    finally:
        begin_step(last)


def make_epoch_metrics(
    step: int,
    epoch_steps: int,
    rate: float,
    training: tuple[float, float],
    validation: Evaluation,
    seconds: float,
    gradient_norm: float,
    speed: Speed,
) -> EpochMetrics:
    """The line of an epoch that ends after so many steps; `training` is its loss and accuracy."""
    return EpochMetrics(
        epoch=step // epoch_steps,
        step=step,
        learning_rate=rate,
        train_loss=training[0],
        train_accuracy=training[1],
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        seconds=round(seconds, 2),
        gradient_norm=gradient_norm,
        images_per_second=round(speed.images_per_second, 1),
        data_wait=round(speed.data_wait, 3),
        memory_gib=peak_memory(),
    )


def _check_finite(loss: float, step: int) -> float:
    if not np.isfinite(loss):
        raise share_error(f"the loss is {loss} after step {step + 1}: try a smaller --learning-rate")
    return loss


def _describe(metrics: EpochMetrics, epochs: int) -> str:
    return (
        f"epoch {metrics.epoch:{len(str(epochs))}d}/{epochs}  "
        f"train loss {metrics.train_loss:.4f} accuracy {metrics.train_accuracy:6.2%}  "
        f"validation loss {metrics.validation_loss:.4f} accuracy {metrics.validation_accuracy:6.2%}"
    )


def _finish(
    folder: Path,
    run: Run,
    data: Data,
    history: list[EpochMetrics],
    step: EvalStep,
    log: ProgressLog,
    workers: int,
    placement: Placement,
) -> FinalMetrics:
    """Test the best checkpoint, and draw the two figures."""
    model, state = load(folder / BEST)
    examples = EvaluationExamples(data.images, data.labels, data.test)
    batch_size = choose_batch_size(run.settings, data.train)
    placed = placement.place(to_dicts(model, state))
    test = evaluate(step, placed, examples, batch_size, workers, placement.local_places(batch_size))
    best = max(history, key=lambda metrics: metrics.score)
    result = FinalMetrics(BEST, best.epoch, test.loss, test.accuracy)
    if not is_first():
        return result
    write_metrics(folder, [*history, result])
    tested = len(test.indices)
    title = f"{run.settings.model}, {count_params(model):,} parameters: {test.accuracy:.2%} of {tested} test images"
    mistakes = round((1 - test.accuracy) * tested)
    caption = f"{mistakes} of {tested} test images wrong; then the least certain correct ones"
    for name, draw in (
        (CURVES, lambda path: draw_curves(path, history, title)),
        (SAMPLES, lambda path: _draw_samples(path, data, test, caption)),
    ):
        try:
            draw(folder / name)
        except Exception as error:  # whatever a plotting library raises: the result is there
            log.write(f"{name} could not be drawn: {' '.join(str(error).split())}")
    return result


def _draw_samples(path: Path, data: Data, test: Evaluation, caption: str) -> None:
    """The images that tell most; only they are read again."""
    labels = data.labels[test.indices]
    chosen = pick_samples(test.probabilities, labels)
    indices = test.indices[chosen]
    draw_samples(path, data.images[indices], labels[chosen], test.probabilities[chosen], data.classes, caption)
