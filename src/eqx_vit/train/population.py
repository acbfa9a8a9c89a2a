"""Several runs trained as one program: they differ in seed, learning rate, weight decay or drop-path rate.

Each member sees the images in the order of its own seed, and its numbers are those of a run by itself, but for the
order in which the compiler sums. Their arrays have a first axis more, over which the step is mapped.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from eqx_vit.files import write_atomically
from eqx_vit.functional import to_dicts, transform
from eqx_vit.layers.config import check
from eqx_vit.parameters import count_params
from eqx_vit.serialization import load
from eqx_vit.train.batches import Batch, EvaluationExamples, choose_batch_size, read_batches
from eqx_vit.train.checkpoint import load_training_state, save_averaged_model, save_training_state
from eqx_vit.train.data import Data
from eqx_vit.train.inference import evaluate_all
from eqx_vit.train.initial_weights import load_start
from eqx_vit.train.loop import SAVE_SECONDS, make_epoch_metrics, make_examples
from eqx_vit.train.members import describe_member, split_members
from eqx_vit.train.optimiser import Rates, make_optimiser, schedule
from eqx_vit.train.plots import draw_population
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import (
    BEST,
    CURVES,
    LAST,
    TRAINING_STATE,
    EpochMetrics,
    Member,
    Run,
    write_lines,
)
from eqx_vit.train.step import (
    Arrays,
    StepMetrics,
    TrainState,
    averaged_model,
    make_eval_step,
    make_step_config,
    start_state,
    train_step,
)
from eqx_vit.train.teacher import Teacher, load_teacher
from eqx_vit.train.watch import Watch

MEMBERS = "members"  # the folder of their checkpoints


class Varied(NamedTuple):
    """The members' own numbers, an array of each."""

    seeds: UInt[Array, " members"]
    learning_rates: Float[Array, " members"]
    weight_decays: Float[Array, " members"]
    drop_path_factors: Float[Array, " members"] | None


class PopulationMetrics(NamedTuple):
    """How well the members do on the test images, each by its own best epoch. `best` is the number of the one whose
    validation accuracy is the highest.
    """

    best: int
    test_accuracies: tuple[float, ...]
    test_losses: tuple[float, ...]


def train_population(
    folder: Path, run: Run, data: Data, log: ProgressLog, stopped: Callable[[], bool], *, workers: int = 0
) -> PopulationMetrics | None:
    """`train_run` of all members of a run. The folder has the best member's checkpoints where a single run's are, and
    every member's in `members/`.

    **Raises:** `ValueError` as `train_run` does.
    """
    settings, config = run.settings, run.config
    examples = [make_examples(one, data) for one in split_members(run)]
    batch_size, total = examples[0].batch_size, examples[0].total
    epoch_steps = total // settings.epochs
    varied = _stack_members(run)
    teacher = load_teacher(settings.teacher, config.num_classes, run.input_spec) if settings.teacher else None
    step_all = _compile_step(run, total, teacher)
    classify = jax.jit(jax.vmap(make_eval_step(config, run.input_spec), in_axes=(0, 0, None)))
    held_out = EvaluationExamples(data.images, data.labels, data.validation)
    rate = schedule(settings, total)

    train, flat = _load_or_make(folder, run, total)
    history = [flat[first :: len(run.members)] for first in range(len(run.members))]
    first = int(train.step[0])
    log.start_training(first, total)
    watch, saved = Watch(), time.monotonic()
    began = saved - (history[0][-1].seconds if history[0] else 0)
    with ExitStack() as held:
        readers = [held.enter_context(read_batches(one, batch_size, first, workers)) for one in examples]
        for step in range(first, total):
            epoch, position = divmod(step, epoch_steps)
            if position == 0:
                train = train._replace(loss=jnp.zeros_like(train.loss), correct=jnp.zeros_like(train.correct))
            if position == 0 or step == first + 1:
                watch.lap()
            try:
                with watch.waiting():
                    batch = _stack_batches(readers)
            except ValueError:
                if step > first or not (folder / TRAINING_STATE).exists():
                    save_training_state(folder / TRAINING_STATE, train, _flatten(history))
                raise
            train, numbers = step_all(varied, train, batch.images, batch.labels, teacher and teacher.arrays)
            losses = np.asarray(numbers.loss)
            _check_finite(losses, step, run.members)
            watch.count(losses.size * batch_size)
            log.show_step(step + 1, epoch + 1, settings.epochs, float(losses.mean()), watch.read().describe())
            if position == epoch_steps - 1:
                speed, images = watch.read(), epoch_steps * batch_size
                found = evaluate_all(functools.partial(classify, *averaged_model(train)), held_out, batch_size, workers)
                for place, (member, validation) in enumerate(zip(run.members, found, strict=True)):
                    metrics = make_epoch_metrics(
                        step + 1,
                        epoch_steps,
                        member.learning_rate * float(rate(step)),
                        (float(train.loss[place]) / images, float(train.correct[place]) / images),
                        validation,
                        time.monotonic() - began,
                        float(numbers.gradient_norm[place]),
                        speed,
                    )
                    is_best = all(metrics.score > earlier.score for earlier in history[place])
                    history[place].append(metrics)
                    own = jax.tree.map(lambda leaf, place=place: leaf[place], train)
                    _save_member(folder, run, own, place, is_best)
                leader = _find_best(history)
                for name in (BEST, LAST):
                    write_atomically(folder / name, (folder / MEMBERS / f"{leader:02d}" / name).read_bytes())
                write_lines(folder, _describe_epochs(history))
                log.write(_describe(history, settings.epochs))
            stopping = stopped() or log.closed
            if position == epoch_steps - 1 or stopping or time.monotonic() - saved > SAVE_SECONDS:
                save_training_state(folder / TRAINING_STATE, train, _flatten(history))
                saved = time.monotonic()
            if stopping and step + 1 < total:
                return None
    return _finish(folder, run, data, history, classify, log, workers)


