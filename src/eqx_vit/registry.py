"""The one table of architectures, and what is looked up in it: presets by name, configs from plain data."""

import dataclasses
import difflib
import fnmatch
import functools
import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from eqx_vit.arguments import check_arguments
from eqx_vit.layers.config import no_type_check, shorten
from eqx_vit.model import ImageModel, ImageModelConfig
from eqx_vit.models.source import Source
from eqx_vit.preset_names import find_near_names

AnyModel = ImageModel[Any, Any]
AnyConfig = ImageModelConfig[Any]
Config = TypeVar("Config", bound=AnyConfig)


@no_type_check  # `register` says in a sentence what is wrong
@dataclass(frozen=True)
class Architecture:
    """What the library knows of one architecture.

    **Attributes:**

    - `name`, which stands in files.
    - `model`: the model's class, or a function, called as `model(config, key=key)`.
    - `config`: a subclass of `ImageModelConfig`, or of another architecture's config; that of this architecture alone.
    - `presets`: configs by name; `weights`: where released weights of some of them are.
    - `checkpoints`: an `eqx_vit.weights.checkpoints.Checkpoints`, for `load_state_dict` and `to_state_dict`; or where
      it is, as "module:attribute": those of all architectures would more than double the time that an import takes.
      There it may be a function of the config that gives them.
    """

    name: str
    model: Callable[..., AnyModel]
    config: type[AnyConfig]
    presets: Mapping[str, AnyConfig] = field(default_factory=dict)
    weights: Mapping[str, Source] = field(default_factory=dict)
    checkpoints: object = None

    @property
    def title(self) -> str:
        """The name that people read, as that of the config without its ending."""
        return self.config.__name__.removesuffix("Config")


def _read_file(name: str, file: str, model: str, prefix: str = "") -> Architecture:
    """What a file of `models/` says of a model; of several in one file, `prefix` tells their tables apart."""
    module = importlib.import_module(f"eqx_vit.models.{file}")
    presets, weights = getattr(module, f"{prefix}PRESETS"), getattr(module, f"{prefix}WEIGHTS")
    checkpoints = f"eqx_vit.weights.{file}:{prefix}CHECKPOINTS"
    return Architecture(name, getattr(module, model), getattr(module, f"{model}Config"), presets, weights, checkpoints)


OWN = (
    _read_file("vit", "vit", "ViT"),
    _read_file("dinov3", "dinov3", "DINOv3"),
    _read_file("simple_vit", "simple_vit", "SimpleViT"),
    _read_file("cait", "cait", "CaiT"),
    _read_file("crossformer", "crossformer", "CrossFormer"),
    _read_file("cross_vit", "cross_vit", "CrossViT"),
    _read_file("cvt", "cvt", "CvT"),
    _read_file("deepvit", "deepvit", "DeepViT"),
    _read_file("levit", "levit", "LeViT"),
    _read_file("nest", "nest", "NesT"),
    _read_file("parallel_vit", "parallel_vit", "ParallelViT"),
    _read_file("parallel_vit_hmlp", "parallel_vit", "ParallelViTHMLP", prefix="HMLP_"),
    _read_file("patch_merger", "patch_merger", "PatchMergerViT"),
    _read_file("pit", "pit", "PiT"),
    _read_file("scalable_vit", "scalable_vit", "ScalableViT"),
    _read_file("t2t", "t2t", "T2TViT"),
    _read_file("twins_svt", "twins_svt", "TwinsSVT"),
    _read_file("vit_small_datasets", "vit_small_datasets", "SmallDatasetViT"),
    _read_file("region_vit", "region_vit", "RegionViT"),
)
MODELS: dict[str, Architecture] = {row.name: row for row in OWN}
ENTRY_POINTS = "eqx_vit.architectures"


