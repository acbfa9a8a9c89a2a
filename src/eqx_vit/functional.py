"""A model as pure functions over plain nested dicts of arrays: for people who come from Haiku or Flax."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from eqx_vit.create import build, make_skeleton
from eqx_vit.forward import Images, run_batch
from eqx_vit.layers import BatchNorm, check_key
from eqx_vit.layers.config import list_some, no_type_check
from eqx_vit.parameters import trainable
from eqx_vit.paths import Leaf, named_leaves, named_statistics, with_named_leaves, with_named_statistics
from eqx_vit.registry import AnyConfig, AnyModel, find_architecture

NestedDict: TypeAlias = dict[str, Any]  # of arrays: {"head": {"weight": ..., "bias": ...}, ...}
NestedMapping: TypeAlias = Mapping[str, Any]  # one that need not be a dict, as Flax's FrozenDict
COLLECTIONS = ("batch_stats", "buffers")  # of a state


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
    return Transformed(functools.partial(_init, config), functools.partial(call, config, "__call__"))


@no_type_check
def _init(config: AnyConfig, key: PRNGKeyArray) -> tuple[NestedDict, NestedDict]:
    return to_dicts(*build(config, check_key(key)))


@no_type_check
def call(
    config: AnyConfig,
    method: str,
    params: NestedMapping,
    state: NestedMapping,
    key: PRNGKeyArray | None,
    images: Images,
    *,
    update_statistics: bool = False,
) -> tuple[PyTree[Array], NestedDict]:
    """(result, state) of a method of a config's model, `__call__`, `features` or `logits_pair`; see `Transformed`.

    **Raises:** `ValueError` for anything but numbers in `params` and `state`, and for those of another model, naming
    each path; for images that the config does not take, and what is no key or no bool.
    """
    if not isinstance(update_statistics, bool):
        raise ValueError(f"update_statistics must be True or False, given a {type(update_statistics).__name__}")
    check_images(images)
    key = key if key is None else check_key(key)
    return _call(config, method, flatten("params", params), _flatten_state(state), key, images, update_statistics)


@eqx.filter_jit  # called eagerly, as Flax users do, it would dispatch hundreds of operations one by one
@no_type_check
def _call(
    config: AnyConfig,
    method: str,
    params: Mapping[str, Array],
    state: Mapping[str, Mapping[str, Array]],
    key: PRNGKeyArray | None,
    images: Images,
    update_statistics: bool,
) -> tuple[PyTree[Array], NestedDict]:
    model, model_state = _from_flat(config, params, state)
    model = set_training(model, dropout=key is not None, statistics=update_statistics)

    def run(model: AnyModel, *arguments: PyTree, key: PRNGKeyArray | None) -> PyTree[Array]:
        return getattr(model, method)(*arguments, key=key)

    result, after = run_batch(model, run, model_state, images, key)
    return result, to_dicts(model, after)[1]


@no_type_check
def check_images(images: Images) -> None:
    """Raise `ValueError` for anything but an array of floats; its shape is `forward`'s to check."""
    if not isinstance(images, jax.Array | np.ndarray):
        given, hint = f"a {type(images).__name__}", "convert it with jnp.asarray"
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        given, hint = f"dtype {images.dtype}", "scale it first, e.g. images.astype('float32') / 255"
    else:
        return
    raise ValueError(f"images must be a float array of (batch, height, width, channels), given {given}: {hint}")


def set_training(model: AnyModel, *, dropout: bool, statistics: bool) -> AnyModel:
    """The model with dropout and drop-path, and BatchNorm's use of batch statistics, each switched on or off."""

    def switch(node: PyTree) -> PyTree:
        return eqx.nn.inference_mode(node, not statistics) if isinstance(node, BatchNorm) else node

    return jax.tree.map(
        switch, eqx.nn.inference_mode(model, not dropout), is_leaf=lambda node: isinstance(node, BatchNorm)
    )


def to_dicts(model: AnyModel, state: State) -> tuple[NestedDict, NestedDict]:
    """(params, state) of a model, as `transform` has them."""
    params, rest = _to_flat(model, state)
    return unflatten(params), {name: unflatten(arrays) for name, arrays in rest.items()}


