"""Pure functions over any model of the library, and over a user's own that keeps the same contracts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from eqx_vit.layers import BATCH_AXIS, BatchNorm, Buffer, Conv, Linear
from eqx_vit.models import MODELS, Architecture
from eqx_vit.paths import (
    batch_norms,
    is_array,
    named_leaves,
    named_statistics,
    path_name,
    with_named_leaves,
    with_named_statistics,
)

Model = Any  # one of the architectures, or a module that keeps the same contracts


def architecture(config: Any) -> Architecture:
    """The row of `MODELS` that a config belongs to.

    **Raises:** `ValueError` for an object that is no config of this library.
    """
    for row in MODELS.values():
        if type(config) is row.config:
            return row
    known = ", ".join(row.config.__name__ for row in MODELS.values())
    raise ValueError(f"{config!r} is not a config of this library: use one of {known}")


def build(config: Any, key: Any) -> tuple[Model, eqx.nn.State]:
    """The freshly initialised model of a config, and its BatchNorm state (empty for models without)."""
    # Within another jit, where every new array is a tracer, JAX refuses compiler options.
    make = _make if isinstance(jnp.zeros(()), jax.core.Tracer) else _make_at_once
    return make(architecture(config).model, config, checked_key(key))


def _made(model: Any, config: Any, key: PRNGKeyArray) -> tuple[Model, eqx.nn.State]:
    return eqx.nn.make_with_state(model)(config, key=key)


# Op by op, the initialisation would be hundreds of small compilations. As it runs once, XLA need not optimise it far:
# its first level compiles in half the time, and what it makes runs as fast. Equinox hands the option on to `jax.jit`,
# but its annotations leave it out.
_make = eqx.filter_jit(_made)
_make_at_once: Any = eqx.filter_jit(_made, compiler_options={"xla_backend_optimization_level": 1})  # type: ignore[call-overload]


def checked_key(key: Any) -> PRNGKeyArray:
    """The key itself.

    **Raises:** `ValueError` for what is not one random key.
    """
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return key
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return key
        given = f"an array of shape {key.shape} and dtype {key.dtype}"
    else:
        given = repr(key)
    raise ValueError(f"key must be one random key such as jax.random.key(0), given {given}")


def forward(
    model: Model, state: eqx.nn.State | None, images: Any, key: Any = None
) -> tuple[Float[Array, "batch classes"], eqx.nn.State | None]:
    """A batch of images to logits, and the state after it: for models with and without BatchNorm alike.

    **Arguments:** `state` as `create` returned it; `images` of (batch, height, width, channels); `key` for live
    dropout, split over the images.

    **Raises:** `ValueError` for images that do not fit the config, a missing key, or a stateful model without the
    state that `create` returned beside it.
    """
    if not isinstance(images, jax.Array | np.ndarray) or images.ndim != 4 or images.shape[0] == 0:
        given = f"shape {images.shape}" if isinstance(images, jax.Array | np.ndarray) else f"a {type(images).__name__}"
        raise ValueError(
            f"forward takes an array of (batch, height, width, channels), given {given}: one image is a batch of one, "
            "image[None]"
        )
    keys = None if key is None else jax.random.split(checked_key(key), images.shape[0])
    if not isinstance(model, eqx.nn.StatefulLayer):
        return jax.vmap(lambda image, key: model(image, key=key))(images, keys), state
    if not _belongs(state, model):
        raise ValueError(
            f"{type(model).__name__} has BatchNorm, and is made and called with its state: "
            "model, state = eqx_vit.create(config, key=key)"
        )
    return jax.vmap(
        lambda state, image, key: model(image, state, key=key),
        in_axes=(None, 0, 0),
        out_axes=(0, None),
        axis_name=BATCH_AXIS,
    )(state, images, keys)


def trainable(model: PyTree) -> PyTree:
    """The parameters alone: every floating-point array but the buffers, None in all other places.

    For the optimiser, `optimiser.init(trainable(model))`, and for gradients, `trainable(gradients)`.
    """
    parameters = eqx.filter(model, lambda leaf: is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact))
    return jax.tree.map(
        lambda node: jax.tree.map(lambda _: None, node) if _is_buffer(node) else node, parameters, is_leaf=_is_buffer
    )


def decay_mask(model: PyTree) -> PyTree:
    """True for the parameters that weight decay should reach: the weights of linear maps and convolutions.

    Norms, biases, tokens, position tables and layer scales are False. Fits `trainable(model)`, as optax wants it:
    `optax.adamw(..., mask=decay_mask)`.
    """

    def mark(node: Any) -> Any:
        mask = jax.tree.map(lambda _: False, node)
        if _has_decayed_weight(node) and node.weight is not None:
            return eqx.tree_at(lambda layer: layer.weight, mask, True)
        return mask

    return jax.tree.map(mark, trainable(model), is_leaf=_has_decayed_weight)


def count_params(model: PyTree) -> int:
    """The number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(trainable(model)))


