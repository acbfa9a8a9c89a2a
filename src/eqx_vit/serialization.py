"""A model with its config and state as one safetensors file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jax.core import Tracer

from eqx_vit.arguments import check_arguments
from eqx_vit.create import make_skeleton
from eqx_vit.files import can_store, digest_arrays, is_finite, read_arrays, read_metadata, write_arrays
from eqx_vit.layers.config import list_some, no_type_check
from eqx_vit.paths import Leaf, named_leaves, named_statistics, with_named_leaves, with_named_statistics
from eqx_vit.registry import AnyModel, config_from_json, config_to_json
from eqx_vit.surgery import find_ensemble_size, find_exchanged_arrays

METADATA = "eqx_vit.model"  # one entry alone: safetensors writes several in any order, and equal models are equal files


@check_arguments
@no_type_check
def save(path: str | os.PathLike[str], model: AnyModel, state: State) -> None:
    """Write a model and its state as one safetensors file, which `load` reads back without anything else.

    The arrays have the names of `eqx_vit.paths` and keep their dtypes; BatchNorm's statistics and the config are
    inside. The code of the model is not: in place of a part of your own whose arrays have the names and shapes of the
    original's, `load` puts the original. The file appears whole or not at all. A model that is sharded over devices is
    collected array by array; where other processes hold parts of it, each has to call this, and the first one writes.

    **Arguments:** `model, state` as `create` returned them or training left them.

    **Raises:** `ValueError` for a model that is not of this library, or that `load` could not make from its config,
    since a part with other arrays was put into it, or arrays of a dtype that no model has.
    """
    config = config_to_json(model.config)
    size = find_ensemble_size(model)
    if size is not None:
        raise ValueError(
            f"save takes one model, and this is an ensemble of {size} {type(model).__name__}: save each of them, "
            "eqx_vit.save(path, *jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, (models, states)))"
        )
    exchanged = find_exchanged_arrays(model, state)
    arrays = {} if exchanged else named_leaves(model) | named_statistics(model, state)
    exchanged += [f"{name} (dtype {array.dtype})" for name, array in arrays.items() if not can_store(array.dtype)]
    if exchanged:
        raise ValueError(
            f"this {type(model).__name__} has parts that its config does not make, and eqx_vit.load could not restore "
            f"these arrays: {list_some(exchanged)}; register an architecture that makes them (eqx_vit.register), or "
            "use eqx.tree_serialise_leaves(path, (model, state)), and eqx.tree_deserialise_leaves with a model that is "
            "changed in the same way"
        )
    plain: dict[str, jax.Array | np.ndarray] = {}
    for name, array in arrays.items():
        if isinstance(array, jax.ShapeDtypeStruct | Tracer):
            raise ValueError("save takes arrays with values: call it outside of jax.jit and eqx.filter_eval_shape")
        plain[name] = array
    described = config | {"digest": digest_arrays(plain, json.dumps(config))}
    write_arrays(Path(path), plain, {METADATA: json.dumps(described)})


@check_arguments
@no_type_check
def load(path: str | os.PathLike[str], *, allow_nonfinite: bool = False) -> tuple[AnyModel, State]:
    """The model, in training mode, and the state that `save` wrote; each array in the dtype that it was saved in.

    **Arguments:** `allow_nonfinite` takes weights that are infinite or NaN, as training that diverged leaves them.

    **Raises:** `ValueError` for a damaged file, one that `save` did not write, arrays that do not fit the config (with
    the missing, unexpected and mis-shaped names), and weights that are not finite; `FileNotFoundError`.
    """
    arrays, metadata = read_arrays(Path(path))
    if METADATA not in metadata:
        raise ValueError(
            f"{path} was not written by eqx_vit.save: released weights load with eqx_vit.weights.load_state_dict"
        )
    model, state = _read_skeleton(path, metadata[METADATA])
    own, statistics = named_leaves(model), named_statistics(model, state)
    problems = _find_mismatches(own | statistics, arrays)
    if problems:
        raise ValueError(f"{path} does not fit its own config: {problems}")
    infinite = [] if allow_nonfinite else [name for name, array in arrays.items() if not is_finite(array)]
    if infinite:
        raise ValueError(
            f"{path} has infinite or NaN weights: {list_some(infinite)}; allow_nonfinite=True loads them all the same"
        )
    described = json.loads(metadata[METADATA])
    # Only `save` writes one: a file that another program has changed on purpose lacks it.
    if described.pop("digest", None) not in (None, digest_arrays(arrays, json.dumps(described))):
        raise ValueError(f"{path} is damaged: its content has changed since it was written")
    model = with_named_leaves(model, {name: jnp.asarray(arrays[name]) for name in own})
    return model, with_named_statistics(model, state, {name: jnp.asarray(arrays[name]) for name in statistics})


def holds_model(path: str | os.PathLike[str]) -> bool:
    """Whether `save` wrote the file."""
    return METADATA in read_metadata(Path(path))


def _read_skeleton(path: str | os.PathLike[str], text: str) -> tuple[AnyModel, State]:
    """The model of the config that a file has, with shapes in place of arrays: nothing has its size yet."""
    try:
        return make_skeleton(config_from_json(json.loads(text)))
    except Exception as error:  # sizes that a config allows one by one may be impossible together, deep inside JAX
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the config inside {path} is not understood: {reason[:500]}") from error


def _find_mismatches(expected: Mapping[str, Leaf], given: Mapping[str, np.ndarray]) -> str:
    """In words, how the arrays of a file differ from those of its config: nothing where they do not."""
    missing = [f"missing {name}" for name in expected if name not in given]
    unexpected = [f"unexpected {name}" for name in given if name not in expected]
    wrong = []
    for name, leaf in expected.items():
        if name in given and given[name].shape != leaf.shape:
            wrong.append(f"{name} has shape {given[name].shape}, not {leaf.shape}")
        elif name in given and not jnp.issubdtype(given[name].dtype, jnp.floating):
            wrong.append(f"{name} has dtype {given[name].dtype}, which is not a floating-point type")
    return "; ".join(list_some(problems, "; ") for problems in (missing, unexpected, wrong) if problems)
