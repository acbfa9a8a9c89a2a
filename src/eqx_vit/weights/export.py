"""A model as a folder that timm or transformers opens: `config.json` beside `model.safetensors`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from equinox.nn import State

from eqx_vit.arguments import check_arguments
from eqx_vit.files import write_arrays, write_atomically
from eqx_vit.layers.config import check, pair
from eqx_vit.registry import AnyConfig, AnyModel, find_preset, list_models
from eqx_vit.weights.checkpoints import find_checkpoints, find_differences, find_image_size
from eqx_vit.weights.engine import to_state_dict
from eqx_vit.weights.preprocessing import Preprocessing


@check_arguments
def export(
    folder: str | os.PathLike[str],
    model: AnyModel,
    state: State,
    *,
    target: Literal["timm", "hf"],
    architecture: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a model for timm, or for transformers' `from_pretrained(folder)`.

    timm opens it by `timm.create_model("local-dir:" + folder, pretrained=True)`.

    **Arguments:** `architecture` is the preset of timm's that the model is one of, for `target="timm"` only: number of
    classes, image size and channels may be others. `preprocessing` is what the images need, as far as it is known.

    **Raises:** `ValueError` for a model that the target does not have; `FileExistsError` where the folder holds a model
    already; `ImportError` without safetensors. Nothing is written then.
    """
    path = Path(folder)
    if class_names is not None and len(class_names) != model.config.num_classes:
        raise ValueError(f"{len(class_names)} class_names for a model of {model.config.num_classes} classes")
    if target == "timm":
        description = _describe_for_timm(model.config, architecture, preprocessing, class_names)
    else:
        description = _describe_for_transformers(model.config, class_names)
    arrays = to_state_dict(model, state, target)
    for name in ("config.json", "model.safetensors"):
        if (path / name).exists():
            raise FileExistsError(f"{path / name} exists already: give another folder")
    path.mkdir(parents=True, exist_ok=True)
    write_arrays(path / "model.safetensors", arrays, {"format": "pt"})
    write_atomically(path / "config.json", json.dumps(description, indent=2).encode())


def _describe_for_timm(
    config: AnyConfig, architecture: str | None, preprocessing: Preprocessing | None, class_names: Sequence[str] | None
) -> dict[str, object]:
    if architecture not in list_models():
        raise ValueError(
            f"target='timm' needs architecture=, the preset that the model is one of; given {architecture!r}"
        )
    preset = find_preset(architecture)
    different = find_differences(config, preset)
    check(not different, f"the model is not a {architecture}: it differs in {', '.join(different)}")
    own_size, preset_size = find_image_size(config), find_image_size(preset)
    arguments: dict[str, object] = {}
    if own_size is not None and own_size != preset_size:
        arguments["img_size"] = list(pair(own_size))
    if config.channels != preset.channels:
        arguments["in_chans"] = config.channels
    size = pair(own_size or (preprocessing.image_size if preprocessing else 224))
    expected: dict[str, object] = {"num_classes": config.num_classes, "input_size": [config.channels, *size]}
    if own_size is not None:
        expected["fixed_input_size"] = True  # else timm builds CrossViT for its own default of 224
    if preprocessing:
        expected |= {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop,
        }
    description: dict[str, object] = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "pretrained_cfg": expected,
    }
    if arguments:
        description["model_args"] = arguments
    if class_names:
        description["label_names"] = list(class_names)
    return description


def _describe_for_transformers(config: AnyConfig, class_names: Sequence[str] | None) -> dict[str, object]:
    describe = find_checkpoints(config).describe
    if describe is None:
        raise ValueError(f"transformers has no {type(config).__name__.removesuffix('Config')}")
    names = class_names or [f"LABEL_{index}" for index in range(config.num_classes)]
    labels = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    common = {"num_channels": config.channels, "dtype": "float32"}
    return {**describe(config), **(labels if config.num_classes else {}), **common}
