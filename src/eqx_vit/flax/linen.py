"""The linen module: parameters, statistics and the dropout stream live in the parent's tree. Needs flax."""

import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float, PyTree

from eqx_vit.flax.arguments import read_training
from eqx_vit.flax.layout import Batch, read_channels
from eqx_vit.functional import call, check_images, transform
from eqx_vit.layers.config import no_type_check
from eqx_vit.registry import AnyConfig


class LinenModule(linen.Module):
    """A model of this library as a `flax.linen.Module`.

    `train=True`, or `deterministic=False`, makes dropout active, from the stream `dropout`, which it then needs, and
    BatchNorm update the collection `batch_stats`, which the caller then has to make mutable. By default neither is.
    """

    config: AnyConfig

    @no_type_check
    def __call__(
        self, images: Batch, train: bool | None = None, deterministic: bool | None = None
    ) -> Float[Array, "batch classes"]:
        """Logits of (batch, classes)."""
        return self._run("__call__", images, read_training(train, deterministic))

    @no_type_check
    def features(self, images: Batch, train: bool | None = None, deterministic: bool | None = None) -> PyTree[Array]:
        """What the model's `features` gives of each image."""
        return self._run("features", images, read_training(train, deterministic))

    @no_type_check
    def logits_pair(
        self, images: Batch, train: bool | None = None, deterministic: bool | None = None
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
        """What the model's `logits_pair` gives of each image."""
        return self._run("logits_pair", images, read_training(train, deterministic))

    @linen.compact
    @no_type_check
    def _run(self, method: str, images: Batch, train: bool | None) -> PyTree[Array]:
        axis, config = read_channels(images, self.config)
        check_images(images)
        fresh = transform(config).init(self.make_rng("params")) if self.is_initializing() else None
        if fresh is None:
            params = dict(self.variables.get("params", {}))
            state = {name: dict(self.variables.get(name, {})) for name in ("batch_stats", "buffers")}
        else:
            params, state = fresh
        params = {name: self.param(name, lambda _, tree=tree: tree) for name, tree in params.items()}
        held = {
            collection: {name: self.variable(collection, name, lambda tree=tree: tree) for name, tree in trees.items()}
            for collection, trees in state.items()
        }
        state = {name: {key: leaf.value for key, leaf in trees.items()} for name, trees in held.items()}
        training = bool(train) and not self.is_initializing()
        drops = training and any(getattr(config, name) for name in config.rates())
        key = self.make_rng("dropout") if drops else None  # flax's own error says that the stream is missing
        images = jnp.moveaxis(images, axis, -1)
        result, after = call(config, method, params, state, key, images, update_statistics=training)
        if training:
            for name, variable in held["batch_stats"].items():
                variable.value = after["batch_stats"][name]  # flax's own error says that the collection is immutable
        return result
