"""What each command does with its options. The training program is imported by the commands that need it alone."""

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import equinox as eqx
import jax
from jax.sharding import Mesh

from eqx_vit.counting import multiply_adds
from eqx_vit.create import build
from eqx_vit.layers.config import pair
from eqx_vit.parameters import count_params
from eqx_vit.registry import MODELS, find_preset, list_models
from eqx_vit.sharding import make_mesh
from eqx_vit.train.config import parse_changes
from eqx_vit.train.settings import Settings

if TYPE_CHECKING:
    from eqx_vit.train.data import Data
    from eqx_vit.train.progress import ProgressLog
    from eqx_vit.train.run_folder import Run

LISTED = ("learning_rate", "weight_decay", "drop_path")  # options that take a list, of runs trained as one
FORMATS = ("onnx", "stablehlo", "timm", "hf")
HEADINGS = ("name", "parameters", "multiply-adds", "image size", "weights")


def train(options: argparse.Namespace) -> int:
    """`eqx-vit train`."""
    from eqx_vit.train.processes import check_same, do_together, exchange, is_first
    from eqx_vit.train.progress import ProgressLog
    from eqx_vit.train.run_folder import check_seen
    from eqx_vit.train.show import write_batch

    if options.workers:  # where one is killed, Python's own clean-up has a warning to say
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    with ProgressLog(process=jax.process_index()) as log, ExitStack() as held:
        claimed = do_together(lambda: _claim_resumed(options, held))
        run, data = do_together(lambda: _read_run(options, claimed, log))
        mesh = do_together(lambda: _choose_mesh(options, run, data, log))
        check_same(
            dataclasses.asdict(run.settings)
            | {"data": run.fingerprint, "--mesh": mesh and dict(mesh.shape), "--keep": options.keep}
            | {"--resume": options.resume is not None, "--show-batch": options.show_batch}
        )
        folder = do_together(lambda: claimed or _claim_new(options, run, held))
        folder = Path(exchange(str(folder))[0])
        do_together(lambda: check_seen(folder))
        log.write(_headline(run, data, folder))
        if options.show_batch:
            if is_first():
                print(write_batch(folder, run, data))
            return 0
        with catch_signals(log.write) as stopped:
            return _run(options, mesh, folder, run, data, log, stopped)


def _claim_resumed(options: argparse.Namespace, held: ExitStack) -> Path | None:
    """The folder of the run to go on with, None for a new one; locked, by the first process."""
    from eqx_vit.train.processes import is_first
    from eqx_vit.train.run_folder import check_free, lock_folder, newest_folder, read_run

    if options.resume is None:
        if options.output and is_first():
            check_free(options.output)
        return None
    named = [path for path in (options.resume and Path(options.resume), options.output) if path]
    if len({path.resolve() for path in named}) > 1:
        raise ValueError(f"--resume {named[0]} and --output {named[1]} are two folders: give one")
    folder = named[0] if named else newest_folder()
    read_run(folder)  # nothing is written, not even a lock, where there is no run
    if is_first():
        held.enter_context(lock_folder(folder))
    return folder


def _read_run(options: argparse.Namespace, folder: Path | None, log: "ProgressLog") -> tuple["Run", "Data"]:
    """The run in a folder, or a new one where that is None."""
    from eqx_vit.train.start import resume_run, start_run

    given, lists = _read_settings(options)
    if folder is None:
        run, data = start_run(given, log, options.seeds, lists)
    elif lists or options.seeds:
        raise ValueError("--resume goes on with the runs as they are: give it without --seeds and lists")
    else:
        run, data = resume_run(folder, given, log)
    single = {"--track": options.track, "--profile": options.profile, "--mesh": options.mesh, "--keep": options.keep}
    if run.members and (any(single.values()) or jax.process_count() > 1):
        raise ValueError(f"{', '.join(single)} and processes are for single runs: give them without --seeds and lists")
    return run, data


def _claim_new(options: argparse.Namespace, run: "Run", held: ExitStack) -> Path | None:
    from eqx_vit.train.processes import is_first
    from eqx_vit.train.run_folder import claim_folder

    return held.enter_context(claim_folder(options.output, run)) if is_first() else None


def _read_settings(options: argparse.Namespace) -> tuple[dict[str, object], dict[str, tuple[float, ...]]]:
    """(settings, those of which there is a list), of the recipe and the options beside it."""
    from eqx_vit.train.recipes import load_recipe

    given: dict[str, object] = {}
    changes: dict[str, object] = {}
    if options.recipe is not None:
        given = load_recipe(options.recipe).settings | {"recipe": options.recipe}
        from_recipe = given.get("changes")
        changes = {**from_recipe} if isinstance(from_recipe, dict) else {}
    names = [field.name for field in dataclasses.fields(Settings)]
    own = {name: value for name, value in vars(options).items() if name in names and value is not None}
    lists = {name: value for name, value in vars(options).items() if name in LISTED and isinstance(value, tuple)}
    if options.drop_path is not None and "drop_path" not in lists:
        changes["drop_path"] = options.drop_path
    changes |= parse_changes(options.set or [])
    given |= {name: value for name, value in own.items() if name not in lists}
    given |= {name: values[0] for name, values in lists.items() if name in names}
    if options.freeze:
        given["freeze"] = tuple(options.freeze)
    return given | ({"changes": changes} if changes else {}), lists


