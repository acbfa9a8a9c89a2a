"""The one table of architectures, and what is looked up in it: presets by name, configs from plain data."""

import dataclasses
import difflib
import fnmatch
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from eqx_vit.model import ImageModel, ImageModelConfig
from eqx_vit.models.source import Source

AnyModel = ImageModel[Any, Any]
AnyConfig = ImageModelConfig[Any]
Config = TypeVar("Config", bound=AnyConfig)


@dataclass(frozen=True)
class Architecture:
    """What the library knows of one architecture.

    `checkpoints` says where its `weights.Checkpoints` are, as "module:attribute": they are imported only when weights
    are read or written, since those of all architectures would more than double the time that an import takes.
    """

    model: type[AnyModel]
    config: type[AnyConfig]
    presets: Mapping[str, AnyConfig]
    weights: Mapping[str, Source]
    checkpoints: str


def _read_file(file: str, model: str, prefix: str = "") -> Architecture:
    """What a file of `models/` says of a model; of several in one file, `prefix` tells their tables apart."""
    module = importlib.import_module(f"eqx_vit.models.{file}")
    presets, weights = getattr(module, f"{prefix}PRESETS"), getattr(module, f"{prefix}WEIGHTS")
    config = getattr(module, f"{model}Config")
    return Architecture(getattr(module, model), config, presets, weights, f"{file}:{prefix}CHECKPOINTS")


MODELS: dict[str, Architecture] = {
    "vit": _read_file("vit", "ViT"),
    "simple_vit": _read_file("simple_vit", "SimpleViT"),
    "cait": _read_file("cait", "CaiT"),
    "crossformer": _read_file("crossformer", "CrossFormer"),
    "cross_vit": _read_file("cross_vit", "CrossViT"),
    "cvt": _read_file("cvt", "CvT"),
    "deepvit": _read_file("deepvit", "DeepViT"),
    "levit": _read_file("levit", "LeViT"),
    "nest": _read_file("nest", "NesT"),
    "parallel_vit": _read_file("parallel_vit", "ParallelViT"),
    "parallel_vit_hmlp": _read_file("parallel_vit", "ParallelViTHMLP", prefix="HMLP_"),
    "patch_merger": _read_file("patch_merger", "PatchMergerViT"),
    "pit": _read_file("pit", "PiT"),
    "scalable_vit": _read_file("scalable_vit", "ScalableViT"),
    "t2t": _read_file("t2t", "T2TViT"),
    "twins_svt": _read_file("twins_svt", "TwinsSVT"),
    "vit_small_datasets": _read_file("vit_small_datasets", "SmallDatasetViT"),
    "region_vit": _read_file("region_vit", "RegionViT"),
}


def find_architecture(config: object) -> Architecture:
    """The row of `MODELS` that a config belongs to.

    **Raises:** `ValueError` for an object that is not a config of this library.
    """
    for row in MODELS.values():
        if type(config) is row.config:
            return row
    known = ", ".join(row.config.__name__ for row in MODELS.values())
    raise ValueError(f"{config!r} is not a config of this library: use one of {known}")


def list_models(pattern: str = "*") -> list[str]:
    """The names of the presets that match a shell pattern such as `"cait*"`."""
    return [name for row in MODELS.values() for name in row.presets if fnmatch.fnmatchcase(name, pattern)]


def find_preset(name: str) -> AnyConfig:
    """The config of a preset.

    **Raises:** `ValueError` with the nearest names for an unknown one.
    """
    for row in MODELS.values():
        if name in row.presets:
            return row.presets[name]
    near = difflib.get_close_matches(name, list_models(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "eqx_vit.list_models() names them all"
    raise ValueError(f"there is no preset {name!r}: {hint}")


def change_config(config: Config, changes: Mapping[str, object]) -> Config:
    """The config with some fields replaced; a second head has the classes of the first unless `changes` says so.

    **Raises:** `ValueError` for a field that it does not have, with those that it has, and for a wrong value.
    """
    check_field_names(find_architecture(config).config, changes)
    if "num_classes" in changes and getattr(config, "num_distill_classes", None):
        changes = {"num_distill_classes": changes["num_classes"] or None, **changes}
    return dataclasses.replace(config, **changes)


def check_field_names(config: type[AnyConfig], given: Iterable[str]) -> None:
    """Raise `ValueError` for the first name that is not a field of the config, with the fields that there are."""
    names = [field.name for field in dataclasses.fields(config)]
    unknown = [name for name in given if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{config.__name__} has no field {unknown[0]!r}: {hint}its fields are {', '.join(names)}")


def config_to_json(config: AnyConfig) -> dict[str, Any]:
    """A config as plain data: the name of its architecture and its fields.

    **Raises:** `ValueError` for an object that is not a config of this library.
    """
    row = find_architecture(config)
    name = next(name for name, other in MODELS.items() if other is row)
    return {"architecture": name, "config": dataclasses.asdict(config)}


def config_from_json(plain: object) -> AnyConfig:
    """The config that `config_to_json` wrote.

    **Raises:** `ValueError` for an unknown architecture, field or value.
    """
    match plain:
        case {"architecture": name, "config": dict(fields)}:
            if name not in MODELS:
                raise ValueError(f"there is no architecture {name!r}: use one of {', '.join(MODELS)}")
            return make_config(name, fields)
    raise ValueError('expected {"architecture": ..., "config": {...}}')


def make_config(architecture: str, fields: Mapping[str, object]) -> AnyConfig:
    """The config of an architecture with some fields given, the others at their defaults.

    **Raises:** `ValueError` for unknown fields, missing ones and wrong values.
    """
    config = MODELS[architecture].config
    check_field_names(config, fields)
    required = [field.name for field in dataclasses.fields(config) if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in fields]
    if missing:
        raise ValueError(f"{config.__name__} needs {', '.join(missing)}")
    return config(**cast(Mapping[str, Any], fields))
