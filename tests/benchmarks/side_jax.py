"""The JAX side: our models, and a plain Flax ViT as the peer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from calls import CALLS
from sides import Measured, Side

import eqx_vit
from eqx_vit.counting import multiply_adds_in


def our_config(architecture: str, setting: str) -> Any:
    call, row = CALLS[architecture], eqx_vit.MODELS[architecture]
    return row.config(**call.arguments) if setting == "seed" else row.presets[call.preset]


def image_size(architecture: str, setting: str) -> int:
    if setting == "seed":
        return CALLS[architecture].image_size
    size = getattr(our_config(architecture, setting), "image_size", 224)
    return size if isinstance(size, int) else size[0]


def ours(architecture: str, setting: str, dtype: str) -> Side:
    return _side(eqx_vit.transform(our_config(architecture, setting)), image_size(architecture, setting), dtype)


def flax_vit(setting: str, dtype: str) -> Side:
    """ViT as a Flax user writes it, a Python loop over the blocks."""
    config, size = our_config("vit", setting), image_size("vit", setting)
    model = FlaxViT(config.patch_size, config.dim, config.depth, config.heads, config.mlp_dim, config.dropout)

    @jax.jit
    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((1, size, size, 3)))["params"], {}

    def apply(params: Any, state: Any, key: Any, images: Any, *, update_statistics: bool = False) -> Any:
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, images, train=key is not None, rngs=rngs), state

    return _side(eqx_vit.functional.Transformed(init, apply), size, dtype)


class FlaxViT(nn.Module):
    patch: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = nn.Conv(self.dim, (self.patch, self.patch), (self.patch, self.patch), padding="VALID")(images)
        x = x.reshape(x.shape[0], -1, self.dim)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.dim))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = drop(x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])))
        for _ in range(self.depth):
            y = nn.MultiHeadDotProductAttention(self.heads, dropout_rate=self.dropout, deterministic=not train)
            x = x + drop(y(nn.LayerNorm()(x)))
            y = drop(nn.gelu(nn.Dense(self.mlp_dim)(nn.LayerNorm()(x)), approximate=False))
            x = x + drop(nn.Dense(self.dim)(y))
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def _side(model: Any, size: int, dtype: str) -> Side:
    key = jax.random.key(0)
    params, state = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, model.init(key)
    )
    infer = jax.jit(lambda params, state, images: model.apply(params, state, None, images)[0])
    step = jax.jit(lambda *arrays: _train_step(model.apply, *arrays), donate_argnums=(0, 1, 2))

    def forward(batch: int) -> Measured:
        images = jax.random.normal(key, (batch, size, size, 3), dtype=dtype)
        return lambda: jax.block_until_ready(infer(params, state, images))

    def training(batch: int) -> Measured:
        images = jax.random.normal(key, (batch, size, size, 3), dtype=dtype)
        labels = jnp.arange(batch)
        held = [jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, state), ADAMW.init(params)]

        def run() -> None:
            held[:] = jax.block_until_ready(step(*held, images, labels, key))

        return run

    def matmul(size: int) -> Measured:
        x = jax.random.normal(key, (size, size), dtype=dtype)
        product = jax.jit(jnp.matmul)
        return lambda: jax.block_until_ready(product(x, x))

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Side(count, forward, training, matmul, peak_memory)


ADAMW = optax.adamw(1e-4, weight_decay=0.05)


def _train_step(apply: Any, params: Any, state: Any, moments: Any, images: Any, labels: Any, key: Any) -> Any:
    def loss(params: Any) -> Any:
        logits, after = apply(params, state, key, images, update_statistics=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
        return jnp.mean(losses), after

    gradients, after = jax.grad(loss, has_aux=True)(params)
    updates, moments = ADAMW.update(gradients, moments, params)
    return optax.apply_updates(params, updates), after, moments


def peak_memory() -> int:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def work(architecture: str, setting: str, kind: str) -> int:
    """The multiply-adds of our forward or training step for one image, from its jaxpr."""
    model = eqx_vit.transform(our_config(architecture, setting))
    size = image_size(architecture, setting)
    batch = 2  # BatchNorm trains on no fewer
    key, images, labels = jax.random.key(0), jnp.zeros((batch, size, size, 3)), jnp.zeros(batch, dtype=int)
    params, state = jax.eval_shape(model.init, key)
    if kind == "forward":
        forward = jax.make_jaxpr(lambda params, state, images: model.apply(params, state, None, images))
        return multiply_adds_in(forward(params, state, images).jaxpr) // batch
    step = jax.make_jaxpr(lambda *arrays: _train_step(model.apply, *arrays))
    return multiply_adds_in(step(params, state, jax.eval_shape(ADAMW.init, params), images, labels, key).jaxpr) // batch


SIDES: dict[str, Callable[[str, str, str], Side]] = {
    "eqx_vit": ours,
    "flax": lambda _, setting, dtype: flax_vit(setting, dtype),
}
