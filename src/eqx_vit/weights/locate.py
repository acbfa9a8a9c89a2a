"""Which file the weights of a model are in, in whose layout, and what that model was made for."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eqx_vit.models.source import Source
from eqx_vit.registry import MODELS, AnyConfig
from eqx_vit.weights.checkpoints import find_checkpoints, find_differences
from eqx_vit.weights.hub import fetch, is_remote

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A weights file, the layout of its names, and the fields of the config that it is for, as far as it says them."""

    path: Path
    layout: str
    model_fields: Mapping[str, object] = field(default_factory=dict)


def locate_checkpoint(config: AnyConfig, name: str | None, pretrained: PathLike | Source | bool) -> Checkpoint:
    """The checkpoint that `create`'s `pretrained` means, downloaded if need be.

    **Raises:** `ValueError` where nothing is released or the layout is not known, and for a checkpoint of another
    model; `FileNotFoundError` for a file that is neither here nor can be downloaded.
    """
    if isinstance(pretrained, bool):
        pretrained = find_source(name)
    if isinstance(pretrained, Source):
        model_fields = {"num_classes": pretrained.classes}
        path = fetch(_hub_place(pretrained), pretrained.file, sha256=pretrained.sha256)
        return Checkpoint(path=path, layout=pretrained.layout, model_fields=model_fields)
    place = os.fspath(pretrained)
    path = fetch(place, Path(place).name if place.startswith("http") else "model.safetensors")
    described = _read_description_beside(place)
    if described is None:
        return Checkpoint(path=path, layout=_find_layout(config, name, path))
    layout, model_fields = read_model_fields(described, place)
    if layout == "timm":
        _check_same_model(config, described["architecture"], place)
    else:
        model_fields |= find_checkpoints(config).read(described)
    return Checkpoint(path=path, layout=layout, model_fields=model_fields)


def find_source(name: str | None) -> Source:
    """Where the released weights of a preset are.

    **Raises:** `ValueError` for a config without a name, and a preset without released weights.
    """
    sources = {name: source for row in MODELS.values() for name, source in row.weights.items()}
    if name is None:
        raise ValueError("pretrained=True needs the name of a preset, such as 'vit_base_patch16_224'")
    if name not in sources:
        family = next(row for row in MODELS.values() if name in row.presets)
        others = f": released are {', '.join(family.weights)}" if family.weights else ", nor of others of its kind"
        raise ValueError(f"no weights of {name} are released{others}; give a file, a folder or hf-hub:owner/name")
    return sources[name]


def read_description(place: str) -> dict[str, Any]:
    """The `config.json` of a repository or folder.

    **Raises:** `FileNotFoundError`; `ValueError` where it is not a JSON object.
    """
    path = fetch(place, "config.json")
    try:
        described = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise ValueError(f"{path} is not a JSON object")
    return described


def read_model_fields(described: Mapping[str, Any], place: str) -> tuple[str, dict[str, Any]]:
    """(layout, fields of the config) that a `config.json` of timm or transformers gives.

    **Raises:** `ValueError` for a file that is neither.
    """
    match described:
        case {"architecture": str()}:
            plain = described.get("pretrained_cfg", described)
            arguments = described.get("model_args", {})
            channels, *size = plain.get("input_size", (None,))
            values = {
                "num_classes": described.get("num_classes", plain.get("num_classes")),
                "image_size": arguments.get("img_size", size or None),
                "channels": arguments.get("in_chans", channels),
            }
            layout = "timm"
        case {"model_type": str()}:
            labels = described.get("id2label")
            values = {
                "num_classes": described.get("num_labels") if labels is None else len(labels),
                "image_size": described.get("image_size"),
                "channels": described.get("num_channels"),
                "norm_eps": described.get("layer_norm_eps"),
            }
            layout = "hf"
        case _:
            raise ValueError(f"config.json of {place} is neither timm's (architecture) nor transformers' (model_type)")
    return layout, {name: _as_config_value(value) for name, value in values.items() if value is not None}


def read_class_names(name: str, classes: int) -> list[str]:
    """The names of the classes of a preset's released weights: those in its repository, or else numbers.

    **Raises:** `ValueError` for a preset without released weights.
    """
    try:
        described = _read_description_beside(_hub_place(find_source(name))) or {}
    except FileNotFoundError:  # the weights alone are in the cache
        described = {}
    labels = described.get("label_names") or list(described.get("id2label", {}).values())
    return [str(label) for label in labels] if len(labels) == classes else [f"class {i}" for i in range(classes)]


def _hub_place(source: Source) -> str:
    return source.hub if is_remote(source.hub) or Path(source.hub).is_absolute() else f"hf-hub:{source.hub}"


def _read_description_beside(place: str) -> dict[str, Any] | None:
    """The `config.json` beside the weights: repositories must have one, folders may."""
    if place.startswith("hf-hub:") or (Path(place).expanduser() / "config.json").exists():
        return read_description(place)
    return None


def _find_layout(config: AnyConfig, name: str | None, path: Path) -> str:
    """The layout of a file that comes alone: that of the preset's released weights; Google's alone are .npz."""
    sources = {preset: source for row in MODELS.values() for preset, source in row.weights.items()}
    if path.suffix == ".npz" and "flax" in find_checkpoints(config).names:
        return "flax"
    if name not in sources:
        raise ValueError(
            f"the layout of {path} is not known: give pretrained=eqx_vit.Source(hub={str(path.absolute())!r}, "
            f"layout=...) with one of {', '.join(find_checkpoints(config).names)}"
        )
    return sources[name].layout


def _check_same_model(config: AnyConfig, architecture: str, place: str) -> None:
    for row in MODELS.values():
        if architecture in row.presets:
            different = find_differences(config, row.presets[architecture])
            if different:
                raise ValueError(f"{place} is a {architecture}, which differs from the requested model in {different}")


def _as_config_value(value: object) -> object:
    """A size as configs have it: one number for a square; other values as they are."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value
