"""The command line as argparse sees it: every option, its type and its help."""

import argparse
from pathlib import Path
from typing import NoReturn

from eqx_vit.cli import commands
from eqx_vit.cli.train_options import add_train_options, add_workers, parse_count, parse_folder, parse_place, parse_size

DESCRIPTION = "Vision transformers in JAX and Equinox: train one, look at how well it does, use it."
EPILOG = """\
examples:
  eqx-vit train                                   a small ViT on 1,797 handwritten digits, in half a minute
  eqx-vit train --model levit_128s --set image_size=64
  eqx-vit train --data photos --epochs 30         photos/cat/*.jpg, photos/dog/*.jpg, ...
  eqx-vit train --recipe imagenet_deit_small --data imagenet
  eqx-vit train --seeds 8 --learning-rate 1e-3,2e-3   all of them in one program
  eqx-vit train --model vit_tiny_patch16_224 --pretrained --data photos --freeze backbone
  eqx-vit train --resume                          go on with a run that was stopped or killed
  eqx-vit evaluate runs/001-digits
  eqx-vit predict runs/001-digits digit.png
  eqx-vit predict vit_base_patch16_224 cat.jpg    with released weights
  eqx-vit look runs/001-digits digit.png          where the model looks, as a picture
  eqx-vit probe vit_small_patch14_dinov2 --data photos   what its frozen features tell
  eqx-vit export runs/001-digits --to onnx,stablehlo --output exported
  eqx-vit models 'levit*'
"""
TRAIN_DESCRIPTION = """\
Train a model, on scikit-learn's handwritten digits or on a folder of images.

The run is left in a folder: config.json, metrics.jsonl, curves.png, samples.png, best.safetensors and
last.safetensors (moving averages of the weights, read by eqx_vit.load), training_state.safetensors (for --resume).
Best is the epoch of highest accuracy on the 10 % of images kept for validation; another 20 % are kept for the test
at the end. The split is the same for every run; equal settings give equal numbers.

Images are read as they are needed: the data set may be larger than the memory.
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
    add_train_options(command)

    command = subparsers.add_parser(
        "recipes",
        help="the settings of papers: model, data, expected accuracy",
        description="The recipes of `eqx-vit train --recipe`: what each trains on which data, what its authors reach.",
    )
    command.set_defaults(command=commands.recipes)

    command = subparsers.add_parser(
        "evaluate",
        help="accuracy of a trained model",
        description="Loss and accuracy of a run's model, by class; or of a preset's released weights on a folder with "
        "a sub-folder for each class, such as imagenet/val: top-1 and top-5, beside what the authors report.",
    )
    command.set_defaults(command=commands.evaluate)
    _add_run_options(command, "; or a preset with released weights")
    command.add_argument("--split", choices=("test", "validation", "train"), help="which images (default: test)")
    command.add_argument(
        "--data",
        type=parse_folder,
        metavar="FOLDER",
        help="images for a preset; where a run's are now, if they have moved",
    )
    add_workers(command)

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
    command.add_argument("--top", type=parse_count, default=5, metavar="N", help="how many classes (default: 5)")
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
        "probe",
        help="how much a model's frozen features tell: k-NN and logistic regression",
        description="The test accuracy of k nearest neighbours and of logistic regression on the pooled features of a "
        "frozen model, for a folder with a sub-folder for each class, split as `train` splits it. The features are "
        "computed once, and kept in a file that the next call reads. The number of neighbours and the regularisation "
        "are chosen by the validation images.",
    )
    command.set_defaults(command=commands.probe)
    _add_run_options(command, "; or a preset, with the weights of --pretrained")
    command.add_argument(
        "--data", type=parse_folder, metavar="FOLDER", help="images (default: the run's own; for a preset the digits)"
    )
    command.add_argument(
        "--pretrained", type=parse_place, metavar="WEIGHTS",
        help="a preset's weights: a folder, a file or hf-hub:owner/name (default: the released ones)",
    )  # fmt: skip
    command.add_argument(
        "--image-size", type=parse_size, metavar="PIXELS", help="of a preset: N or HEIGHTxWIDTH (default: its own)"
    )
    command.add_argument("--batch-size", type=parse_count, default=32, metavar="N", help="images a step (default: 32)")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="where the features are kept (default: a file in probes)"
    )
    add_workers(command)

    command = subparsers.add_parser(
        "export",
        help="a model for ONNX Runtime, for JAX alone, for timm or transformers",
        description="Write a model for use without this library, one folder for each format in the new folder OUTPUT: "
        "onnx (model.onnx), stablehlo (model.stablehlo, for JAX alone), timm and hf (what timm and transformers open). "
        "Each is run at once in its own runtime, and its certificate.json says how far it is from the model, its size "
        "and its speed here. Where one fails nothing is left.",
    )
    command.set_defaults(command=commands.export)
    _add_run_options(command, "; or a preset with released weights")
    command.add_argument(
        "--to", type=_parse_formats, required=True, metavar="FORMATS",
        help=f"formats, separated by commas: {', '.join(commands.FORMATS)}",
    )  # fmt: skip
    command.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    command.add_argument(
        "--batch", type=_parse_batch, default="dynamic", metavar="N",
        help="images in a batch, for onnx and stablehlo (default: dynamic, any number)",
    )  # fmt: skip
    command.add_argument("--opset", type=parse_count, metavar="N", help="version of ONNX's operators (default: 18)")
    command.add_argument(
        "--platforms", type=_parse_names, metavar="NAMES",
        help="where the StableHLO shall run, separated by commas (default: cpu,cuda,tpu)",
    )  # fmt: skip

    command = subparsers.add_parser(
        "models",
        help="the presets: name, parameters, multiply-adds, image size, source of weights",
        description="The presets, as released with their papers: name, parameters, multiply-adds of one image (of "
        "224 x 224 for models that take any size), image size, and where released weights come from.",
    )
    command.set_defaults(command=commands.models)
    command.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="such as 'levit*' (default: all)")
    for name in ("train", "evaluate", "predict", "look"):
        subparsers.choices[name].add_argument(
            "--no-cache", dest="cache", action="store_false",
            help="compile anew; else what was compiled is kept in the user's cache folder, at most 1 GiB",
        )  # fmt: skip
    for command in subparsers.choices.values():
        command.add_argument(
            "--import", dest="imports", action="append", default=[], metavar="FILE|MODULE",
            help="import this first: it registers architectures of your own (eqx_vit.register); may be repeated",
        )  # fmt: skip
    return parser


def _add_run_options(command: argparse.ArgumentParser, instead: str = "") -> None:
    command.add_argument("run", type=Path, metavar="RUN", help=f"folder of a run, such as runs/001-digits{instead}")
    command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _parse_formats(text: str) -> tuple[str, ...]:
    formats = _parse_names(text)
    if len(set(formats)) < len(formats) or set(formats) - set(commands.FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r} is not some of {', '.join(commands.FORMATS)}, each once")
    return formats


def _parse_batch(text: str) -> int | str:
    return text if text == "dynamic" else parse_count(text)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("eqx_vit")
    except PackageNotFoundError:  # run from a checkout
        return "(not installed)"
