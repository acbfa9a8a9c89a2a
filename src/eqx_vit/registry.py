"""The one table of architectures, and what is looked up in it: presets by name, configs from plain data."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from eqx_vit.layers.config import no_type_check
from eqx_vit.model import ImageModel, ImageModelConfig
from eqx_vit.models import (
    cait,
    cross_vit,
    crossformer,
    cvt,
    deepvit,
    levit,
    nest,
    parallel_vit,
    patch_merger,
    pit,
    region_vit,
    scalable_vit,
    simple_vit,
    t2t,
    twins_svt,
    vit,
    vit_small_datasets,
)
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


class ModelFile(Protocol):
    """A module of `models/`, as far as the table reads it."""

    @property
    def PRESETS(self) -> Mapping[str, AnyConfig]: ...
    @property
    def WEIGHTS(self) -> Mapping[str, Source]: ...


@no_type_check
def _row(file: ModelFile, model: type[AnyModel], config: type[AnyConfig]) -> Architecture:
    stem = model.__module__.rpartition(".")[2]
    return Architecture(model, config, file.PRESETS, file.WEIGHTS, f"{stem}:CHECKPOINTS")


MODELS: dict[str, Architecture] = {
    "vit": _row(vit, vit.ViT, vit.ViTConfig),
    "simple_vit": _row(simple_vit, simple_vit.SimpleViT, simple_vit.SimpleViTConfig),
    "cait": _row(cait, cait.CaiT, cait.CaiTConfig),
    "crossformer": _row(crossformer, crossformer.CrossFormer, crossformer.CrossFormerConfig),
    "cross_vit": _row(cross_vit, cross_vit.CrossViT, cross_vit.CrossViTConfig),
    "cvt": _row(cvt, cvt.CvT, cvt.CvTConfig),
    "deepvit": _row(deepvit, deepvit.DeepViT, deepvit.DeepViTConfig),
    "levit": _row(levit, levit.LeViT, levit.LeViTConfig),
    "nest": _row(nest, nest.NesT, nest.NesTConfig),
    "parallel_vit": _row(parallel_vit, parallel_vit.ParallelViT, parallel_vit.ParallelViTConfig),
    "parallel_vit_hmlp": Architecture(
        parallel_vit.ParallelViTHMLP,
        parallel_vit.ParallelViTHMLPConfig,
        parallel_vit.HMLP_PRESETS,
        parallel_vit.HMLP_WEIGHTS,
        "parallel_vit:HMLP_CHECKPOINTS",
    ),
    "patch_merger": _row(patch_merger, patch_merger.PatchMergerViT, patch_merger.PatchMergerViTConfig),
    "pit": _row(pit, pit.PiT, pit.PiTConfig),
    "scalable_vit": _row(scalable_vit, scalable_vit.ScalableViT, scalable_vit.ScalableViTConfig),
    "t2t": _row(t2t, t2t.T2TViT, t2t.T2TViTConfig),
    "twins_svt": _row(twins_svt, twins_svt.TwinsSVT, twins_svt.TwinsSVTConfig),
    "vit_small_datasets": _row(
        vit_small_datasets, vit_small_datasets.SmallDatasetViT, vit_small_datasets.SmallDatasetViTConfig
    ),
    "region_vit": _row(region_vit, region_vit.RegionViT, region_vit.RegionViTConfig),
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
