"""The options of `eqx-vit train`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from eqx_vit.layers.config import Size
from eqx_vit.train.settings import CROPS, DISTILLATIONS, LOSSES, OPTIMISERS, PRECISIONS, SCHEDULES
from eqx_vit.train.trackers import TRACKERS


def add_train_options(command: argparse.ArgumentParser) -> None:
    """Add them, in groups. An option that is not given is None: its setting then has the default of its model."""
    _add_what(command.add_argument_group("what to train"))
    _add_where(command.add_argument_group("where"))
    _add_processes(
        command.add_argument_group(
            "several processes", "SLURM, Open MPI, Kubernetes and Cloud TPU tell of theirs; elsewhere give all three"
        )
    )
    _add_how(command.add_argument_group("how"))
    _add_fine_tuning(command.add_argument_group("from weights that exist"))
    _add_augmentation(command.add_argument_group("random changes to training images"))
    _add_watching(command.add_argument_group("watching"))


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", metavar="NAME",
        help="a preset of `eqx-vit models`, an architecture such as vit or levit, or one of the small models: digits "
        "(default) and photos (default with --data)",
    )  # fmt: skip
    group.add_argument(
        "--set", action="append", metavar="FIELD=VALUE",
        help="change a field of the model's config, such as dim=64 or depth=2,3,4; may be repeated. The number of "
        "classes follows the data; grey digits are repeated for models with three channels (or --set channels=1)",
    )  # fmt: skip
    group.add_argument(
        "--recipe", metavar="NAME|FILE",
        help="settings of a paper (`eqx-vit recipes` lists them) or of a .toml file; other options change single ones",
    )  # fmt: skip
    group.add_argument(
        "--data", type=parse_folder, metavar="FOLDER",
        help="images with a sub-folder for each class, or inside train/, val/, test/ (default: scikit-learn's digits)",
    )  # fmt: skip
    group.add_argument(
        "--image-size", type=parse_size, metavar="PIXELS",
        help="N or HEIGHTxWIDTH (default: the model's own; 224 for models that take any)",
    )  # fmt: skip
    group.add_argument(
        "--seeds", type=parse_count, metavar="N",
        help="train N runs that differ in their seeds, in one program; with lists such as --learning-rate 1e-3,2e-3, "
        "each combination so often",
    )  # fmt: skip
    group.add_argument(
        "--drop-path", type=_parse_numbers, metavar="X[,X...]", help="the model's drop-path rate, or a list of them"
    )


def _add_where(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output", type=Path, metavar="RUN", help="folder of the run (default: the next in runs/)")
    group.add_argument(
        "--resume", nargs="?", const="", metavar="RUN",
        help="continue the run in a folder (default: --output, or the newest in runs/) with its own settings; --data "
        "names the folder that its images have moved to",
    )  # fmt: skip
    group.add_argument(
        "--mesh", type=_parse_mesh, metavar="data=N,fsdp=N",
        help="how the devices share the work: fsdp of them hold the parameters together (default: all on data)",
    )  # fmt: skip
    group.add_argument(
        "--keep",
        type=parse_count,
        default=0,
        metavar="N",
        help="keep the models of the last N epochs too, each in a file",
    )
    add_workers(group)


def _add_processes(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is reached by the others")
    group.add_argument("--processes", type=parse_count, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=_parse_index, metavar="K", help="which this is, from 0")
    group.add_argument(
        "--join-timeout", type=parse_count, default=300, metavar="SECONDS", help="to wait for all (default: 300)"
    )


def add_workers(group: argparse._ActionsContainer) -> None:
    """Add `--workers`."""
    group.add_argument(
        "--workers", type=_parse_workers, default=0, metavar="N",
        help="processes that read image files (default: 0, threads of this one); the numbers are the same",
    )  # fmt: skip


def _add_how(group: argparse._ArgumentGroup) -> None:
    numbers: list[tuple[str, Callable[[str], object], str]] = [
        ("--epochs", parse_count, "passes over the training images (default: 40; 5 for presets)"),
        ("--batch-size", parse_count, "images a step (default: 32)"),
        ("--accumulate", parse_count, "parts of a batch whose gradients are computed one after the other (default: 1)"),
        ("--learning-rate", _parse_numbers, "at its peak, or a list (default: 0.002; 0.0005 for presets)"),
        ("--warmup", float, "fraction of all steps in which it rises, before the schedule (default: 0.1)"),
        ("--final-fraction", float, "of the peak learning rate at the end of the cosine (default: 0.01)"),
        ("--decay-epochs", parse_count, "epochs of a step of the schedule `step` (default: 30)"),
        ("--decay-rate", float, "factor of each step (default: 0.1)"),
        ("--momentum", float, "of sgd and muon (default: 0.9)"),
        ("--weight-decay", _parse_numbers, "of linear maps and convolutions, or a list (default: 0.05)"),
        ("--clip-norm", float, "largest norm of the gradient; 0: any (default: 1)"),
        ("--label-smoothing", float, "fraction of the target spread over all classes (default: 0.1)"),
        ("--ema", float, "decay of the moving average of the weights (default: 0.99)"),
        ("--seed", int, "of everything random (default: 0)"),
    ]
    _add_numbers(group, numbers)
    choices = [
        (("--optimiser", "--optimizer"), OPTIMISERS, "(default: adamw)"),
        (("--schedule",), SCHEDULES, "of the learning rate (default: cosine)"),
        (("--loss",), LOSSES, "(default: cross_entropy); bce: binary cross-entropy, as DeiT III has it"),
        (
            ("--precision",),
            PRECISIONS,
            "of the forward and backward pass (default: float32); bf16 is for accelerators, the weights stay float32",
        ),
    ]
    for names, values, text in choices:
        group.add_argument(*names, choices=values, help=text)


def _add_fine_tuning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pretrained", nargs="?", const="released", type=parse_place, metavar="WEIGHTS",
        help="start from the weights released with the preset, or from a run, a folder, a file or hf-hub:owner/name; "
        "another number of classes gets a fresh head, another image size resampled position tables",
    )  # fmt: skip
    group.add_argument(
        "--freeze", action="append", metavar="PART",
        help="keep the weights of a part, such as patch_embedding or blocks, or of the backbone: all but the head",
    )  # fmt: skip
    group.add_argument(
        "--layer-decay", type=float, metavar="X", help="learning rate of a layer relative to that above (default: 1)"
    )
    group.add_argument("--head-learning-rate", type=float, metavar="X", help="the head's own (default: as the others)")
    group.add_argument(
        "--teacher",
        type=parse_place,
        metavar="RUN|PRESET",
        help="learn from this model too (DeiT); a model with two heads by its second",
    )
    group.add_argument(
        "--distillation", choices=DISTILLATIONS, help="the teacher's class, or its probabilities (default: hard)"
    )
    group.add_argument(
        "--distillation-weight", type=float, metavar="X", help="of the teacher's part of the loss (default: 0.5)"
    )
    group.add_argument("--temperature", type=float, metavar="X", help="of soft distillation (default: 1)")


def _add_augmentation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--crop", choices=CROPS,
        help="whole: about the centre (default); random: of random size and shape, resized; simple: DeiT III's",
    )  # fmt: skip
    numbers: list[tuple[str, Callable[[str], object], str]] = [
        ("--crop-scale", float, "smallest share of the image that a random crop takes (default: 0.08)"),
        ("--crop-fraction", float, "of the resized image, kept about its centre for evaluation (default: 1)"),
        ("--rotate", float, "turn by at most so many degrees (default: 10)"),
        ("--shift", float, "by a fraction of height and width (default: 0.08)"),
        ("--zoom", float, "grow or shrink by at most this (default: 0.1)"),
        ("--colour-jitter", float, "change brightness, contrast and saturation by up to this (default: 0)"),
        ("--erase", float, "probability that a rectangle becomes noise (default: 0)"),
        ("--mixup", float, "alpha of mixup (default: 0, none)"),
        ("--cutmix", float, "alpha of cutmix (default: 0, none); with both, each batch has one of the two"),
        ("--mix-probability", float, "that a batch is mixed (default: 1)"),
        ("--repeats", parse_count, "times that an image is in an epoch, of as many fewer images (default: 1)"),
    ]
    _add_numbers(group, numbers)
    group.add_argument("--flip", action="store_const", const=True, help="mirror left to right (not for digits)")
    group.add_argument("--rand-augment", metavar="POLICY", help="in timm's spelling, such as rand-m9-mstd0.5-inc1")
    group.add_argument(
        "--three-augment", action="store_const", const=True, help="grey, solarised or blurred, as in DeiT III"
    )


def _add_watching(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--show-batch", action="store_true",
        help="write batch.png, images of the first step as the model is given them, to the run's folder, and end",
    )  # fmt: skip
    group.add_argument("--track", choices=TRACKERS, help="tell this tracker of the run's numbers too")
    group.add_argument(
        "--profile", type=_parse_span, metavar="FIRST:LAST", help="write a trace of these steps for xprof"
    )


def _add_numbers(group: argparse._ArgumentGroup, numbers: list[tuple[str, Callable[[str], object], str]]) -> None:
    for name, kind, text in numbers:
        metavar = {float: "X", _parse_numbers: "X[,X...]"}.get(kind, "N")
        group.add_argument(name, type=kind, metavar=metavar, help=text)


def parse_folder(text: str) -> str:
    """A path, whatever the current folder is later."""
    return str(Path(text).resolve())


def parse_place(text: str) -> str:
    """A path that exists, whatever the current folder is later; anything else is a name."""
    return str(Path(text).resolve()) if Path(text).exists() else text


def parse_count(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1 up; given {text!r}")
    return int(text)


def _parse_index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 up; given {text!r}")
    return int(text)


def _parse_workers(text: str) -> int:
    if not text.isdecimal() or int(text) > 1024:
        raise argparse.ArgumentTypeError(f"takes a number of processes, 0 for none; given {text!r}")
    return int(text)


def _parse_numbers(text: str) -> float | tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"takes a number, or several with commas; given {text!r}") from error
    return numbers[0] if len(numbers) == 1 else numbers


def _parse_mesh(text: str) -> dict[str, int]:
    pairs = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    known = len(pairs) == len(text.split(",")) and pairs.keys() <= {"data", "fsdp"}
    if not known or not all(number.isdecimal() and int(number) > 0 for number in pairs.values()):
        raise argparse.ArgumentTypeError(f"takes data=N, fsdp=N or both, such as data=4,fsdp=2; given {text!r}")
    return {name: int(number) for name, number in pairs.items()}


def _parse_span(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"takes FIRST:LAST, two numbers of steps such as 10:15; given {text!r}")
    return int(first), int(last)


def parse_size(text: str) -> Size:
    """N, or HEIGHTxWIDTH."""
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
