"""A part of a model that exists, exchanged for one of the user's own."""

import difflib
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State, StateIndex
from jaxtyping import PRNGKeyArray, PyTree

from eqx_vit.arguments import check_argument
from eqx_vit.create import make_skeleton
from eqx_vit.inputs import has_mode, image_size_of
from eqx_vit.inspection.naming import map_modules, named_modules, with_fields
from eqx_vit.layers import Stack, check_key
from eqx_vit.layers.config import Size, no_type_check, pair
from eqx_vit.layers.unstacked import has_unstacked, restack, unstack
from eqx_vit.model import ImageModel
from eqx_vit.parameters import cast
from eqx_vit.registry import AnyModel

Model = TypeVar("Model", bound=AnyModel)


class Call(NamedTuple):
    """A call of a module, with shapes in place of arrays."""

    arguments: tuple[PyTree, ...]
    keywords: Mapping[str, PyTree]
    output: PyTree


@no_type_check
def replace(
    model: Model,
    path: str,
    make: Callable[..., Callable[..., Any]],
    *,
    key: PRNGKeyArray,
    state: State | None = None,
    image_size: Size | None = None,
) -> Model:
    """The model with another module in place of the one of a name: `"blocks.attention"`, `"patch_embedding"`, `"norm"`.

    The module is made by `make(key=key)`; where it stands in a stack of blocks, once for each block, from a key of its
    own. It is called with what the old one is called with, and has to return the same shapes: both are proven before
    anything is compiled. It gets the model's dtype and mode.

    **Arguments:** `path`: as `eqx_vit.observe` takes names; `state`, `image_size`: as `eqx_vit.observable` takes them.

    **Raises:** `ValueError` for a name that there is not, a module that does not take or return what the old one does
    (with the axis), and one with BatchNorm, for which the state has no place.
    """
    check_argument("replace", "model", model, ImageModel)
    check_argument("replace", "path", path, str)
    check_argument("replace", "make", make, Callable)
    check_key(key)
    if has_unstacked(model):
        return unstack(replace(restack(model), path, make, key=key, state=state, image_size=image_size))
    modules = dict(named_modules(model))
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=3, cutoff=0.4) or list(modules)[:1]
        raise ValueError(f"{type(model).__name__} has no module {path!r} to replace: did you mean {' or '.join(near)}?")
    one = eqx.filter_eval_shape(lambda key: _like(modules[path], model, make(key=key)), key)
    if any(isinstance(node, StateIndex) for node in jax.tree.leaves(one, is_leaf=_is_state_index)):
        raise ValueError(
            f"{type(one).__name__} has BatchNorm, for which the model's state has no place: register an architecture "
            "that is made with it (eqx_vit.register)"
        )
    calls = _record_calls(model, path, state, image_size)
    if not calls:
        raise ValueError(f"{path} of this {type(model).__name__} is never called: it cannot be replaced by its name")
    for call in calls:
        _check_call(path, modules[path], one, call)
    new = _like(modules[path], model, _make_stacked(make, _find_depths(model, path), key))
    return map_modules(model, {path: lambda old: new})


