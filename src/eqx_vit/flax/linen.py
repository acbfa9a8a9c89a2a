"""The linen module: parameters, statistics and the dropout stream live in the parent's tree. Needs flax."""

import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float

from eqx_vit.flax.layout import Batch, read_channels
from eqx_vit.functional import transform
from eqx_vit.layers.config import no_type_check
from eqx_vit.registry import AnyConfig


class LinenModule(linen.Module):
    """A model of this library as a `flax.linen.Module`.

    `train=True` makes dropout active, from the stream `dropout`, which it then needs, and BatchNorm update
    `batch_stats` where the caller made that collection mutable.
    """

    config: AnyConfig

    @linen.compact
    @no_type_check
    def __call__(self, images: Batch, *, train: bool) -> Float[Array, "batch classes"]:
        """Logits of (batch, classes)."""
        axis, config = read_channels(images, self.config)
        init, apply = transform(config)
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
        training = train and not self.is_initializing()
        updating = training and self.is_mutable_collection("batch_stats")
        drops = training and any(getattr(config, name) for name in config.rates())
        key = self.make_rng("dropout") if drops else None  # flax's own error says that the stream is missing
        images = jnp.moveaxis(images, axis, -1)
        logits, after = apply(params, state, key, images, update_statistics=updating)
        if updating:
            for name, variable in held["batch_stats"].items():
                variable.value = after["batch_stats"][name]
        return logits
