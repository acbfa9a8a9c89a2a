"""The settings of a training run, and the model config that they lead to: from `--model`, `--set` and the data."""

import ast
import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eqx_vit.layers.config import Size, check, check_at_least, check_fields, check_rates, no_type_check
from eqx_vit.models.vit import ViTConfig
from eqx_vit.registry import MODELS, AnyConfig, change_config, find_preset, list_models, make_config

DEFAULT_IMAGE_SIZE = 224  # for models that take any size: what most of their papers train at
Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[str, ...] = typing.get_args(Precision)


@no_type_check
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the numbers of a run: equal settings give equal weights on the same machine.

    **Raises:** `ValueError` that names the setting, the rule and the value given.
    """

    model: str  # a preset, an architecture, or one of `SMALL_MODELS`
    changes: dict  # fields of the model's config and their values
    data: str | None = None  # an image folder; None: scikit-learn's digits
    image_size: int | tuple[int, int] | None = None  # pixels; None: the model's own
    epochs: int
    batch_size: int = 32
    learning_rate: float  # the peak, reached after the warm-up
    warmup: float = 0.1  # fraction of all steps in which the learning rate rises from 0
    weight_decay: float = 0.05  # of weights of linear maps and convolutions alone
    clip_norm: float = 1.0  # largest norm of the gradient
    label_smoothing: float = 0.1
    ema: float = 0.99  # decay of the moving average of the weights
    precision: Precision = "float32"  # of the forward and backward pass; the weights and their averages stay float32
    rotate: float = 10.0  # degrees, each image by up to so much either way
    shift: float = 0.08  # of height and width
    zoom: float = 0.1  # fraction by which an image grows or shrinks
    flip: bool = False  # mirror every second image, left to right
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, 1, "epochs", "batch_size", "image_size")
        check_rates(self, "warmup", "label_smoothing", "ema", "shift", "zoom")
        for name in ("learning_rate", "clip_norm"):
            check(getattr(self, name) > 0, f"Settings.{name} must be above 0, given {getattr(self, name)}")
        check(self.weight_decay >= 0, f"Settings.weight_decay must not be negative, given {self.weight_decay}")
        check(0 <= self.rotate <= 180, f"Settings.rotate must be from 0 to 180 degrees, given {self.rotate}")
        check(0 <= self.seed < 2**32, f"Settings.seed must be from 0 to {2**32 - 1}, given {self.seed}")


# The models of a run that names none: small enough for a laptop. Not the presets of a paper, hence not in MODELS.
SMALL_MODELS = {
    # Patches of 4 x 4: with 2 x 2 the positions, small at the start, must first be learnt, and accuracy is 2 % lower.
    "digits": ViTConfig(
        image_size=8,
        patch_size=4,
        num_classes=10,
        dim=96,
        depth=4,
        heads=4,
        mlp_dim=192,
        pool="mean",
        class_token=False,
        channels=1,
    ),
    "photos": ViTConfig(
        image_size=64,
        patch_size=8,
        num_classes=10,
        dim=128,
        depth=6,
        heads=4,
        mlp_dim=384,
        pool="mean",
        class_token=False,
    ),
}
SMALL_SETTINGS = Settings(model="digits", changes={}, epochs=40, learning_rate=2e-3)
# Presets see hundreds of times the pixels of a digit: fewer epochs keep them within minutes.
PRESET_SETTINGS = dataclasses.replace(SMALL_SETTINGS, epochs=5, learning_rate=5e-4)


def make_settings(given: Mapping[str, object]) -> Settings:
    """The given settings, the others at the defaults that suit the model.

    **Raises:** `ValueError` for a wrong setting.
    """
    model = given.get("model", "photos" if "data" in given else "digits")
    defaults = SMALL_SETTINGS if model in SMALL_MODELS else PRESET_SETTINGS
    return dataclasses.replace(defaults, **{**given, "model": model})


def parse_changes(assignments: Sequence[str]) -> dict[str, object]:
    """`["dim=64", "depth=2,3"]` as `{"dim": 64, "depth": (2, 3)}`: Python's literals, `none`, `true`, `false`, or text.

    **Raises:** `ValueError` for what is not `field=value`, or a field given twice.
    """
    changes: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"--set takes field=value, such as dim=64; given {assignment!r}")
        if name in changes:
            raise ValueError(f"--set gives {name} twice")
        changes[name] = _parse_literal(text.strip())
    return changes


def make_model_config(
    name: str, changes: Mapping[str, object], image_size: Size | None, classes: int
) -> tuple[AnyConfig, tuple[int, int]]:
    """The config of a model for data of so many classes, and the (height, width) of its images.

    `num_classes` follows the data unless `changes` gives it; `channels` stays the model's own (the data follow).

    **Raises:** `ValueError` for an unknown model, field or value, with what would be right.
    """
    changes = dict(changes)
    preset = _find_preset(name)
    config_class = MODELS[name].config if preset is None else type(preset)
    fields = [field.name for field in dataclasses.fields(config_class)]
    size: object = image_size
    if size is not None and changes.get("image_size", size) != size:
        raise ValueError(f"--image-size {size} contradicts --set image_size={changes['image_size']}: give one")
    if "image_size" not in fields:  # the model takes any size, which then belongs to the data alone
        size = changes.pop("image_size", size)
    elif size is not None:
        changes["image_size"] = size
    changes.setdefault("num_classes", classes)
    config = make_config(name, changes) if preset is None else change_config(preset, changes)
    if config.num_classes < classes:
        raise ValueError(f"num_classes={config.num_classes} is too few: the data have {classes} classes")
    if config.channels not in (1, 3):
        raise ValueError(
            f"channels={config.channels} cannot be filled from images: use 1 (grey) or 3 (red, green, blue)"
        )
    height, width = _check_size(getattr(config, "image_size", size))
    config.check_image_size(height, width)
    return config, (height, width)


def _find_preset(name: str) -> AnyConfig | None:
    """The config of a small model or a preset, None for the name of an architecture.

    **Raises:** `ValueError` with the nearest names for an unknown one.
    """
    names = [*SMALL_MODELS, *MODELS, *list_models()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`eqx-vit models` lists them"
        raise ValueError(f"there is no model {name!r}: {hint}")
    if name in SMALL_MODELS:
        return SMALL_MODELS[name]
    return None if name in MODELS else find_preset(name)


def _check_size(size: object) -> tuple[int, int]:
    match DEFAULT_IMAGE_SIZE if size is None else size:
        case (int(height), int(width)) if min(height, width) >= 1:
            return height, width
        case int(side) if side >= 1:
            return side, side
    raise ValueError(f"image_size must be one number of pixels, or height,width; given {size!r}")


def _parse_literal(text: str) -> object:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