def _stack_members(run: Run) -> Varied:
    seeds, rates, decays, drop_paths = zip(*run.members, strict=True)
    largest = max((rate or 0.0 for rate in drop_paths), default=0.0)
    factors = None if largest == 0 else jnp.asarray([(rate or 0.0) / largest for rate in drop_paths])
    return Varied(jnp.asarray(seeds, dtype=jnp.uint32), jnp.asarray(rates), jnp.asarray(decays), factors)


def _compile_step(run: Run, total: int, teacher: Teacher | None) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """`step(varied, train, images, labels, teacher's arrays)`, each with an axis of members, but for the last."""

    def step_one(
        varied: Varied, train: TrainState, images: Array, labels: Array, arrays: tuple[Arrays, Arrays] | None
    ) -> tuple[TrainState, StepMetrics]:
        rates = Rates(varied.learning_rates, varied.weight_decays)
        optimiser = make_optimiser(run.config, run.settings, total, rates)
        config = make_step_config(run.config, optimiser, run.settings, run.input_spec, teacher)
        config = config._replace(seed=varied.seeds, drop_path_factor=varied.drop_path_factors)
        return train_step(config, train, images, labels, arrays)

    return jax.jit(jax.vmap(step_one, in_axes=(0, 0, 0, 0, None)), donate_argnums=1)


def _load_or_make(folder: Path, run: Run, total: int) -> tuple[TrainState, list[EpochMetrics]]:
    optimiser = make_optimiser(run.config, run.settings, total)
    model = transform(run.config)

    def make_one(seed: UInt[Array, ""]) -> TrainState:
        return start_state(optimiser, model.init(jax.random.fold_in(jax.random.key(seed), 0)))

    make_fresh = functools.partial(jax.jit(jax.vmap(make_one)), _stack_members(run).seeds)
    path = folder / TRAINING_STATE
    if path.exists():
        train, history = load_training_state(path, make_fresh)
        return jax.tree.map(jnp.array, train), history
    starts = [load_start(one) for one in split_members(run)]
    if starts[0] is None:
        return make_fresh(), []
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    return jax.jit(jax.vmap(functools.partial(start_state, optimiser)))(stacked), []


def _flatten(history: Sequence[Sequence[EpochMetrics]]) -> list[EpochMetrics]:
    """The metrics of all members in one list, epoch by epoch."""
    return [metrics for epoch in zip(*history, strict=True) for metrics in epoch]


