"""The config that a run trains: from `--model`, `--set` and the data."""

import ast
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from eqx_vit.create import changed, config_of, list_models, preset
from eqx_vit.layers.config import pair
from eqx_vit.models import MODELS
from eqx_vit.models.vit import ViTConfig

ANY_SIZE = 224  # for configs without an image size: what most of their papers train at

# The models of a run that names none: small enough for a laptop. No paper's presets, hence not in MODELS.
SMALL: dict[str, Any] = {
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


def parse_changes(assignments: Sequence[str]) -> dict[str, Any]:
    """`["dim=64", "depth=2,3"]` as `{"dim": 64, "depth": (2, 3)}`: Python's literals, `none`, `true`, `false`, or text.

    **Raises:** `ValueError` for what is no `field=value`, or a field given twice.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"--set takes field=value, such as dim=64; given {assignment!r}")
        if name in changes:
            raise ValueError(f"--set gives {name} twice")
        changes[name] = _literal(text.strip())
    return changes


def model_config(
    name: str, changes: dict[str, Any], image_size: int | tuple[int, int] | None, classes: int
) -> tuple[Any, tuple[int, int]]:
    """The config of a model for data of so many classes, and the (height, width) of its images.

    `num_classes` follows the data unless `changes` gives it; `channels` stays the model's own (the data follow).

    **Raises:** `ValueError` for an unknown model, field or value, with what would be right.
    """
    changes = dict(changes)
    fields = _field_names(name)
    sized = "image_size" in fields
    if image_size is not None and changes.get("image_size", image_size) != image_size:
        raise ValueError(f"--image-size {image_size} contradicts --set image_size={changes['image_size']}: give one")
    if sized and image_size is not None:
        changes["image_size"] = image_size
    if not sized:  # such a config takes any size, and then the size belongs to the data alone
        image_size = changes.pop("image_size", image_size)
    changes.setdefault("num_classes", classes)
    if "num_distill_classes" in fields and "num_distill_classes" not in changes and name not in MODELS:
        distilled = preset(name).num_distill_classes is not None
        changes["num_distill_classes"] = changes["num_classes"] if distilled else None
    config = config_of(name, changes) if name in MODELS else changed(base_config(name), changes)
    if config.num_classes < classes:
        raise ValueError(f"num_classes={config.num_classes} is too few: the data have {classes} classes")
    if config.channels not in (1, 3):
        raise ValueError(
            f"channels={config.channels} cannot be filled from images: use 1 (grey) or 3 (red, green, blue)"
        )
    size = pair(config.image_size) if sized else pair(_checked_size(image_size or ANY_SIZE))
    config.check_image_size(*size)
    return config, size


def base_config(name: str) -> Any:
    """The config of a preset, or of a small model of this file.

    **Raises:** `ValueError` with the nearest names for an unknown one.
    """
    return SMALL[name] if name in SMALL else preset(name)


def check_model_name(name: str) -> None:
    """Raise `ValueError`, with the nearest names, unless `name` is a preset, an architecture or a small model."""
    names = [*SMALL, *MODELS, *list_models()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`eqx-vit models` lists them"
        raise ValueError(f"there is no model {name!r}: {hint}")


def _field_names(name: str) -> list[str]:
    check_model_name(name)
    config_class = MODELS[name].config if name in MODELS else type(base_config(name))
    return [field.name for field in dataclasses.fields(config_class)]


def _checked_size(size: Any) -> int | tuple[int, int]:
    numbers = size if isinstance(size, tuple) else (size,)
    if len(numbers) > 2 or not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise ValueError(f"image_size must be one number of pixels, or height,width; given {size!r}")
    return size


def _literal(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
