"""The linen-shaped description: `init`, `apply` and their kin over plain dicts of arrays; no flax needed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqx_vit.flax.layout import channels_last
from eqx_vit.flax.rngs import dropout_key, params_key
from eqx_vit.models import MODELS
from eqx_vit.surface import Transformed, from_dicts, to_dicts, transform

COLLECTIONS = ("params", "batch_stats", "buffers")
Variables = dict[str, Any]


class Module:
    """What every class of `eqx_vit.flax` has besides the fields of its config.

    An instance is a frozen description, like a linen module: it holds no arrays. Variables are plain nested dicts:
    `{"params": ...}`, with `batch_stats` for BatchNorm and `buffers` for arrays that are not trained, where the model
    has them. The number of channels is read off the images.
    """

    def init(self, rngs: Any, images: Any) -> Variables:
        """Fresh variables. `rngs` is one key, or a dict with the stream `params`; of `images` only the shape counts.

        **Raises:** `ValueError` for a missing stream, or images that the config does not take.
        """
        params, state = self._transformed(self._admitted(images)).init(params_key(rngs))
        return {name: tree for name, tree in {"params": params, **state}.items() if tree}

    def lazy_init(self, rngs: Any, images: Any) -> Variables:
        """`init`, where `images` may be a `jax.ShapeDtypeStruct`."""
        return self.init(rngs, images)

    def init_with_output(self, rngs: Any, images: Any) -> tuple[Float[Array, "batch classes"], Variables]:
        """(logits, variables); a stream `dropout` in `rngs` makes dropout live."""
        variables = self.init(rngs, images)
        return self.apply(variables, images, rngs=rngs if isinstance(rngs, Mapping) else None), variables

    def apply(
        self,
        variables: Any,
        images: Any,
        *,
        rngs: Any = None,
        mutable: Any = False,
        train: bool | None = None,
        deterministic: bool | None = None,
    ) -> Any:
        """Logits of (batch, classes), or `(logits, updates)` where `mutable` is given.

        **Arguments:**

        - `images`: (batch, height, width, channels); channels-first batches are taken where only that reading fits.
        - `rngs`: a dropout key (or a dict with the stream `dropout`) makes dropout live.
        - `mutable`: naming `batch_stats` (or True, for all) makes BatchNorm use and update the batch statistics.
        - `train`: True asks for both, False for neither; `deterministic` is its opposite.

        **Raises:** `ValueError` for variables that are not this model's (naming each path), for images that the config
        does not take, for a missing stream, and for `train=True` on a BatchNorm model without mutable `batch_stats`.
        """
        if train is not None and train is deterministic:
            raise ValueError(f"train={train} and deterministic={deterministic} contradict each other: give one")
        training = train if deterministic is None else not deterministic
        images = self._admitted(images)
        params, state = split_variables(variables)
        named = mutable_collections(mutable)
        statistics = "batch_stats" in named and training is not False
        if train and state["batch_stats"] and not statistics:
            raise ValueError("train=True updates BatchNorm's statistics: add mutable=['batch_stats']")
        key = None if training is False else dropout_key(rngs)
        if training and key is None and self._has_rates():
            raise ValueError("dropout is live and rngs has no stream 'dropout': give rngs={'dropout': key}")
        transformed = self._transformed(images)
        logits, after = transformed.apply(params, state, key, images, update_statistics=statistics)
        if mutable is False:
            return logits
        return logits, {name: tree for name, tree in {"params": params, **after}.items() if tree and name in named}

    def bind(self, variables: Any, *, rngs: Any = None) -> "Bound":
        """This module with its variables, to be called on images."""
        return Bound(self, variables, rngs)

    def tabulate(self, rngs: Any, images: Any) -> str:
        """A table of every variable: path, shape, dtype and size, with the total of each collection."""
        variables = jax.eval_shape(self.init, rngs, images)
        lines = [f"{type(self).__name__}"]
        for name, tree in variables.items():
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            lines.append(f"{name}: {sum(leaf.size for _, leaf in leaves):,}")
            for path, leaf in leaves:
                dotted = jax.tree_util.keystr(path, simple=True, separator=".")
                lines.append(f"  {dotted:<64} {leaf.shape!s:<20} {leaf.dtype.name:<10} {leaf.size:>12,}")
        return "\n".join(lines)

    def to_equinox(self, variables: Any) -> tuple[Any, eqx.nn.State]:
        """The native model, in training mode, and its state, with the arrays of `variables`.

        **Raises:** `ValueError` for variables that are not this model's.
        """
        return from_dicts(self._config(), *split_variables(variables))

    def from_equinox(self, model: Any, state: eqx.nn.State) -> Variables:
        """The variables of a native model: the inverse of `to_equinox`.

        **Raises:** `ValueError` for a model of another config.
        """
        if model.config != self._config():
            raise ValueError(f"the model's config is {model.config}, this module's {self._config()}")
        params, collections = to_dicts(model, state)
        return {name: tree for name, tree in {"params": params, **collections}.items() if tree}

    def as_linen(self) -> Any:
        """A true `flax.linen.Module` with `__call__(images, *, train)`, to be a submodule of others; needs flax."""
        from eqx_vit.flax.linen import LinenModule

        return LinenModule(description=self)

    def _config(self, channels: int | None = None) -> Any:
        """The library's config of the same fields."""
        row = next(row for row in MODELS.values() if isinstance(self, row.config))
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(row.config)}
        return row.config(**(fields if channels is None else fields | {"channels": channels}))

    def _admitted(self, images: Any) -> Any:
        return channels_last(images, self._config())

    def _transformed(self, images: Any) -> Transformed:
        return transform(self._config(jnp.shape(images)[-1]))

    def _has_rates(self) -> bool:
        fields = dataclasses.fields(self._config())
        return any(getattr(self, field.name) for field in fields if "drop" in field.name and field.type is float)


@dataclasses.dataclass(frozen=True)
class Bound:
    """A module with its variables."""

    module: Module
    variables: Any
    rngs: Any

    def __call__(self, images: Any, *, train: bool | None = None, deterministic: bool | None = None) -> Any:
        return self.module.apply(self.variables, images, rngs=self.rngs, train=train, deterministic=deterministic)

    def unbind(self) -> tuple[Module, Mapping[str, Any]]:
        """(module, variables)."""
        return self.module, self.variables


def split_variables(variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, state) as `transform` has them, as plain dicts.

    **Raises:** `ValueError` for what holds no `params`, or for a collection that no model of this library has.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(f"variables must be a dict with the collection 'params', as init returns it; given {given}")
    unknown = sorted(set(variables) - set(COLLECTIONS))
    if unknown:
        raise ValueError(f"unknown collections in variables: {unknown}; known are {COLLECTIONS}")
    plain = {name: _plain(variables.get(name, {})) for name in COLLECTIONS}
    return plain["params"], {"batch_stats": plain["batch_stats"], "buffers": plain["buffers"]}


def mutable_collections(mutable: Any) -> tuple[str, ...]:
    """The collections that a `mutable` argument names: a bool, one name, or several."""
    if isinstance(mutable, bool):
        return COLLECTIONS if mutable else ()
    return (mutable,) if isinstance(mutable, str) else tuple(mutable)


def _plain(tree: Any) -> Any:
    return {name: _plain(node) for name, node in tree.items()} if isinstance(tree, Mapping) else tree