def _choose_mesh(options: argparse.Namespace, run: "Run", data: "Data", log: "ProgressLog") -> Mesh | None:
    """The mesh that the options say; all devices, where there are several and they can share a batch equally."""
    from eqx_vit.train.batches import choose_batch_size
    from eqx_vit.train.placement import Placement

    devices = len(jax.devices())
    batch_size = choose_batch_size(run.settings, data.train)
    if options.mesh or (devices > 1 and jax.process_count() > 1):
        mesh = make_mesh(**(options.mesh or {}))
        Placement(run.config, mesh).check_batch(batch_size // run.settings.accumulate)
        return mesh
    if devices == 1 or run.members:
        return None
    if batch_size // run.settings.accumulate % devices:
        log.write(f"one of {devices} devices is used: they cannot share a batch of {batch_size} equally")
        return None
    return make_mesh()


def _run(
    options: argparse.Namespace,
    mesh: Mesh | None,
    folder: Path,
    run: "Run",
    data: "Data",
    log: "ProgressLog",
    stopped: Callable[[], bool],
) -> int:
    """Train the run, or all members of one, and say what came out."""
    from eqx_vit.train.loop import train_run
    from eqx_vit.train.members import describe_member
    from eqx_vit.train.population import train_population
    from eqx_vit.train.processes import is_first
    from eqx_vit.train.trackers import make_tracker

    if run.members:
        found = train_population(folder, run, data, log, stopped, workers=options.workers)
        result = None
        if found is not None:
            best = describe_member(run.members[found.best])
            result = (
                f"test accuracy {mean(found.test_accuracies):.2%} ± {stdev(found.test_accuracies):.2%} of "
                f"{len(run.members)} runs; the best by validation, with {best}, has "
                f"{found.test_accuracies[found.best]:.2%}; they are in {folder}"
            )
    else:
        track, profile = (options.track, options.profile) if is_first() else (None, None)
        tracker = make_tracker(track, folder, dataclasses.asdict(run.settings))
        try:
            final = train_run(
                folder,
                run,
                data,
                log,
                stopped,
                workers=options.workers,
                tracker=tracker,
                profile=profile,
                mesh=mesh,
                keep=options.keep,
            )
        finally:
            tracker.close()
        result = None
        if final is not None:
            result = (
                f"test accuracy {final.test_accuracy:.2%} ({len(data.test)} images, weights of epoch {final.epoch}); "
                f"the run is in {folder}"
            )
    if result is None:
        if is_first():
            print(f"stopped; go on with: eqx-vit train --resume {folder}", file=sys.stderr)
        return 130
    if is_first():
        print(result)
    return 0


def recipes(options: argparse.Namespace) -> int:
    """`eqx-vit recipes`."""
    from eqx_vit.train.recipes import describe_recipes

    print(describe_recipes())
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """`eqx-vit evaluate RUN`."""
    from eqx_vit.train.evaluate_preset import evaluate_preset
    from eqx_vit.train.inference import evaluate_run

    if str(options.run) in list_models() and not options.run.exists():
        if options.data is None:
            raise ValueError(f"evaluate {options.run} needs --data FOLDER, with one sub-folder for each of its classes")
        print(evaluate_preset(str(options.run), options.data, options.workers))
    else:
        print(evaluate_run(options.run, options.checkpoint, options.split or "test", options.data, options.workers))
    return 0


def predict(options: argparse.Namespace) -> int:
    """`eqx-vit predict RUN|MODEL IMAGE...`."""
    from eqx_vit.train.predict import predict_files
    from eqx_vit.train.predictor import load_predictor

    predictor = load_predictor(options.run, options.checkpoint)
    if predictor.model.config.num_classes == 0:
        raise ValueError(f"{options.run} has no head to tell classes apart: `eqx-vit probe` tries its features")
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


def probe(options: argparse.Namespace) -> int:
    """`eqx-vit probe RUN|MODEL`."""
    from eqx_vit.train.probe import probe as report

    print(
        report(
            options.run,
            options.checkpoint,
            options.data,
            pretrained=options.pretrained,
            image_size=options.image_size,
            output=options.output,
            batch_size=options.batch_size,
            workers=options.workers,
        )
    )
    return 0


def export(options: argparse.Namespace) -> int:
    """`eqx-vit export RUN|MODEL --to FORMATS --output FOLDER`."""
    from eqx_vit.cli.export import export_formats, find_subject

    given = {name: getattr(options, name) for name in ("batch", "opset", "platforms")}
    for line in export_formats(find_subject(options.run, options.checkpoint), options.to, options.output, **given):
        print(line)
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
    runs = f"{len(run.members)} runs of " if run.members else ""
    return (
        f"{runs}"
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
