"""A model as pure functions over plain nested dicts of arrays: for people who come from Haiku or Flax."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from eqx_vit.create import build, make_skeleton
from eqx_vit.forward import Images, forward
from eqx_vit.layers import BatchNorm
from eqx_vit.layers.config import no_type_check
from eqx_vit.parameters import trainable
from eqx_vit.paths import Leaf, named_leaves, named_statistics, path_name, with_named_leaves, with_named_statistics
from eqx_vit.registry import AnyConfig, AnyModel, find_architecture

NestedDict: TypeAlias = dict[str, Any]  # of arrays: {"head": {"weight": ..., "bias": ...}, ...}
NestedMapping: TypeAlias = Mapping[str, Any]  # one that need not be a dict, as Flax's FrozenDict


class Init(Protocol):
    """See `Transformed`."""

    def __call__(self, key: PRNGKeyArray) -> tuple[NestedDict, NestedDict]: ...


class Apply(Protocol):
    """See `Transformed`."""

    def __call__(
        self,
        params: NestedMapping,
        state: NestedMapping,
        key: PRNGKeyArray | None,
        images: Images,
        *,
        update_statistics: bool = False,
    ) -> tuple[Float[Array, "batch classes"], NestedDict]: ...


class Transformed(NamedTuple):
    """A model as two pure functions over plain nested dicts of arrays, in the manner of Haiku.

    Unlike Haiku's, both are compiled as they are: no `jax.jit` is needed around them, and one does no harm.

    **Attributes:**

    - `init(key) -> (params, state)`. `params` are the trainable arrays; `state` holds two collections, `batch_stats`
        (BatchNorm's running statistics) and `buffers` (arrays that load from checkpoints but are not trained), either
        of them possibly empty.
    - `apply(params, state, key, images, *, update_statistics=False) -> (logits, state)`. `images` are (batch, height,
        width, channels). With a key dropout is active, with None it is not; `update_statistics=True` makes BatchNorm
        normalise by the batch and update its running statistics.
    """

    init: Init
    apply: Apply


@no_type_check
def transform(config: AnyConfig) -> Transformed:
    """The two pure functions of a config's model; see `Transformed`.

    **Raises:** `ValueError` for an object that is not a config of this library.
    """
    find_architecture(config)
    return Transformed(functools.partial(_init, config), functools.partial(_apply, config))


@no_type_check  # `build` checks the key
def _init(config: AnyConfig, key: PRNGKeyArray) -> tuple[NestedDict, NestedDict]:
    return to_dicts(*build(config, key))


@eqx.filter_jit  # called eagerly, as Flax users do, it would dispatch hundreds of operations one by one
def _apply(
    config: AnyConfig,
    params: NestedMapping,
    state: NestedMapping,
    key: PRNGKeyArray | None,
    images: Images,
    *,
    update_statistics: bool = False,
) -> tuple[Float[Array, "batch classes"], NestedDict]:
    model, model_state = from_dicts(config, params, state)
    model = set_training(model, dropout=key is not None, statistics=update_statistics)
    logits, after = forward(model, model_state, images, key)
    return logits, to_dicts(model, after)[1]


def set_training(model: AnyModel, *, dropout: bool, statistics: bool) -> AnyModel:
    """The model with dropout and drop-path, and BatchNorm's use of batch statistics, each switched on or off."""

    def switch(node: PyTree) -> PyTree:
        return eqx.nn.inference_mode(node, not statistics) if isinstance(node, BatchNorm) else node

    return jax.tree.map(
        switch, eqx.nn.inference_mode(model, not dropout), is_leaf=lambda node: isinstance(node, BatchNorm)
    )


def to_dicts(model: AnyModel, state: State) -> tuple[NestedDict, NestedDict]:
    """(params, state) of a model, as `transform` has them."""
    arrays, params = named_leaves(model), named_leaves(trainable(model))
    buffers = {name: array for name, array in arrays.items() if name not in params}
    return unflatten(params), {"batch_stats": unflatten(named_statistics(model, state)), "buffers": unflatten(buffers)}


def from_dicts(config: AnyConfig, params: NestedMapping, state: NestedMapping) -> tuple[AnyModel, State]:
    """The model and state of a config, with the arrays of (params, state).

    **Raises:** `ValueError` that names every path that is missing, unexpected or of the wrong shape.
    """
    model, model_state = make_skeleton(config)
    wanted_params, wanted_state = to_dicts(model, model_state)
    leaves = flatten_and_check("params", wanted_params, params)
    rest = {name: flatten_and_check(name, tree, state.get(name, {})) for name, tree in wanted_state.items()}
    model = with_named_leaves(model, leaves | rest["buffers"])
    return model, with_named_statistics(model, model_state, rest["batch_stats"])


def unflatten(flat: Mapping[str, Leaf]) -> NestedDict:
    """`{"a.b": x}` as `{"a": {"b": x}}`."""
    tree: NestedDict = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        functools.reduce(lambda node, part: node.setdefault(part, {}), parents, tree)[last] = leaf
    return tree


@no_type_check
def flatten(tree: NestedMapping) -> dict[str, Leaf]:
    """The inverse of `unflatten`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@no_type_check
def flatten_and_check(collection: str, wanted: NestedMapping, given: NestedMapping) -> dict[str, Array]:
    """The given nested dict as a flat one.

    **Raises:** `ValueError` with every path that is missing, unexpected or of another shape than in `wanted`.
    """
    shapes, leaves = flatten(wanted), flatten(given)
    problems = [f"missing {collection}.{name} {leaf.shape}" for name, leaf in shapes.items() if name not in leaves]
    problems += [f"unexpected {collection}.{name}" for name in leaves if name not in shapes]
    problems += [
        f"{collection}.{name} has shape {jnp.shape(leaf)}, not {shapes[name].shape}"
        for name, leaf in leaves.items()
        if name in shapes and jnp.shape(leaf) != shapes[name].shape
    ]
    if problems:
        raise ValueError("the arrays are not those of this model: " + "; ".join(problems))
    return {name: jnp.asarray(leaf) for name, leaf in leaves.items()}
