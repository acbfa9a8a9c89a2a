"""From names and files to models."""

import dataclasses
import difflib
import fnmatch
from typing import Any

import equinox as eqx

from eqx_vit.models import MODELS
from eqx_vit.surface import architecture, build


def create(config: Any, *, key: Any, **changes: Any) -> tuple[eqx.Module, eqx.nn.State]:
    """A freshly initialised model, in training mode, and its BatchNorm state (empty for models without).

    **Arguments:** `config` is a preset's name (see `list_models`) or a config; `changes` replace fields of it:
    `create("vit_tiny_patch16_224", key=key, num_classes=10)`.

    **Raises:** `ValueError` for an unknown name, field or value, or what is no random key, each with what would be
    right.
    """
    return build(changed(preset(config) if isinstance(config, str) else config, changes), key)


def preset(name: str) -> Any:
    """The config of a preset.

    **Raises:** `ValueError` with the nearest names for an unknown one.
    """
    presets = {name: config for row in MODELS.values() for name, config in row.presets.items()}
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "eqx_vit.list_models() names them all"
        raise ValueError(f"there is no preset {name!r}: {hint}")
    return presets[name]


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """The config with some fields replaced.

    **Raises:** `ValueError` for a field that it does not have, with those that it has.
    """
    architecture(config)
    names = [field.name for field in dataclasses.fields(config)]
    unknown = [name for name in changes if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{type(config).__name__} has no field {unknown[0]!r}: {hint}its fields are {', '.join(names)}"
        )
    return dataclasses.replace(config, **changes)


def list_models(pattern: str = "*") -> list[str]:
    """The names of the presets that match a shell pattern such as `"cait*"`."""
    return [name for row in MODELS.values() for name in row.presets if fnmatch.fnmatchcase(name, pattern)]