def _stack_batches(readers: Sequence[Iterator[Batch]]) -> Batch:
    return Batch(*(np.stack(parts) for parts in zip(*(next(reader) for reader in readers), strict=True)))


def _check_finite(losses: np.ndarray, step: int, members: Sequence[Member]) -> None:
    for member, loss in zip(members, losses, strict=True):
        check(
            bool(np.isfinite(loss)),
            f"the loss of the run with {describe_member(member)} is {loss} after step {step + 1}: try a smaller "
            "--learning-rate",
        )


def _save_member(folder: Path, run: Run, train: TrainState, place: int, is_best: bool) -> None:
    own = folder / MEMBERS / f"{place:02d}"
    own.mkdir(parents=True, exist_ok=True)
    if is_best:
        save_averaged_model(own / BEST, run.config, train)
    save_averaged_model(own / LAST, run.config, train)


def _find_best(history: Sequence[Sequence[EpochMetrics]]) -> int:
    scores = [max(metrics.score for metrics in own) for own in history]
    return scores.index(max(scores))


def _describe_epochs(history: Sequence[Sequence[EpochMetrics]]) -> list[dict[str, object]]:
    """A line an epoch: mean, standard deviation and values of what the members differ in."""
    lines: list[dict[str, object]] = []
    for epoch in zip(*history, strict=True):
        shared = ("epoch", "step", "seconds", "images_per_second", "data_wait", "memory_gib")
        line: dict[str, object] = {name: getattr(epoch[0], name) for name in shared}
        for name in EpochMetrics._fields:
            if name not in shared:
                line[name] = _summarise([getattr(metrics, name) for metrics in epoch])
        lines.append(line)
    return lines


def _summarise(values: Sequence[float]) -> dict[str, object]:
    """The mean, the standard deviation (of a sample) and the values themselves."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "values": list(values)}


def _describe(history: Sequence[Sequence[EpochMetrics]], epochs: int) -> str:
    latest = [own[-1] for own in history]
    parts = []
    for name, style in (("loss", ".4f"), ("accuracy", ".2%")):
        for kind in ("train", "validation"):
            values = [getattr(metrics, f"{kind}_{name}") for metrics in latest]
            parts.append(f"{kind} {name} {np.mean(values):{style}} ± {np.std(values, ddof=1):{style}}")
    return f"epoch {latest[0].epoch:{len(str(epochs))}d}/{epochs}  {'  '.join(parts)}"


def _finish(
    folder: Path,
    run: Run,
    data: Data,
    history: list[list[EpochMetrics]],
    classify: Callable[..., Array],
    log: ProgressLog,
    workers: int,
) -> PopulationMetrics:
    """Test each member's best checkpoint, and draw the curves."""
    loaded = [load(folder / MEMBERS / f"{place:02d}" / BEST) for place in range(len(run.members))]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[to_dicts(*one) for one in loaded])
    examples = EvaluationExamples(data.images, data.labels, data.test)
    batch_size = choose_batch_size(run.settings, data.train)
    tests = evaluate_all(functools.partial(classify, *models), examples, batch_size, workers)
    result = PopulationMetrics(
        _find_best(history), tuple(test.accuracy for test in tests), tuple(test.loss for test in tests)
    )
    members = [
        member._asdict() | {"test_accuracy": test.accuracy, "test_loss": test.loss}
        for member, test in zip(run.members, tests, strict=True)
    ]
    final = {
        "best": result.best,
        "test_accuracy": _summarise(result.test_accuracies),
        "test_loss": _summarise(result.test_losses),
        "members": members,
    }
    write_lines(folder, [*_describe_epochs(history), final])
    title = (
        f"{run.settings.model}, {count_params(loaded[0][0]):,} parameters, {len(run.members)} runs: "
        f"{np.mean(result.test_accuracies):.2%} of {len(tests[0].indices)} test images"
    )
    try:
        draw_population(folder / CURVES, history, title)
    except Exception as error:  # whatever a plotting library raises: the result is there
        log.write(f"{CURVES} could not be drawn: {' '.join(str(error).split())}")
    return result