@check_arguments
def register(architecture: Architecture) -> Architecture:
    """Make an architecture of your own known: to `create`, `list_models`, `load`, `transform`, the Flax API and the
    command line, which imports your file with `--import`.

    A package names the module that calls this, or the architecture itself, as an entry point of the group
    `eqx_vit.architectures`. Registered again, as a notebook does, an architecture replaces itself.

    **Raises:** `ValueError` for a name, a config class or the name of a preset that another architecture has, and for
    what is no config.
    """
    name, config = architecture.name, architecture.config
    if not (isinstance(config, type) and issubclass(config, ImageModelConfig)):
        raise ValueError(
            f"the config of architecture {name!r} must be a subclass of eqx_vit.ImageModelConfig, given "
            f"{shorten(config)}"
        )
    before = MODELS.get(name)
    if before and (before in OWN or _origin(before.config) != _origin(config)):
        raise ValueError(f"there is an architecture {name!r} already, of {before.config.__name__}: choose another name")
    others = [row for row in MODELS.values() if row.name != name]
    for row in others:
        if row.config is config:
            raise ValueError(
                f"{config.__name__} is the config of architecture {row.name!r}: give {name!r} one of its own, "
                f"class {name.title().replace('_', '')}Config({config.__name__})"
            )
    taken = [preset for row in others for preset in row.presets if preset in architecture.presets]
    if taken:
        raise ValueError(f"there is a preset {taken[0]!r} already: choose another name")
    wrong = [preset for preset, value in architecture.presets.items() if type(value) is not config]
    if wrong:
        raise ValueError(f"preset {wrong[0]!r} of architecture {name!r} must be a {config.__name__}")
    MODELS[name] = architecture
    return architecture


def _origin(config: type[AnyConfig]) -> tuple[str, str]:
    return config.__module__, config.__qualname__


@functools.cache
def load_entry_points() -> None:
    """Import what installed packages register. Done once, when a name is not known or all are listed."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            found = entry.load()
            if isinstance(found, Architecture):
                register(found)
        except Exception as error:  # whatever is wrong with another package, this one works
            warnings.warn(f"the architectures of {entry.value} are not there: {error}", stacklevel=2)


def find_architecture(config: object) -> Architecture:
    """The row of `MODELS` that a config belongs to.

    **Raises:** `ValueError` for an object that is not a config of this library.
    """
    for row in MODELS.values():
        if type(config) is row.config:
            return row
    known = ", ".join(row.config.__name__ for row in MODELS.values())
    if isinstance(config, ImageModelConfig):
        raise ValueError(
            f"{type(config).__name__} belongs to no architecture: eqx_vit.register(eqx_vit.Architecture(name, model, "
            f"{type(config).__name__})) makes it known"
        )
    raise ValueError(f"{shorten(config)} is not a config of this library: use one of {known}")


@check_arguments
def list_models(pattern: str = "*") -> list[str]:
    """The names of the presets that match a shell pattern such as `"cait*"`."""
    load_entry_points()
    return [name for row in MODELS.values() for name in row.presets if fnmatch.fnmatchcase(name, pattern)]


def find_preset(name: str) -> AnyConfig:
    """The config of a preset.

    **Raises:** `ValueError` with the nearest names for an unknown one.
    """
    load_entry_points()
    for row in MODELS.values():
        if name in row.presets:
            return row.presets[name]
    near = find_near_names(name, list_models())
    hint = f"did you mean {', '.join(near)}?" if near else "eqx_vit.list_models() names them all"
    raise ValueError(f"there is no preset {shorten(name)}: {hint}")


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
        raise ValueError(
            f"{config.__name__} has no field {shorten(unknown[0])}: {hint}its fields are {', '.join(names)}"
        )


def config_to_json(config: AnyConfig) -> dict[str, Any]:
    """A config as plain data: the name of its architecture and its fields.

    **Raises:** `ValueError` for an object that is not a config of this library.
    """
    row = find_architecture(config)
    plain = {"architecture": row.name, "config": dataclasses.asdict(config)}
    return plain if row in OWN else plain | {"import": _find_import(row.config)}


def _find_import(config: type[AnyConfig]) -> str:
    """The module that has a config, or the name of its file, where that was run as a program."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return config.__module__ if config.__module__ != "__main__" else os.path.basename(main or "__main__")


def config_from_json(plain: object) -> AnyConfig:
    """The config that `config_to_json` wrote.

    **Raises:** `ValueError` for an unknown architecture, field or value.
    """
    match plain:
        case {"architecture": str(name), "config": dict(fields)}:
            load_entry_points()
            module = cast(Mapping[str, object], plain).get("import")
            if name not in MODELS and isinstance(module, str):
                raise ValueError(
                    f"the architecture {shorten(name)} is registered by {shorten(module)}, which is not imported: "
                    f"import it first, or give eqx-vit --import {shorten(module)}"
                )
            if name not in MODELS:
                raise ValueError(f"there is no architecture {shorten(name)}: use one of {', '.join(MODELS)}")
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
