"""`eqx-vit`: train, evaluate, predict, models. Every error is one line on standard error, and exit code 2."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from eqx_vit.train.settings import PRECISIONS

# What `pip install 'eqx_vit[train]'` brings: imported only by the commands that need them.
EXTRAS = ("optax", "safetensors", "PIL", "sklearn", "rich", "matplotlib")

DESCRIPTION = "Vision transformers in JAX and Equinox: train one, look at how well it does, use it."
EPILOG = """\
examples:
  eqx-vit train                                   a small ViT on 1,797 handwritten digits, in half a minute
  eqx-vit train --model levit_128s --set image_size=64
  eqx-vit train --data photos --epochs 30         photos/cat/*.jpg, photos/dog/*.jpg, ...
  eqx-vit train --resume                          go on with a run that was stopped or killed
  eqx-vit evaluate runs/001-digits
  eqx-vit predict runs/001-digits digit.png
  eqx-vit predict vit_base_patch16_224 cat.jpg    with released weights
  eqx-vit models 'levit*'
"""
TRAIN_DESCRIPTION = """\
Train a model, on scikit-learn's handwritten digits or on a folder of images.

The run is left in a folder: config.json, metrics.jsonl, curves.png, samples.png, best.safetensors and
last.safetensors (moving averages of the weights, read by eqx_vit.load), training_state.safetensors (for --resume).
Best is the epoch of highest accuracy on the 10 % of images kept for validation; another 20 % are kept for the test
at the end. The split is the same for every run; equal settings give equal numbers.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code: 0, 2 after an error, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    command = f"eqx-vit {options.command_name}"
    try:
        return options.command(options)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        return _failed(command, f"this needs {error.name}: pip install 'eqx_vit[train]'")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _failed(command, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        options_named = re.sub(r"\bSettings\.(\w+)", lambda name: "--" + name[1].replace("_", "-"), str(error))
        return _failed(command, options_named)
    except RuntimeError as error:  # JAX has no type of its own for this
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _failed(command, "out of memory: give a smaller --batch-size or --image-size")


def train(options: argparse.Namespace) -> int:
    """`eqx-vit train`."""
    from eqx_vit.train.loop import train_run
    from eqx_vit.train.models import parse_changes
    from eqx_vit.train.report import Report
    from eqx_vit.train.run import check_free, new_folder, newest_folder, write_run
    from eqx_vit.train.start import new_run, resumed_run

    given = {name: value for name, value in vars(options).items() if name in TRAIN_SETTINGS and value is not None}
    if options.set:
        given["changes"] = parse_changes(options.set)
    if options.data is not None:
        given["data"] = str(options.data.resolve())
    if options.image_size:
        given["image_size"] = options.image_size[0] if len(options.image_size) == 1 else options.image_size

    with Report() as report:
        if options.resume is not None:
            named = [path for path in (options.resume and Path(options.resume), options.output) if path]
            if len({path.resolve() for path in named}) > 1:
                raise ValueError(f"--resume {named[0]} and --output {named[1]} are two folders: give one")
            folder = named[0] if named else newest_folder()
            run, data = resumed_run(folder, given, report)
        else:
            if options.output:
                check_free(options.output)
            run, data = new_run(given, report)
            folder = options.output or new_folder(run.settings.model)
            check_free(folder)
            write_run(folder, run)
        report.say(_headline(run, data, folder))
        with _signals(report.say) as stopped:
            result = train_run(folder, run, data, report, stopped)
    if result is None:
        print(f"stopped; go on with: eqx-vit train --resume {folder}")
        return 130
    print(
        f"test accuracy {result['test_accuracy']:.2%} ({len(data.test)} images, weights of epoch {result['epoch']}); "
        f"the run is in {folder}"
    )
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """`eqx-vit evaluate RUN`."""
    from eqx_vit.train.use import evaluate_run

    print(evaluate_run(options.run, options.checkpoint, options.split))
    return 0


def predict(options: argparse.Namespace) -> int:
    """`eqx-vit predict RUN|MODEL IMAGE...`."""
    from eqx_vit.create import list_models

    if options.run.exists():
        from eqx_vit.train.use import predict_files

        results = predict_files(options.run, options.checkpoint, options.images, options.invert)
    elif str(options.run) in list_models():
        from eqx_vit.train.released import classify_files

        results = classify_files(str(options.run), options.images, options.invert)
    else:
        raise ValueError(f"{options.run} is neither the folder of a run nor a preset (`eqx-vit models` lists them)")
    for path, ranked in results:
        print(path)
        for name, probability in ranked[: options.top]:
            print(f"  {probability:7.2%}  {name}")
    return 0


def models(options: argparse.Namespace) -> int:
    """`eqx-vit models [PATTERN]`."""
    from eqx_vit.create import list_models
    from eqx_vit.listing import HEADINGS, cells

    names = list_models(options.pattern)
    if not names:
        raise ValueError(f"no model matches {options.pattern!r}: `eqx-vit models` lists all, try '*{options.pattern}*'")
    width = max(len(name) for name in names)
    line = f"{{:{width}}}  {{:>13}}  {{:>13}}  {{:10}}  {{}}"
    print(line.format(*HEADINGS))
    for name in names:  # a line as soon as it is known: counting all of them takes a while
        print(line.format(*cells(name)), flush=True)
    return 0


def _headline(run: Any, data: Any, folder: Path) -> str:
    counts = f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test images"
    height, width = run.pixels.size
    return (
        f"{run.settings.model} ({type(run.config).__name__.removesuffix('Config')}, {height} x {width} pixels) on "
        f"{run.settings.data or 'digits'}: {len(data.classes)} classes, {counts}; run folder {folder}"
    )


@contextmanager
def _signals(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within it, whether Ctrl-C was pressed or the process told to end; the second time ends the program at once."""
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        say("stopping after this step; once more to stop at once")

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failed(command: str, message: str) -> int:
    print(f"{command}: {_one_line(message)}", file=sys.stderr)
    return 2


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sizes(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"takes a number of pixels, or HEIGHTxWIDTH; given {text!r}")
    return numbers


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1 up; given {text!r}")
    return int(text)


TRAIN_SETTINGS = (
    "model",
    "epochs",
    "batch_size",
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip_norm",
    "label_smoothing",
    "ema",
    "precision",
    "rotate",
    "shift",
    "zoom",
    "flip",
    "seed",
)


def _parser() -> Parser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="eqx-vit", description=DESCRIPTION, epilog=EPILOG, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"eqx-vit {_version()}")
    commands = parser.add_subparsers(title="commands", dest="command_name", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "train",
        help="train a model on digits or on an image folder",
        description=TRAIN_DESCRIPTION,
        formatter_class=layout,
    )
    command.set_defaults(command=train)
    _add_train_options(command)

    command = commands.add_parser(
        "evaluate", help="accuracy of a trained model", description="Loss and accuracy of a run's model, by class."
    )
    command.set_defaults(command=evaluate)
    _add_run(command)
    command.add_argument(
        "--split", choices=("test", "validation", "train"), default="test", help="which images (default: test)"
    )

    command = commands.add_parser(
        "predict",
        help="classes of image files",
        description="The likeliest classes of image files, PNG, JPEG or whatever else Pillow reads, of any size. Each "
        "is cropped about its centre to the shape of the model's images, or as released weights expect. Digits are "
        "bright on black: give --invert for dark ink on paper.",
    )
    command.set_defaults(command=predict)
    _add_run(command, "; or a preset with released weights")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    command.add_argument("--top", type=_at_least_one, default=5, metavar="N", help="how many classes (default: 5)")
    command.add_argument("--invert", action="store_true", help="swap dark and bright")

    command = commands.add_parser(
        "models",
        help="the presets: name, parameters, multiply-adds, image size, source of weights",
        description="The presets, as released with their papers: name, parameters, multiply-adds of one image (of "
        "224 x 224 for models that take any size), image size, and where released weights come from.",
    )
    command.set_defaults(command=models)
    command.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="such as 'levit*' (default: all)")
    return parser


def _add_train_options(command: argparse.ArgumentParser) -> None:
    what = command.add_argument_group("what to train")
    what.add_argument(
        "--model", metavar="NAME",
        help="a preset of `eqx-vit models`, an architecture such as vit or levit, or one of the small models: digits "
        "(default) and photos (default with --data)",
    )  # fmt: skip
    what.add_argument(
        "--set", action="append", metavar="FIELD=VALUE",
        help="change a field of the model's config, such as dim=64 or depth=2,3,4; may be repeated. The number of "
        "classes follows the data; grey digits are repeated for models with three channels (or --set channels=1)",
    )  # fmt: skip
    what.add_argument(
        "--data", type=Path, metavar="FOLDER",
        help="an image folder with one sub-folder for each class (default: scikit-learn's digits)",
    )  # fmt: skip
    what.add_argument(
        "--image-size", type=_sizes, metavar="PIXELS",
        help="N or HEIGHTxWIDTH (default: the model's own; 224 for models that take any)",
    )  # fmt: skip

    where = command.add_argument_group("where")
    where.add_argument("--output", type=Path, metavar="RUN", help="folder of the run (default: the next in runs/)")
    where.add_argument(
        "--resume", nargs="?", const="", metavar="RUN",
        help="continue the run in a folder (default: --output, or the newest in runs/) with its own settings",
    )  # fmt: skip

    how = command.add_argument_group("how")
    numbers: list[tuple[str, Any, str]] = [
        ("--epochs", _at_least_one, "passes over the training images (default: 40; 5 for presets)"),
        ("--batch-size", _at_least_one, "images a step (default: 32)"),
        ("--learning-rate", float, "of AdamW at its peak (default: 0.002; 0.0005 for presets)"),
        ("--warmup", float, "share of all steps in which it rises, before the cosine (default: 0.1)"),
        ("--weight-decay", float, "of the weights of linear maps and convolutions (default: 0.05)"),
        ("--clip-norm", float, "largest norm of the gradient (default: 1)"),
        ("--label-smoothing", float, "share of the target spread over all classes (default: 0.1)"),
        ("--ema", float, "share of the moving average that stays at each step (default: 0.99)"),
        ("--seed", int, "of everything random (default: 0)"),
    ]
    for name, kind, text in numbers:
        how.add_argument(name, type=kind, metavar="N" if kind is not float else "X", help=text)

    how.add_argument(
        "--precision", choices=PRECISIONS,
        help="of the forward and backward pass (default: float32); bf16 is for accelerators, the weights stay float32",
    )  # fmt: skip

    moves = command.add_argument_group("random changes to training images")
    moves.add_argument("--rotate", type=float, metavar="DEGREES", help="turn by up to so much (default: 10)")
    moves.add_argument("--shift", type=float, metavar="SHARE", help="of height and width (default: 0.08)")
    moves.add_argument("--zoom", type=float, metavar="SHARE", help="grow or shrink by up to so much (default: 0.1)")
    moves.add_argument("--flip", action="store_const", const=True, help="mirror left to right (for photos, not digits)")


def _add_run(command: argparse.ArgumentParser, instead: str = "") -> None:
    command.add_argument("run", type=Path, metavar="RUN", help=f"folder of a run, such as runs/001-digits{instead}")
    command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("eqx_vit")
    except PackageNotFoundError:  # run from a checkout
        return "(not installed)"
