"""The linen module: parameters, statistics and the dropout stream live in the parent's tree. Needs flax."""

from typing import Any

import jax.numpy as jnp
from flax import linen

from eqx_vit.flax.module import Module


class LinenModule(linen.Module):
    """A model of this library as a `flax.linen.Module`.

    `train=True` makes dropout live, from the stream `dropout`, which it then needs, and BatchNorm update `batch_stats`
    where the caller made that collection mutable.
    """

    description: Module

    @linen.compact
    def __call__(self, images: Any, *, train: bool) -> Any:
        """Logits of (batch, classes)."""
        images = self.description._admitted(images)
        init, apply = self.description._transformed(images)
        fresh = init(self.make_rng("params")) if self.is_initializing() else None
        if fresh is None:
            params = dict(self.variables["params"])
            state = {name: dict(self.variables.get(name, {})) for name in ("batch_stats", "buffers")}
        else:
            params, state = fresh
        params = {name: self.param(name, lambda _, tree=tree: tree) for name, tree in params.items()}
        held = {
            collection: {name: self.variable(collection, name, lambda tree=tree: tree) for name, tree in trees.items()}
            for collection, trees in state.items()
        }
        state = {name: {key: leaf.value for key, leaf in trees.items()} for name, trees in held.items()}
        updating = train and not self.is_initializing() and self.is_mutable_collection("batch_stats")
        live = train and not self.is_initializing() and self.description._has_rates()
        key = self.make_rng("dropout") if live else None  # flax's own error says that the stream is missing
        logits, after = apply(params, state, key, jnp.asarray(images), update_statistics=updating)
        if updating:
            for name, variable in held["batch_stats"].items():
                variable.value = after["batch_stats"][name]
        return logits
