"""A model and its state as one flat dict of named arrays: what files, name maps and the Flax API work with.

A name is the path of attributes with dots, `blocks.block.attention.qkv.weight`; an array of a `Stack` carries the
depth as its first axis, also where the stack is taken apart (`eqx_vit.unstacked`). BatchNorm's statistics appear as
`<path of the BatchNorm>.running_mean` and `.running_var`.
"""

import functools
from collections.abc import Mapping

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from eqx_vit.layers.batch_norm import BatchNorm, set_statistics
from eqx_vit.layers.unstacked import has_unstacked, on_stacked, restack

# An array, of JAX or (after `jax.device_get`) of NumPy, or the shape that stands for one under `eqx.filter_eval_shape`.
Leaf = Array | np.ndarray | jax.ShapeDtypeStruct


def is_array(leaf: object) -> bool:
    """Whether the leaf is an array, or the shape that stands for one under `eqx.filter_eval_shape`."""
    return isinstance(leaf, Leaf)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """A key path of JAX as a dotted name."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(model: PyTree) -> dict[str, Leaf]:
    """Each array of the model under its name; no BatchNorm statistics."""
    arrays = eqx.filter(restack(model), is_array)
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}


def named_statistics(model: PyTree, state: eqx.nn.State) -> dict[str, Leaf]:
    """BatchNorm's running statistics under their names.

    **Raises:** `ValueError` for a state that was not made with the model.
    """
    statistics: dict[str, Leaf] = {}
    for name, norm in batch_norms(model):
        try:
            mean, variance = state.get(norm.statistics)
        except KeyError as error:
            raise ValueError(f"the state lacks the statistics of {name}: it was not made with this model") from error
        if mean.shape[-1:] != norm.weight.shape[-1:]:
            raise ValueError(
                f"the state has statistics of {mean.shape[-1]} channels for {name}, which has {norm.weight.shape[-1]}: "
                "it was not made with this model"
            )
        statistics |= {f"{name}.running_mean": mean, f"{name}.running_var": variance}
    return statistics


def with_named_leaves(model: PyTree, leaves: Mapping[str, Array]) -> PyTree:
    """The model with the named arrays in place of its own; names it lacks raise `KeyError`."""
    unknown = sorted(set(leaves) - set(named_leaves(model)))
    if unknown:
        raise KeyError(f"no array of the model is called {', '.join(unknown)}")

    def assign(stacked: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(path_name(path), leaf), stacked)

    return on_stacked(assign, model)


def with_named_statistics(model: PyTree, state: eqx.nn.State, statistics: Mapping[str, Array]) -> eqx.nn.State:
    """The state with the named statistics in place of its own."""
    merged = {**named_statistics(model, state), **statistics}
    state = state.substate(model)  # a copy: State invalidates what it is updated from
    for name, norm in batch_norms(model):
        state = set_statistics(state, norm, merged[f"{name}.running_mean"], merged[f"{name}.running_var"])
    return state


def batch_norms(model: PyTree) -> list[tuple[str, BatchNorm]]:
    """Each BatchNorm of the model with its name."""
    if has_unstacked(model):  # nothing but the norms is put together again
        keep = functools.partial(jax.tree.map, lambda node: node if _is_batch_norm(node) else None)
        model = restack(keep(model, is_leaf=_is_batch_norm))
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_batch_norm)
    return [(path_name(path), node) for path, node in nodes if _is_batch_norm(node)]


def _is_batch_norm(node: object) -> bool:
    return isinstance(node, BatchNorm)