@no_type_check
def _like(old: eqx.Module, model: AnyModel, new: PyTree) -> PyTree:
    """The new module in the dtype of the old one, and in the mode of the model."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(old, eqx.is_inexact_array))}
    new = cast(new, dtypes.pop()) if len(dtypes) == 1 else new
    modes = [node.inference for node in jax.tree.leaves(model, is_leaf=has_mode) if has_mode(node)]
    return eqx.nn.inference_mode(new, bool(modes) and all(modes))


@eqx.filter_jit
@no_type_check
def _make_stacked(make: Callable[..., PyTree], depths: tuple[int, ...], key: PRNGKeyArray) -> PyTree:
    """`make(key=key)`, once for each place in stacks of these depths, the outermost first."""
    if not depths:
        return make(key=key)
    inner = functools.partial(_make_stacked, make, depths[1:])
    return eqx.filter_vmap(inner)(jax.random.split(key, depths[0]))


@no_type_check
def _find_depths(tree: PyTree, path: str) -> tuple[int, ...]:
    """The depths of the stacks that the module of a name is in, the outermost first."""
    depths: list[int] = []
    for name in path.split("."):
        while isinstance(tree, Stack):
            depths.append(len(tree))
            tree = tree.block
        tree = tree[int(name)] if isinstance(tree, list | tuple) else getattr(tree, name)
    return (*depths, *((len(tree),) if isinstance(tree, Stack) else ()))


@no_type_check
def _record_calls(model: AnyModel, path: str, state: State | None, image_size: Size | None) -> list[Call]:
    """Each call of the module of a name while one image goes through the model. Nothing is computed."""
    height, width = image_size_of(model.config) if image_size is None else pair(image_size)
    image = jax.ShapeDtypeStruct((height, width, model.config.channels), jnp.float32)
    state = make_skeleton(model.config)[1] if state is None else state
    calls: list[Call] = []
    recorded = map_modules(eqx.nn.inference_mode(model), {path: functools.partial(_record, log=Log(calls.append))})
    eqx.filter_eval_shape(lambda model, image, state: model(image, state), recorded, image, state)
    return calls


class Log:
    """Where calls are written down: equal to itself alone, so that no earlier trace stands for a new one."""

    def __init__(self, write: Callable[[Call], None]) -> None:
        self.write = write


@no_type_check
def _record(module: eqx.Module, log: Log) -> eqx.Module:
    return with_fields(module, _recording_class(type(module)), {"log_of_calls": log})


@functools.cache
@no_type_check
def _recording_class(kind: type[eqx.Module]) -> type[eqx.Module]:
    class Recording(kind):
        log_of_calls: Log = eqx.field(static=True, kw_only=True)

        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            output = super().__call__(*arguments, **keywords)  # pyright: ignore[reportAttributeAccessIssue]
            self.log_of_calls.write(Call(*_to_shapes((arguments, keywords, output))))
            return output

    return Recording


@no_type_check
def _to_shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if eqx.is_array(x) else x, tree)


@no_type_check
def _check_call(path: str, old: eqx.Module, new: eqx.Module, call: Call) -> None:
    """Raise `ValueError` unless the new module takes and returns what the old one does."""
    names = f"{type(new).__name__}, in place of {type(old).__name__} at {path},"
    try:
        output = eqx.filter_eval_shape(_call, new, call.arguments, call.keywords)
    except Exception as error:  # anything that a user's module raises
        reason = " ".join(str(error).split("\n--")[0].split())[:400]
        given = ", ".join([*map(_describe, call.arguments), *(f"{name}=" for name in call.keywords)])
        raise ValueError(f"{names} fails when it is called with {given}: {type(error).__name__}: {reason}") from error
    expected, found = jax.tree.flatten(call.output), jax.tree.flatten(_to_shapes(output))
    if found[1] != expected[1]:
        raise ValueError(f"{names} must return {_describe(call.output)}, and returns {_describe(output)}")
    for one, other in zip(found[0], expected[0], strict=True):
        if getattr(one, "shape", None) != getattr(other, "shape", None):
            raise ValueError(f"{names} must return {_name_axes(old, other.shape)}, and returns shape {one.shape}")


@no_type_check
def _call(module: Callable[..., PyTree], arguments: tuple[PyTree, ...], keywords: Mapping[str, PyTree]) -> PyTree:
    return module(*arguments, **keywords)


@no_type_check
def _describe(tree: PyTree) -> str:
    shapes = [str(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {', '.join(shapes)}" if shapes else repr(tree)


@no_type_check
def _name_axes(old: eqx.Module, shape: tuple[int, ...]) -> str:
    """A shape in the words of the annotation that the old module has: `tokens dim = (17, 32)`."""
    hint = typing.get_type_hints(type(old).__call__).get("return")
    axes = getattr(hint, "dim_str", "")
    return f"({', '.join(axes.split())}) = {shape}" if len(axes.split()) == len(shape) else f"shape {shape}"


@no_type_check
def _is_state_index(node: object) -> bool:
    return isinstance(node, StateIndex)
