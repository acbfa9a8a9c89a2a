"""From names and files to models."""

import dataclasses
import difflib
import fnmatch
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_vit.files import read_arrays, write_arrays
from eqx_vit.models import MODELS
from eqx_vit.models.source import Source
from eqx_vit.paths import named_leaves, named_statistics, with_named_leaves, with_named_statistics
from eqx_vit.surface import architecture, build, checked_key, with_fields

METADATA = "eqx_vit.model"  # one entry alone: safetensors writes several in any order, and equal models are equal files


def create(
    config: Any, *, key: Any, pretrained: bool | str | os.PathLike[str] | Source = False, **changes: Any
) -> tuple[eqx.Module, eqx.nn.State]:
    """A freshly initialised or pretrained model, in training mode, and its BatchNorm state (empty without BatchNorm).

    **Arguments:**

    - `config` is a preset's name (see `list_models`) or a config; `changes` replace fields of it:
        `create("vit_tiny_patch16_224", key=key, num_classes=10)`.
    - `pretrained`: True for the weights released under the preset's name; `"hf-hub:owner/name"` or a folder, with
        timm's or transformers' `config.json`; a `.safetensors` or `.npz` file, in the layout of the preset's released
        weights (`.npz`: Google's); or a `Source`, which says all of it. Changes of `num_classes`, `image_size` and
        `channels` then adapt the weights as `eqx_vit.weights.load_state_dict` does: a fresh head, resized position
        tables, adapted kernels.

    **Raises:** `ValueError` for an unknown name, field or value, or what is no random key, each with what would be
    right; for weights that do not fit, with every name that does not. `FileNotFoundError` for weights that are neither
    here nor can be downloaded.
    """
    checked_key(key)
    name = config if isinstance(config, str) else None
    plain = changed(preset(config) if name else config, changes)
    return build(plain, key) if pretrained is False else _pretrained(plain, name, pretrained, changes, key)


def _pretrained(
    config: Any, name: str | None, pretrained: Any, changes: dict[str, Any], key: Any
) -> tuple[eqx.Module, eqx.nn.State]:
    """The model of the checkpoint, loaded, and made into that of `config`."""
    # Not at the top: the name maps of all architectures would more than double the time that an import takes.
    from eqx_vit.weights.checkpoint import find
    from eqx_vit.weights.engine import load_state_dict
    from eqx_vit.weights.read import read_weights

    original = config if name is None else preset(name)
    requests = {name: value for name, value in changes.items() if name in ("num_classes", "image_size", "channels")}
    checkpoint = find(config, name, pretrained)
    own = [field.name for field in dataclasses.fields(config)]
    sizes = {field: getattr(original, field) for field in requests}
    sizes |= {field: value for field, value in checkpoint.made_for.items() if field in own}
    model_key, head_key = jax.random.split(key)
    model, state = build(with_fields(config, sizes), model_key)
    return load_state_dict(
        model, state, read_weights(checkpoint.path), source=checkpoint.layout, key=head_key, **requests
    )


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
    check_field_names(architecture(config).config, list(changes))
    return with_fields(config, changes)


def check_field_names(config_class: Any, given: list[str]) -> None:
    """Raise `ValueError` for the first name that is no field of the config, with the fields that there are."""
    names = [field.name for field in dataclasses.fields(config_class)]
    unknown = [name for name in given if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{config_class.__name__} has no field {unknown[0]!r}: {hint}its fields are {', '.join(names)}"
        )


def list_models(pattern: str = "*") -> list[str]:
    """The names of the presets that match a shell pattern such as `"cait*"`."""
    return [name for row in MODELS.values() for name in row.presets if fnmatch.fnmatchcase(name, pattern)]


def save(path: str | os.PathLike[str], model: Any, state: Any) -> None:
    """Write a model and its state as one safetensors file, which `load` reads back without anything else.

    The arrays have the names of `eqx_vit.paths` and keep their dtypes; BatchNorm's statistics and the config are
    inside. The file appears whole or not at all.

    **Arguments:** `model, state` as `create` returned them or training left them.

    **Raises:** `ValueError` for a model that is not of this library, `ImportError` where safetensors is missing.
    """
    arrays = named_leaves(model) | named_statistics(model, state)
    write_arrays(Path(path), arrays, {METADATA: json.dumps(config_to_json(model.config))})


def load(path: str | os.PathLike[str]) -> tuple[Any, eqx.nn.State]:
    """The model, in training mode, and the state that `save` wrote; each array in the dtype that it was saved in.

    **Raises:** `ValueError` for a damaged file, one that `save` did not write, and arrays that do not fit the config
    (with every missing, unexpected or mis-shaped name); `FileNotFoundError`.
    """
    arrays, metadata = read_arrays(Path(path))
    if METADATA not in metadata:
        raise ValueError(
            f"{path} was not written by eqx_vit.save: released weights load with eqx_vit.weights.load_state_dict"
        )
    try:
        config = config_from_json(json.loads(metadata[METADATA]))
    except ValueError as error:
        raise ValueError(f"the config inside {path} is not understood: {error}") from error
    model, state = eqx.filter_eval_shape(build, config, jax.random.key(0))
    wanted = named_leaves(model) | named_statistics(model, state)
    problems = _misfits(wanted, arrays)
    if problems:
        raise ValueError(f"{path} does not fit its own config: " + "; ".join(problems))
    loaded = {name: jnp.asarray(array) for name, array in arrays.items()}
    own = set(named_leaves(model))
    model = with_named_leaves(model, {name: array for name, array in loaded.items() if name in own})
    statistics = {name: array for name, array in loaded.items() if name not in own}
    return model, with_named_statistics(model, state, statistics)


def config_to_json(config: Any) -> dict[str, Any]:
    """A config as plain data: the name of its architecture and its fields.

    **Raises:** `ValueError` for an object that is no config of this library.
    """
    row = architecture(config)
    name = next(name for name, other in MODELS.items() if other is row)
    return {"architecture": name, "config": dataclasses.asdict(config)}


def config_from_json(plain: Any) -> Any:
    """The config that `config_to_json` wrote.

    **Raises:** `ValueError` for an unknown architecture, field or value.
    """
    if not (isinstance(plain, dict) and {"architecture", "config"} <= set(plain) and isinstance(plain["config"], dict)):
        raise ValueError('expected {"architecture": ..., "config": {...}}')
    if plain["architecture"] not in MODELS:
        raise ValueError(f"there is no architecture {plain['architecture']!r}: use one of {', '.join(MODELS)}")
    return config_of(plain["architecture"], plain["config"])


def config_of(architecture_name: str, fields: dict[str, Any]) -> Any:
    """The config of an architecture with some fields given, the others at their defaults.

    **Raises:** `ValueError` for unknown fields, missing ones and wrong values.
    """
    config_class = MODELS[architecture_name].config
    check_field_names(config_class, list(fields))
    required = [field.name for field in dataclasses.fields(config_class) if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in fields]
    if missing:
        raise ValueError(f"{config_class.__name__} needs {', '.join(missing)}")
    return config_class(**fields)


def _misfits(wanted: dict[str, Any], given: dict[str, np.ndarray]) -> list[str]:
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    for name, array in given.items():
        if name in wanted and array.shape != wanted[name].shape:
            problems.append(f"{name} has shape {array.shape}, not {wanted[name].shape}")
        elif name in wanted and not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"{name} has dtype {array.dtype}, which is no floating-point type")
    return problems