def cast(model: Model, dtype: Any) -> Model:
    """The model with its floating-point arrays in another dtype, such as `jnp.bfloat16`.

    Softmax and normalisation statistics stay in float32; so does BatchNorm's state.

    **Raises:** `ValueError` for a dtype that is not floating-point.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"cast takes a floating-point dtype such as jnp.bfloat16, given {dtype!r}")
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, model)


def replace_head(model: Model, num_classes: Any, *, key: Any) -> Model:
    """The model with a fresh head for `num_classes` (0: no head) and all else carried over; the state stays as it is.

    **Raises:** `ValueError` for an impossible number of classes.
    """
    fresh, _ = build(with_fields(model.config, {"num_classes": num_classes}), key)
    old = _nodes(model)
    is_head = {name: name.split(".")[0] in ("head", "head_dist") for name in _nodes(fresh)}
    return _filled(fresh, lambda name, leaf: leaf if is_head[name] else old[name])


def with_fields(config: Any, changes: Mapping[str, Any]) -> Any:
    """The config with some fields replaced; a second head has the classes of the first unless `changes` says so."""
    if "num_classes" in changes and getattr(config, "num_distill_classes", None):
        changes = {"num_distill_classes": changes["num_classes"] or None, **changes}
    return dataclasses.replace(config, **changes)


def resize(model: Model, image_size: Any) -> Model:
    """The model for another image size, (height, width) or one number: its position tables are resampled.

    Models that take any size come back as they are.

    **Raises:** `ValueError` for a size that the config refuses, and for models whose tables have no official rule.
    """
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size must be a number of pixels or (height, width), given {image_size!r}")
    return rebuilt(model, *model.resized(image_size if isinstance(image_size, int) else tuple(sides)))


def rebuilt(model: Model, config: Any, changed: Mapping[str, Any]) -> Model:
    """The model of another config with the leaves of this one, but for those named in `changed`."""
    fresh = eqx.filter_eval_shape(type(model), config, key=jax.random.key(0))
    carried = _nodes(model) | dict(changed)
    return _filled(fresh, lambda name, _: carried[name])


class Transformed(NamedTuple):
    """A model as two pure functions over plain nested dicts of arrays, in the manner of Haiku.

    **Attributes:**

    - `init(key) -> (params, state)`. `params` are the trainable arrays; `state` holds two collections, `batch_stats`
        (BatchNorm's running statistics) and `buffers` (arrays that load from checkpoints but are not trained), either
        of them possibly empty.
    - `apply(params, state, key, images, *, update_statistics=False) -> (logits, state)`. `images` are (batch, height,
        width, channels). With a key dropout is live, with None it is not; `update_statistics=True` makes BatchNorm
        normalise by the batch and update its running statistics.
    """

    init: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
    apply: Callable[..., tuple[Float[Array, "batch classes"], dict[str, Any]]]


def transform(config: Any) -> Transformed:
    """The two pure functions of a config's model; see `Transformed`.

    **Raises:** `ValueError` for an object that is no config of this library.
    """
    architecture(config)
    return Transformed(functools.partial(_init, config), functools.partial(_apply, config))


def _init(config: Any, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return to_dicts(*build(config, key))


@eqx.filter_jit  # called eagerly, as Flax users do, it would dispatch hundreds of operations one by one
def _apply(
    config: Any,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    key: Any,
    images: Any,
    *,
    update_statistics: bool = False,
) -> tuple[Float[Array, "batch classes"], dict[str, Any]]:
    model, model_state = from_dicts(config, params, state)
    model = set_live(model, dropout=key is not None, statistics=update_statistics)
    logits, after = forward(model, model_state, images, key)
    return logits, to_dicts(model, after)[1]


def set_live(model: Model, *, dropout: bool, statistics: bool) -> Model:
    """The model with dropout and drop-path, and BatchNorm's use of batch statistics, each switched on or off."""

    def switch(node: Any) -> Any:
        return eqx.nn.inference_mode(node, not statistics) if isinstance(node, BatchNorm) else node

    return jax.tree.map(
        switch, eqx.nn.inference_mode(model, not dropout), is_leaf=lambda node: isinstance(node, BatchNorm)
    )


def to_dicts(model: Model, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, state) of a model, as `transform` has them."""
    arrays, params = named_leaves(model), named_leaves(trainable(model))
    buffers = {name: array for name, array in arrays.items() if name not in params}
    return nested(params), {"batch_stats": nested(named_statistics(model, state)), "buffers": nested(buffers)}


def from_dicts(config: Any, params: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Model, eqx.nn.State]:
    """The model and state of a config, with the arrays of (params, state).

    **Raises:** `ValueError` that names every path that is missing, unexpected or of the wrong shape.
    """
    model, model_state = _skeleton(config)
    wanted = to_dicts(model, model_state)
    collections = {"params": (wanted[0], params)}
    collections |= {name: (tree, state.get(name, {})) for name, tree in wanted[1].items()}
    given = {name: flat_checked(name, tree, found) for name, (tree, found) in collections.items()}
    model = with_named_leaves(model, given["params"] | given["buffers"])
    return model, with_named_statistics(model, model_state, given["batch_stats"])


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": x}` as `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        functools.reduce(lambda node, part: node.setdefault(part, {}), parents, tree)[last] = leaf
    return tree


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `nested`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def flat_checked(collection: str, wanted: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """The given nested dict as a flat one.

    **Raises:** `ValueError` with every path that is missing, unexpected or of another shape than in `wanted`.
    """
    shapes, leaves = flat(wanted), flat(given)
    problems = [f"missing {collection}.{name} {leaf.shape}" for name, leaf in shapes.items() if name not in leaves]
    problems += [f"unexpected {collection}.{name}" for name in leaves if name not in shapes]
    problems += [
        f"{collection}.{name} has shape {jnp.shape(leaf)}, not {shapes[name].shape}"
        for name, leaf in leaves.items()
        if name in shapes and jnp.shape(leaf) != shapes[name].shape
    ]
    if problems:
        raise ValueError("the arrays are not those of this model: " + "; ".join(problems))
    return leaves


@functools.lru_cache(maxsize=64)
def _skeleton(config: Any) -> tuple[Model, eqx.nn.State]:
    """The model and state of a config with shapes in place of arrays."""
    return eqx.filter_eval_shape(_made, architecture(config).model, config, jax.random.key(0))


def _belongs(state: Any, model: Model) -> bool:
    """Whether the state is the one that `create` made beside the model: neither holds the other's part."""
    norms = [norm for _, norm in batch_norms(model)]
    if not isinstance(state, eqx.nn.State) or any(jax.tree.leaves(norm.statistics) for norm in norms):
        return False
    try:
        state.substate(model)
    except KeyError:
        return False
    return True


def _is_buffer(node: Any) -> bool:
    return isinstance(node, Buffer)


def _has_decayed_weight(node: Any) -> bool:
    return isinstance(node, Linear | Conv | eqx.nn.Linear | eqx.nn.Conv)


def _is_index(node: Any) -> bool:
    return isinstance(node, eqx.nn.StateIndex)


def _nodes(model: PyTree) -> dict[str, Any]:
    """Each leaf under its name, flags included; a `StateIndex` is one, so that the state keeps fitting the model."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_index)}


def _filled(model: Model, leaf_of: Callable[[str, Any], Any]) -> Model:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf_of(path_name(path), leaf), model, is_leaf=_is_index)
