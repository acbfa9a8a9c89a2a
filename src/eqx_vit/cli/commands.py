"""What each command does with its options. The training program is imported by the commands that need it alone."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import equinox as eqx
import jax

from eqx_vit.counting import multiply_adds
from eqx_vit.create import build
from eqx_vit.layers.config import pair
from eqx_vit.parameters import count_params
from eqx_vit.registry import MODELS, find_preset, list_models
from eqx_vit.train.config import parse_changes
from eqx_vit.train.settings import Settings

if TYPE_CHECKING:
    from eqx_vit.train.data import Data
    from eqx_vit.train.run_folder import Run

HEADINGS = ("name", "parameters", "multiply-adds", "image size", "weights")


def train(options: argparse.Namespace) -> int:
    """`eqx-vit train`."""
    from eqx_vit.train.loop import train_run
    from eqx_vit.train.progress import ProgressLog
    from eqx_vit.train.run_folder import check_free, claim_folder, lock_folder, newest_folder, read_run
    from eqx_vit.train.start import resume_run, start_run

    names = [field.name for field in dataclasses.fields(Settings)]
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if options.set:
        given["changes"] = parse_changes(options.set)

    with ProgressLog() as log, ExitStack() as held:
        if options.resume is not None:
            named = [path for path in (options.resume and Path(options.resume), options.output) if path]
            if len({path.resolve() for path in named}) > 1:
                raise ValueError(f"--resume {named[0]} and --output {named[1]} are two folders: give one")
            folder = named[0] if named else newest_folder()
            read_run(folder)  # nothing is written, not even a lock, where there is no run
            held.enter_context(lock_folder(folder))
            run, data = resume_run(folder, given, log)
        else:
            if options.output:
                check_free(options.output)
            run, data = start_run(given, log)
            folder = held.enter_context(claim_folder(options.output, run))
        log.write(_headline(run, data, folder))
        with catch_signals(log.write) as stopped:
            result = train_run(folder, run, data, log, stopped)
    if result is None:
        print(f"stopped; go on with: eqx-vit train --resume {folder}", file=sys.stderr)
        return 130
    print(
        f"test accuracy {result.test_accuracy:.2%} ({len(data.test)} images, weights of epoch {result.epoch}); "
        f"the run is in {folder}"
    )
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """`eqx-vit evaluate RUN`."""
    from eqx_vit.train.inference import evaluate_run

    print(evaluate_run(options.run, options.checkpoint, options.split, options.data))
    return 0


def predict(options: argparse.Namespace) -> int:
    """`eqx-vit predict RUN|MODEL IMAGE...`."""
    from eqx_vit.train.inference import predict_files
    from eqx_vit.train.predictor import load_predictor

    predictor = load_predictor(options.run, options.checkpoint)
    for path, ranking in predict_files(predictor, options.images, options.invert):
        print(path)
        for name, probability in ranking[: options.top]:
            print(f"  {probability:7.2%}  {name}")
    return 0


def look(options: argparse.Namespace) -> int:
    """`eqx-vit look RUN|MODEL IMAGE...`."""
    from eqx_vit.train.look import look_at_features, look_at_files
    from eqx_vit.train.predictor import load_predictor

    predictor = load_predictor(options.run, options.checkpoint)
    if options.features:
        if options.class_name is not None:
            raise ValueError("--features shows no class: give it without --class")
        written = look_at_features(predictor, options.images, options.invert, options.layer, options.output)
    else:
        written = look_at_files(
            predictor, options.images, options.invert, options.layer, options.class_name, options.output
        )
    for path in written:
        print(path)
    return 0


def models(options: argparse.Namespace) -> int:
    """`eqx-vit models [PATTERN]`."""
    names = list_models(options.pattern)
    if not names:
        raise ValueError(f"no model matches {options.pattern!r}: `eqx-vit models` lists all, try '*{options.pattern}*'")
    width = max(len(name) for name in names)
    line = f"{{:{width}}}  {{:>13}}  {{:>13}}  {{:10}}  {{}}"
    print(line.format(*HEADINGS))
    for name in names:  # a line as soon as it is known: counting all of them takes a while
        print(line.format(*table_row(name)), flush=True)
    return 0


def table_row(name: str) -> tuple[str, str, str, str, str]:
    """A preset's row under `HEADINGS`. Nothing is compiled or computed: the model is only traced.

    **Raises:** `ValueError` for an unknown name.
    """
    config = find_preset(name)
    model, _ = eqx.filter_eval_shape(build, config, jax.random.key(0))
    size = getattr(config, "image_size", None)
    source = next(row for row in MODELS.values() if name in row.presets).weights.get(name)
    return (
        name,
        f"{count_params(model):,}",
        f"{multiply_adds(config) / 1e9:,.2f} G",
        "any" if size is None else " x ".join(map(str, pair(size))),
        source.hub if source else "-",
    )


def _headline(run: "Run", data: "Data", folder: Path) -> str:
    from eqx_vit.train.image_folder import list_names

    counts = f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test images"
    height, width = run.input_spec.size
    return (
        f"{run.settings.model} ({type(run.config).__name__.removesuffix('Config')}, {height} x {width} pixels) on "
        f"{run.settings.data or 'digits'}: {len(data.classes)} classes ({list_names(data.classes)}), {counts}; "
        f"run folder {folder}"
    )


@contextmanager
def catch_signals(log: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within it, whether Ctrl-C was pressed or the process told to end; the second time ends the program at once."""
    received: list[int] = []

    def remember(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        log("stopping after this step; once more to stop at once")

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
