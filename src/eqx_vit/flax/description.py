"""The linen-shaped description: `init`, `apply` and their like over plain dicts of arrays; no flax needed."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from eqx_vit.flax.arguments import COLLECTIONS, Method, Mutable, read_method, read_mutable, read_training
from eqx_vit.flax.layout import Batch, read_channels
from eqx_vit.flax.rngs import Rngs, dropout_key, params_key
from eqx_vit.functional import NestedDict, NestedMapping, call, check_images, from_dicts, to_dicts, transform
from eqx_vit.layers.batch_norm import SingleValueError
from eqx_vit.layers.config import no_type_check
from eqx_vit.model import ImageModel
from eqx_vit.registry import MODELS, AnyConfig, AnyModel

if TYPE_CHECKING:
    from flax import linen

Logits: TypeAlias = Float[Array, "batch classes"]


class Description:
    """What every class of `eqx_vit.flax` has besides the fields of its config.

    An instance is a frozen description, like a linen module: it holds no arrays. Variables are plain nested dicts:
    `{"params": ...}`, with `batch_stats` for BatchNorm and `buffers` for arrays that are not trained, where the model
    has them. The number of channels is read off the images.
    """

    if TYPE_CHECKING:  # a class has the constructor of its config, which type checkers do not see

        def __init__(self, **fields: object) -> None: ...

    @functools.cached_property
    def config(self) -> AnyConfig:
        """The library's config of the same fields."""
        # The nearest class that is a config: one may be a subclass of another.
        row = next((row for kind in type(self).__mro__ for row in MODELS.values() if row.config is kind), None)
        if row is None:
            raise ValueError("Description is what the classes of eqx_vit.flax share: use one, such as eqx_vit.flax.ViT")
        return row.config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(row.config)})

    @no_type_check
    def init(
        self,
        rngs: Rngs,
        images: Batch | jax.ShapeDtypeStruct,
        train: bool | None = None,
        *,
        deterministic: bool | None = None,
    ) -> NestedDict:
        """Fresh variables: the same ones with and without `train`.

        **Arguments:** `rngs`: one key, or a dict with the stream `params`; `images`: only the shape counts.

        **Raises:** `ValueError` for a missing stream, or images that the config does not take.
        """
        read_training(train, deterministic)
        _, config = read_channels(images, self.config)
        return join_variables(*transform(config).init(params_key(rngs)))

    @no_type_check
    def lazy_init(
        self,
        rngs: Rngs,
        images: Batch | jax.ShapeDtypeStruct,
        train: bool | None = None,
        *,
        deterministic: bool | None = None,
    ) -> NestedDict:
        """`init`, under the name that linen has for it where `images` are a `jax.ShapeDtypeStruct`."""
        return self.init(rngs, images, train, deterministic=deterministic)

    @no_type_check
    def init_with_output(
        self, rngs: Rngs, images: Batch, train: bool | None = None, *, deterministic: bool | None = None
    ) -> tuple[Logits, NestedDict]:
        """(logits, variables); a stream `dropout` in `rngs` makes dropout active."""
        variables = self.init(rngs, images, train, deterministic=deterministic)
        streams = rngs if isinstance(rngs, Mapping) else None
        # Mutable, as all collections are to linen's `init`; the updates are no fresh variables.
        logits, _ = self.apply(
            variables,
            images,
            train,
            rngs=streams,
            mutable=["batch_stats"] if read_training(train, deterministic) else [],
            deterministic=deterministic,
        )
        return logits, variables

    @overload
    def apply(
        self,
        variables: NestedMapping,
        images: Batch,
        train: bool | None = None,
        *,
        rngs: Rngs | None = None,
        mutable: Literal[False] = False,
        deterministic: bool | None = None,
        method: None = None,
    ) -> Logits: ...
    @overload
    def apply(
        self,
        variables: NestedMapping,
        images: Batch,
        train: bool | None = None,
        *,
        rngs: Rngs | None = None,
        mutable: Mutable,
        deterministic: bool | None = None,
        method: None = None,
    ) -> tuple[Logits, NestedDict]: ...
    @overload
    def apply(
        self,
        variables: NestedMapping,
        images: Batch,
        train: bool | None = None,
        *,
        rngs: Rngs | None = None,
        mutable: Mutable = False,
        deterministic: bool | None = None,
        method: Method,
    ) -> PyTree[Array]: ...
    @no_type_check
    def apply(
        self,
        variables: NestedMapping,
        images: Batch,
        train: bool | None = None,
        *,
        rngs: Rngs | None = None,
        mutable: Mutable = False,
        deterministic: bool | None = None,
        method: Method | None = None,
        capture_intermediates: bool = False,
    ) -> Logits | tuple[Logits, NestedDict] | PyTree[Array]:
        """Logits of (batch, classes), or `(logits, updates)` where `mutable` is given.

        **Arguments:**

        - `images`: (batch, height, width, channels); channels-first batches are taken where only that reading fits.
        - `rngs`: a dropout key (or a dict with the stream `dropout`) makes dropout active.
        - `mutable`: naming `batch_stats` (or True, for all) makes BatchNorm use and update the batch statistics. One
            image that gives a BatchNorm one value a channel, which has no variance, leaves them as they are.
        - `train`: True turns both on, False neither; `deterministic` is its opposite.
        - `method`: `"features"` or `"logits_pair"`, whose results come in place of the logits.
        - `capture_intermediates`: linen's; refused where it is not False.

        **Raises:** `ValueError` for variables that are not this model's (naming each path), for images that the config
        does not take, for a missing stream, and for `train=True` on a BatchNorm model without mutable `batch_stats`, or
        on one value a channel.
        """
        if capture_intermediates is not False:
            raise ValueError(
                "this form captures no intermediates: give method='features', or call the steps of the native model, "
                "model, state = v.to_equinox(variables)"
            )
        training = read_training(train, deterministic)
        axis, config = read_channels(images, self.config)
        check_images(images)
        params, state = split_variables(variables)
        named = read_mutable(mutable)
        statistics = "batch_stats" in named and training is not False
        if training and state["batch_stats"] and not statistics:
            raise ValueError("training updates BatchNorm's statistics: add mutable=['batch_stats']")
        key = None if training is False else dropout_key(rngs)
        if training and key is None and any(getattr(config, name) for name in config.rates()):
            raise ValueError("dropout is active and rngs has no stream 'dropout': give rngs={'dropout': key}")
        images = jnp.moveaxis(images, axis, -1)
        run = functools.partial(call, config, read_method(method, config), params, state, key, images)
        try:
            result, after = run(update_statistics=statistics)
        except SingleValueError:
            # vit-flax's README gives LeViT one image without a word of training: then the running statistics serve.
            if training:
                raise
            result, after = run(update_statistics=False)
        if mutable is False:
            return result
        return result, {name: tree for name, tree in join_variables(params, after).items() if name in named}

    @no_type_check
    def bind(self, variables: NestedMapping, *, rngs: Rngs | None = None) -> "Bound":
        """This description with its variables, to be called on images."""
        split_variables(variables)
        return Bound(self, variables, rngs)

    @no_type_check
    def tabulate(
        self,
        rngs: Rngs,
        images: Batch | jax.ShapeDtypeStruct,
        train: bool | None = None,
        *,
        deterministic: bool | None = None,
    ) -> str:
        """A table of every variable: path, shape, dtype and size, with the total of each collection."""
        variables = jax.eval_shape(lambda: self.init(rngs, images, train, deterministic=deterministic))
        lines = [f"{type(self).__name__}"]
        for name, tree in variables.items():
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            lines.append(f"{name}: {sum(leaf.size for _, leaf in leaves):,}")
            for path, leaf in leaves:
                dotted = jax.tree_util.keystr(path, simple=True, separator=".")
                lines.append(f"  {dotted:<64} {leaf.shape!s:<20} {leaf.dtype.name:<10} {leaf.size:>12,}")
        return "\n".join(lines)

    @no_type_check
    def to_equinox(self, variables: NestedMapping) -> tuple[AnyModel, eqx.nn.State]:
        """The native model, in training mode, and its state, with the arrays of `variables`.

        **Raises:** `ValueError` for variables that are not this model's.
        """
        return from_dicts(self.config, *split_variables(variables))

    @no_type_check
    def from_equinox(self, model: AnyModel, state: eqx.nn.State) -> NestedDict:
        """The variables of a native model: the inverse of `to_equinox`.

        **Raises:** `ValueError` for a model of another config, or one whose arrays are not those of its config.
        """
        if not isinstance(model, ImageModel) or not isinstance(state, eqx.nn.State):
            given = f"a {type(model).__name__} and a {type(state).__name__}"
            raise ValueError(f"from_equinox takes a model and its state, as eqx_vit.create returns them, given {given}")
        if model.config != self.config:
            raise ValueError(f"the model's config is {model.config}, this description's {self.config}")
        params, rest = to_dicts(model, state)
        from_dicts(self.config, params, rest)
        return join_variables(params, rest)

    @no_type_check
    def as_linen(self) -> "linen.Module":
        """A true `flax.linen.Module` with `__call__(images, train=False)`, to be a submodule of others; needs flax."""
        from eqx_vit.flax.linen import LinenModule

        return LinenModule(self.config)


