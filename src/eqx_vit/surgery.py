"""Changing a model that exists: its head, its image size. Parts that a user has exchanged stay as they are."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State, StateIndex
from jaxtyping import Array, PRNGKeyArray, PyTree

from eqx_vit.arguments import check_argument
from eqx_vit.create import initialise, make_skeleton
from eqx_vit.inputs import has_mode
from eqx_vit.layers import check_key
from eqx_vit.layers.config import Size, list_some, no_type_check, shorten
from eqx_vit.layers.unstacked import on_stacked
from eqx_vit.model import ImageModel, replace_fields
from eqx_vit.parameters import cast, trainable
from eqx_vit.paths import Leaf, named_leaves, named_statistics, path_name
from eqx_vit.registry import AnyConfig, AnyModel, change_config, find_architecture

Model = TypeVar("Model", bound=AnyModel)
HEADS = ("head", "head_dist")


@no_type_check
def replace_head(model: Model, num_classes: int, *, key: PRNGKeyArray) -> Model:
    """The model with a fresh head for `num_classes` (0: no head) and all else carried over; the state stays as it is.

    A BatchNorm in the head keeps its place in the state. (A model that was created without a head has no such place: if
    its head needs one, create it anew.)

    **Raises:** `ValueError` for an impossible number of classes, and for an ensemble.
    """
    _check_single(model, "replace_head", "lambda model, key: eqx_vit.replace_head(model, ..., key=key))(models, keys")
    config = change_config(model.config, {"num_classes": num_classes})
    heads = _make_heads(find_architecture(config).model, config, check_key(key))
    old = jax.tree_util.tree_leaves_with_path(_heads_of(model), is_leaf=_is_state_index)
    places = {path_name(path): node for path, node in old if _is_state_index(node)}
    heads = jax.tree_util.tree_map_with_path(
        lambda path, node: places.get(path_name(path), node), heads, is_leaf=_is_state_index
    )
    # The head is as the rest of the model: of its dtype, and in inference mode where that is.
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(trainable(model)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    heads = cast(heads, dtypes[0]) if dtypes else heads
    modes = [node for node in jax.tree.leaves(model, is_leaf=has_mode) if has_mode(node)]
    heads = eqx.nn.inference_mode(heads, bool(modes) and all(node.inference for node in modes))
    return replace_fields(model, config=config, **heads)


@eqx.filter_jit
def _make_heads(model: Callable[..., AnyModel], config: AnyConfig, key: PRNGKeyArray) -> dict[str, PyTree]:
    return _heads_of(initialise(model, config, key)[0])


def _heads_of(model: AnyModel) -> dict[str, PyTree]:
    return {name: getattr(model, name) for name in HEADS if name in type(model).__dataclass_fields__}


def _is_state_index(node: object) -> bool:
    return isinstance(node, StateIndex)


@no_type_check
def resize(model: Model, image_size: Size) -> Model:
    """The model for another image size, (height, width) or one number: its position tables are resampled.

    Models that take any size come back as they are.

    **Raises:** `ValueError` for a size that the config refuses, for models whose tables have no official rule, for a
    table that is not the original's any more, and for an ensemble.
    """
    _check_single(model, "resize", "lambda model: eqx_vit.resize(model, ...))(models")
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size must be a number of pixels or (height, width), given {shorten(image_size)}")
    size = image_size if isinstance(image_size, int) else (sides[0], sides[1])
    stock, _ = make_skeleton(model.config)
    _, tables = eqx.filter_eval_shape(lambda stock: stock.resize_spec(size), stock)
    exchanged = _find_differences(named_leaves(stock), named_leaves(model), tables)
    if exchanged:
        raise ValueError(
            f"this {type(model).__name__} cannot be resized: it has not the position tables that its config makes, but "
            f"{list_some(exchanged)}; resize the original model, and exchange its parts afterwards"
        )
    return on_stacked(lambda model: rebuild(model, *model.resize_spec(size)), model)


def rebuild(model: Model, config: AnyConfig, changed: Mapping[str, Array]) -> Model:
    """The model with another config and some arrays, given by name, in place of its own."""

    def change(stacked: Model) -> Model:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: changed.get(path_name(path), leaf), stacked)

    return replace_fields(on_stacked(change, model), config=config)


def find_exchanged_arrays(model: AnyModel, state: State, *, allow_missing: bool = False) -> list[str]:
    """In words, the arrays in which a model differs from the one that its config makes: its parts were exchanged.

    An array of any floating-point dtype is the same.

    Where the tree holds gradients, those of buffers are missing: `allow_missing` does not count them.
    """
    stock, stock_state = make_skeleton(model.config)
    expected, found = named_leaves(stock), named_leaves(model)
    if found.keys() == expected.keys():
        expected |= named_statistics(stock, stock_state)
        found |= named_statistics(model, state)
    unknown = [f"{name} (unknown)" for name in found if name not in expected]
    return _find_differences(expected, found, found if allow_missing else expected) + unknown


def _find_differences(expected: Mapping[str, Leaf], found: Mapping[str, Leaf], names: Iterable[str]) -> list[str]:
    """In words, which of the named arrays that are expected are missing, or have another shape or kind of dtype."""
    differences = []
    for name in names:
        if name not in expected:
            continue
        if name not in found:
            differences.append(f"{name} (missing)")
        elif found[name].shape != expected[name].shape:
            differences.append(f"{name} (shape {found[name].shape}, not {expected[name].shape})")
        elif not jnp.issubdtype(found[name].dtype, jnp.floating):
            differences.append(f"{name} (dtype {found[name].dtype}, not a floating-point one)")
    return differences


def find_ensemble_size(model: AnyModel) -> int | None:
    """How many models `eqx.filter_vmap` has put into one: each of their arrays has an axis more. None for one model."""
    expected, found = named_leaves(make_skeleton(model.config)[0]), named_leaves(model)
    shared = [(found[name].shape, expected[name].shape) for name in expected if name in found]
    sizes = {shape[0] for shape, one in shared if shape[1:] == one and shape}
    return sizes.pop() if len(sizes) == 1 and all(shape[1:] == one and shape for shape, one in shared) else None


@no_type_check
def _check_single(model: AnyModel, function: str, each: str) -> None:
    """Raise `ValueError` for anything but one model; `each` is the call for each of an ensemble."""
    check_argument(function, "model", model, ImageModel)
    size = find_ensemble_size(model)
    if size is not None:
        raise ValueError(
            f"{function} takes one model, and this is an ensemble of {size} {type(model).__name__}: "
            f"eqx.filter_vmap({each})"
        )
