"""Changing a model that exists: its head, its image size. Parts that a user has exchanged stay as they are."""

from collections.abc import Mapping
from typing import TypeVar

import equinox as eqx
import jax
from equinox.nn import State, StateIndex
from jaxtyping import Array, PRNGKeyArray, PyTree

from eqx_vit.create import initialise, make_skeleton
from eqx_vit.layers import BatchNorm, Dropout, DropPath, check_key
from eqx_vit.layers.config import Size, no_type_check
from eqx_vit.model import replace_fields
from eqx_vit.parameters import cast, trainable
from eqx_vit.paths import named_leaves, named_statistics, path_name
from eqx_vit.registry import AnyConfig, AnyModel, change_config

Model = TypeVar("Model", bound=AnyModel)
HEADS = ("head", "head_dist")


@no_type_check
def replace_head(model: Model, num_classes: int, *, key: PRNGKeyArray) -> Model:
    """The model with a fresh head for `num_classes` (0: no head) and all else carried over; the state stays as it is.

    A BatchNorm in the head keeps its place in the state. (A model that was created without a head has no such place: if
    its head needs one, create it anew.)

    **Raises:** `ValueError` for an impossible number of classes.
    """
    config = change_config(model.config, {"num_classes": num_classes})
    heads = _make_heads(type(model), config, check_key(key))
    old = jax.tree_util.tree_leaves_with_path(_heads_of(model), is_leaf=_is_state_index)
    places = {path_name(path): node for path, node in old if _is_state_index(node)}
    heads = jax.tree_util.tree_map_with_path(
        lambda path, node: places.get(path_name(path), node), heads, is_leaf=_is_state_index
    )
    # The head is as the rest of the model: of its dtype, and in inference mode where that is.
    heads = cast(heads, jax.tree.leaves(trainable(model))[0].dtype)
    modes = [node for node in jax.tree.leaves(model, is_leaf=_has_mode) if _has_mode(node)]
    heads = eqx.nn.inference_mode(heads, bool(modes) and all(node.inference for node in modes))
    return replace_fields(model, config=config, **heads)


@eqx.filter_jit
def _make_heads(model: type[AnyModel], config: AnyConfig, key: PRNGKeyArray) -> dict[str, PyTree]:
    return _heads_of(initialise(model, config, key)[0])


def _heads_of(model: AnyModel) -> dict[str, PyTree]:
    return {name: getattr(model, name) for name in HEADS if name in type(model).__dataclass_fields__}


def _has_mode(node: object) -> bool:
    return isinstance(node, Dropout | DropPath | BatchNorm)


def _is_state_index(node: object) -> bool:
    return isinstance(node, StateIndex)


@no_type_check
def resize(model: Model, image_size: Size) -> Model:
    """The model for another image size, (height, width) or one number: its position tables are resampled.

    Models that take any size come back as they are.

    **Raises:** `ValueError` for a size that the config refuses, and for models whose tables have no official rule.
    """
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size must be a number of pixels or (height, width), given {image_size!r}")
    height, width = sides
    return rebuild(model, *model.resize_spec(image_size if isinstance(image_size, int) else (height, width)))


def rebuild(model: Model, config: AnyConfig, changed: Mapping[str, Array]) -> Model:
    """The model with another config and some arrays, given by name, in place of its own."""
    model = jax.tree_util.tree_map_with_path(lambda path, leaf: changed.get(path_name(path), leaf), model)
    return replace_fields(model, config=config)


def find_exchanged_arrays(model: AnyModel, state: State, *, allow_missing: bool = False) -> list[str]:
    """In words, the arrays in which a model differs from the one that its config makes: its parts were exchanged.

    Where the tree holds gradients, those of buffers are missing: `allow_missing` does not count them.
    """
    stock, stock_state = make_skeleton(model.config)
    expected, found = named_leaves(stock), named_leaves(model)
    if found.keys() == expected.keys():
        expected |= named_statistics(stock, stock_state)
        found |= named_statistics(model, state)
    missing = [f"{name} (missing)" for name in expected if name not in found and not allow_missing]
    unknown = [f"{name} (unknown)" for name in found if name not in expected]
    shared = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    return missing + unknown + [f"{name} (shape {found[name].shape}, not {expected[name].shape})" for name in shared]