@no_type_check
def from_dicts(config: AnyConfig, params: NestedMapping, state: NestedMapping) -> tuple[AnyModel, State]:
    """The model and state of a config, with the arrays of (params, state).

    **Raises:** `ValueError` that names every path that is missing, unexpected, or of the wrong kind or shape.
    """
    return _from_flat(config, flatten("params", params), _flatten_state(state))


def _to_flat(model: AnyModel, state: State) -> tuple[dict[str, Leaf], dict[str, dict[str, Leaf]]]:
    arrays, params = named_leaves(model), named_leaves(trainable(model))
    # The flags of training mode are bools, and arrays after `jax.device_put(model)`.
    buffers = {name: leaf for name, leaf in arrays.items() if name not in params and not _is_flag(leaf)}
    return params, {"batch_stats": named_statistics(model, state), "buffers": buffers}


def _from_flat(
    config: AnyConfig, params: Mapping[str, Array], state: Mapping[str, Mapping[str, Array]]
) -> tuple[AnyModel, State]:
    model, model_state = make_skeleton(config)
    wanted_params, wanted_state = _to_flat(model, model_state)
    leaves = check_leaves("params", wanted_params, params)
    rest = {name: check_leaves(name, wanted, state.get(name, {})) for name, wanted in wanted_state.items()}
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
def flatten(collection: str, tree: NestedMapping) -> dict[str, Array]:
    """The inverse of `unflatten`; None is nothing.

    **Raises:** `ValueError` for the first node that is neither a dict nor an array of numbers, naming its path.
    """
    if not isinstance(tree, Mapping):
        kind = type(tree).__name__
        raise ValueError(f"{collection} must be a nested dict of arrays, as init returns it, given a {kind}")
    flat: dict[str, Array] = {}
    for name, node in tree.items():
        path = f"{collection}.{name}"
        if isinstance(node, Mapping):
            flat |= {f"{name}.{rest}": leaf for rest, leaf in flatten(path, node).items()}
        elif isinstance(node, jax.Array | np.ndarray | np.generic) and _is_numeric(node.dtype):
            flat[str(name)] = jnp.asarray(node)
        elif node is not None:
            given = f"dtype {node.dtype}" if isinstance(node, jax.Array | np.ndarray) else f"a {type(node).__name__}"
            raise ValueError(f"{path} must be an array of numbers, given {given}")
    return flat


@no_type_check
def _flatten_state(state: NestedMapping) -> dict[str, dict[str, Array]]:
    if not isinstance(state, Mapping):
        raise ValueError(f"state must be a dict of {COLLECTIONS}, as init returns it, given a {type(state).__name__}")
    unknown = [name for name in state if name not in COLLECTIONS]
    if unknown:
        raise ValueError(f"unknown collections in state: {unknown}; known are {COLLECTIONS}")
    return {name: flatten(name, tree) for name, tree in state.items()}


def check_leaves(collection: str, wanted: Mapping[str, Leaf], given: Mapping[str, Array]) -> dict[str, Array]:
    """The given arrays.

    **Raises:** `ValueError` with the paths that are missing, unexpected, or of another shape or kind than in `wanted`.
    """
    problems = [f"missing {collection}.{name} {leaf.shape}" for name, leaf in wanted.items() if name not in given]
    problems += [f"unexpected {collection}.{name}" for name in given if name not in wanted]
    for name, leaf in given.items():
        if name in wanted and leaf.shape != wanted[name].shape:
            problems.append(f"{collection}.{name} has shape {leaf.shape}, not {wanted[name].shape}")
        elif name in wanted and _is_floating(leaf) != _is_floating(wanted[name]):
            problems.append(f"{collection}.{name} has dtype {leaf.dtype}, not {wanted[name].dtype}")
    if problems:
        raise ValueError(f"the arrays are not those of this model: {list_some(problems, '; ')}")
    return dict(given)


@no_type_check
def _is_numeric(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def _is_floating(leaf: Leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_flag(leaf: Leaf) -> bool:
    return leaf.dtype == bool and leaf.shape == ()
