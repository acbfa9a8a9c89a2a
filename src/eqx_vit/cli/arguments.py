"""The command line as argparse sees it: every option, its type and its help."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from eqx_vit.cli import commands
from eqx_vit.layers.config import Size
from eqx_vit.train.settings import PRECISIONS

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
  eqx-vit look runs/001-digits digit.png          where the model looks, as a picture
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
        self.exit(2, f"{self.prog}: {join_lines(message)}\n")


def join_lines(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def make_parser() -> Parser:
    """The parser of `eqx-vit`, whose result has the function of `commands` to call as `command`."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="eqx-vit", description=DESCRIPTION, epilog=EPILOG, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"eqx-vit {_version()}")
    subparsers = parser.add_subparsers(title="commands", dest="command_name", required=True, metavar="COMMAND")

    command = subparsers.add_parser(
        "train",
        help="train a model on digits or on an image folder",
        description=TRAIN_DESCRIPTION,
        formatter_class=layout,
    )
    command.set_defaults(command=commands.train)
    _add_train_options(command)

    command = subparsers.add_parser(
        "evaluate", help="accuracy of a trained model", description="Loss and accuracy of a run's model, by class."
    )
    command.set_defaults(command=commands.evaluate)
    _add_run_options(command)
    command.add_argument(
        "--split", choices=("test", "validation", "train"), default="test", help="which images (default: test)"
    )
    command.add_argument(
        "--data", type=_parse_folder, metavar="FOLDER", help="where the run's images are now, if they have moved"
    )

    command = subparsers.add_parser(
        "predict",
        help="classes of image files",
        description="The likeliest classes of image files, PNG, JPEG or whatever else Pillow reads, of any size. Each "
        "is cropped about its centre to the shape of the model's images, or as released weights expect. Digits are "
        "bright on black: give --invert for dark ink on paper.",
    )
    command.set_defaults(command=commands.predict)
    _add_run_options(command, "; or a preset with released weights")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    command.add_argument("--top", type=_parse_count, default=5, metavar="N", help="how many classes (default: 5)")
    command.add_argument("--invert", action="store_true", help="swap dark and bright")

    command = subparsers.add_parser(
        "look",
        help="pictures of what a model sees in image files",
        description="A picture for each image file: the image as the model is given it, its likeliest classes, where "
        "the evidence for one of them is (Grad-CAM), and for models whose tokens attend to all patches the attention "
        "rollout and the attention of each head of a layer. With --features, the patch features as colours.",
    )
    command.set_defaults(command=commands.look)
    _add_run_options(command, "; or a preset with released weights")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    command.add_argument(
        "--layer", type=int, default=-1, metavar="N", help="whose attention, or features: from 0, or from the end with "
        "-1 (default: the last)",
    )  # fmt: skip
    command.add_argument(
        "--class", dest="class_name", metavar="NAME", help="explain this class (default: the likeliest of each image)"
    )
    command.add_argument(
        "--features", action="store_true",
        help="the first three principal components of the patch features as red, green and blue: patches of one colour "
        "are alike to the model",
    )  # fmt: skip
    command.add_argument(
        "--output", type=Path, default=Path("looks"), metavar="FOLDER", help="where the pictures go (default: looks)"
    )
    command.add_argument("--invert", action="store_true", help="swap dark and bright")

    command = subparsers.add_parser(
        "models",
        help="the presets: name, parameters, multiply-adds, image size, source of weights",
        description="The presets, as released with their papers: name, parameters, multiply-adds of one image (of "
        "224 x 224 for models that take any size), image size, and where released weights come from.",
    )
    command.set_defaults(command=commands.models)
    command.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="such as 'levit*' (default: all)")
    for command in subparsers.choices.values():
        command.add_argument(
            "--import", dest="imports", action="append", default=[], metavar="FILE|MODULE",
            help="import this first: it registers architectures of your own (eqx_vit.register); may be repeated",
        )  # fmt: skip
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
        "--data", type=_parse_folder, metavar="FOLDER",
        help="images with a sub-folder for each class, or inside train/, val/, test/ (default: scikit-learn's digits)",
    )  # fmt: skip
    what.add_argument(
        "--image-size", type=_parse_size, metavar="PIXELS",
        help="N or HEIGHTxWIDTH (default: the model's own; 224 for models that take any)",
    )  # fmt: skip

    where = command.add_argument_group("where")
    where.add_argument("--output", type=Path, metavar="RUN", help="folder of the run (default: the next in runs/)")
    where.add_argument(
        "--resume", nargs="?", const="", metavar="RUN",
        help="continue the run in a folder (default: --output, or the newest in runs/) with its own settings; --data "
        "names the folder that its images have moved to",
    )  # fmt: skip

    how = command.add_argument_group("how")
    numbers: list[tuple[str, Callable[[str], float], str]] = [
        ("--epochs", _parse_count, "passes over the training images (default: 40; 5 for presets)"),
        ("--batch-size", _parse_count, "images a step (default: 32)"),
        ("--learning-rate", float, "of AdamW at its peak (default: 0.002; 0.0005 for presets)"),
        ("--warmup", float, "fraction of all steps in which it rises, before the cosine (default: 0.1)"),
        ("--weight-decay", float, "of the weights of linear maps and convolutions (default: 0.05)"),
        ("--clip-norm", float, "largest norm of the gradient (default: 1)"),
        ("--label-smoothing", float, "fraction of the target spread over all classes (default: 0.1)"),
        ("--ema", float, "decay of the moving average of the weights (default: 0.99)"),
        ("--seed", int, "of everything random (default: 0)"),
    ]
    for name, kind, text in numbers:
        how.add_argument(name, type=kind, metavar="N" if kind is not float else "X", help=text)

    how.add_argument(
        "--precision", choices=PRECISIONS,
        help="of the forward and backward pass (default: float32); bf16 is for accelerators, the weights stay float32",
    )  # fmt: skip

    augment = command.add_argument_group("random changes to training images")
    augment.add_argument("--rotate", type=float, metavar="DEGREES", help="turn by at most this (default: 10)")
    augment.add_argument("--shift", type=float, metavar="FRACTION", help="of height and width (default: 0.08)")
    augment.add_argument("--zoom", type=float, metavar="FRACTION", help="grow or shrink by at most this (default: 0.1)")
    augment.add_argument("--flip", action="store_const", const=True, help="mirror left to right (not for digits)")


def _add_run_options(command: argparse.ArgumentParser, instead: str = "") -> None:
    command.add_argument("run", type=Path, metavar="RUN", help=f"folder of a run, such as runs/001-digits{instead}")
    command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")


def _parse_folder(text: str) -> str:
    return str(Path(text).resolve())


def _parse_size(text: str) -> Size:
    try:
        numbers = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        numbers = []
    match numbers:
        case [side] if side >= 1:
            return side
        case [height, width] if min(height, width) >= 1:
            return height, width
    raise argparse.ArgumentTypeError(f"takes a number of pixels, or HEIGHTxWIDTH; given {text!r}")


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1 up; given {text!r}")
    return int(text)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("eqx_vit")
    except PackageNotFoundError:  # run from a checkout
        return "(not installed)"
