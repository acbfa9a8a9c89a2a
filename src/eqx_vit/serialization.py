"""A model with its config and state as one safetensors file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from equinox.nn import State

from eqx_vit.create import make_skeleton
from eqx_vit.files import read_arrays, write_arrays
from eqx_vit.paths import Leaf, named_leaves, named_statistics, with_named_leaves, with_named_statistics
from eqx_vit.registry import AnyModel, config_from_json, config_to_json
from eqx_vit.surgery import find_exchanged_arrays

METADATA = "eqx_vit.model"  # one entry alone: safetensors writes several in any order, and equal models are equal files


def save(path: str | os.PathLike[str], model: AnyModel, state: State) -> None:
    """Write a model and its state as one safetensors file, which `load` reads back without anything else.

    The arrays have the names of `eqx_vit.paths` and keep their dtypes; BatchNorm's statistics and the config are
    inside. The code of the model is not: in place of a part of your own whose arrays have the names and shapes of the
    original's, `load` puts the original. The file appears whole or not at all.

    **Arguments:** `model, state` as `create` returned them or training left them.

    **Raises:** `ValueError` for a model that is not of this library, or that `load` could not make from its config,
    since a part with other arrays was put into it; `ImportError` where safetensors is missing.
    """
    metadata = {METADATA: json.dumps(config_to_json(model.config))}
    exchanged = find_exchanged_arrays(model, state)
    if exchanged:
        raise ValueError(
            f"this {type(model).__name__} has parts that its config does not make, and eqx_vit.load could not restore "
            f"these arrays: {', '.join(exchanged)}; use eqx.tree_serialise_leaves(path, (model, state)) instead"
        )
    arrays = named_leaves(model) | named_statistics(model, state)
    write_arrays(Path(path), {name: np.asarray(array) for name, array in arrays.items()}, metadata)


def load(path: str | os.PathLike[str]) -> tuple[AnyModel, State]:
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
    model, state = make_skeleton(config)
    own, statistics = named_leaves(model), named_statistics(model, state)
    problems = _find_mismatches(own | statistics, arrays)
    if problems:
        raise ValueError(f"{path} does not fit its own config: " + "; ".join(problems))
    model = with_named_leaves(model, {name: jnp.asarray(arrays[name]) for name in own})
    return model, with_named_statistics(model, state, {name: jnp.asarray(arrays[name]) for name in statistics})


def _find_mismatches(expected: Mapping[str, Leaf], given: Mapping[str, np.ndarray]) -> list[str]:
    problems = [f"missing {name}" for name in expected if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in expected]
    for name, array in given.items():
        if name in expected and array.shape != expected[name].shape:
            problems.append(f"{name} has shape {array.shape}, not {expected[name].shape}")
        elif name in expected and not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"{name} has dtype {array.dtype}, which is not a floating-point type")
    return problems
