"""The model config of a training run: from `--model`, `--set` and the data."""

import ast
import dataclasses
import difflib
from collections.abc import Mapping, Sequence

from eqx_vit.layers.config import Size
from eqx_vit.models.vit import ViTConfig
from eqx_vit.registry import MODELS, AnyConfig, change_config, find_preset, list_models, make_config

DEFAULT_IMAGE_SIZE = 224  # for models that take any size: what most of their papers train at

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