@no_type_check
@dataclasses.dataclass(frozen=True)
class Bound:
    """A description with its variables."""

    description: Description
    variables: NestedMapping
    rngs: Rngs | None

    @no_type_check
    def __call__(self, images: Batch, train: bool | None = None, *, deterministic: bool | None = None) -> Logits:
        variables, rngs = self.variables, self.rngs
        return self.description.apply(variables, images, train, rngs=rngs, deterministic=deterministic)

    def unbind(self) -> tuple[Description, NestedMapping]:
        """(description, variables)."""
        return self.description, self.variables


@functools.cache
def make_description(name: str, config: type[AnyConfig]) -> type[Description]:
    """The class of an architecture, called `name`: the fields of its config with `init` and `apply`."""
    text = f"`{name}` with `init` and `apply`; the fields are those of `{config.__name__}`."
    return type(name, (Description, config), {"__doc__": text, "__module__": "eqx_vit.flax"})


@no_type_check
def split_variables(variables: NestedMapping) -> tuple[NestedDict, NestedDict]:
    """(params, state) as `transform` has them, as plain dicts.

    **Raises:** `ValueError` for what holds no `params`, or for a collection that no model of this library has.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = list(variables) if isinstance(variables, Mapping) else f"a {type(variables).__name__}"
        raise ValueError(f"variables must be a dict with the collection 'params', as init returns it; given {given}")
    unknown = [name for name in variables if name not in COLLECTIONS]
    if unknown:
        raise ValueError(f"unknown collections in variables: {unknown}; known are {COLLECTIONS}")
    params, *state = (_make_plain(variables.get(name, {})) for name in COLLECTIONS)
    return params, dict(zip(COLLECTIONS[1:], state, strict=True))


def join_variables(params: NestedMapping, state: NestedMapping) -> NestedDict:
    """Variables of (params, state), without the collections that are empty."""
    return {name: tree for name, tree in {"params": params, **state}.items() if tree}


def _make_plain(tree: PyTree) -> PyTree:
    return {name: _make_plain(node) for name, node in tree.items()} if isinstance(tree, Mapping) else tree
