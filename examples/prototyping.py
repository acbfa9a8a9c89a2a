"""Swap the attention of ViT for one of your own, and be told at once, by axis name, that a shape is wrong.

    python examples/prototyping.py

Takes about 15 seconds on a CPU. Prints the error of a first attempt that forgets to put the heads side by side again,
then the falling loss of a few training steps with the mended attention.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from beartype import beartype
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

import eqx_vit
from eqx_vit.layers import Linear, Stack

typechecked = jaxtyped(typechecker=beartype)


class CosineAttention(eqx.Module):
    """Attention between unit-length queries and keys, with a learned temperature per head."""

    qkv: Linear
    projection: Linear
    temperature: Array
    merged: bool  # False is the first attempt

    def __init__(self, dim, heads, merged, *, key):
        qkv_key, projection_key = jax.random.split(key)
        self.qkv = Linear(dim, 3 * dim, key=qkv_key)
        self.projection = Linear(dim, dim, key=projection_key)
        self.temperature = jnp.full(heads, 10.0)
        self.merged = merged

    @typechecked
    def __call__(self, tokens: Float[Array, "tokens dim"], *, key=None) -> Float[Array, "tokens dim"]:
        heads = self.temperature.shape[0]
        query, keys, value = jnp.moveaxis(self.qkv(tokens).reshape(tokens.shape[0], 3, heads, -1), 1, 0)
        query, keys = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, keys))
        scores = jnp.einsum("qhd,khd->hqk", query, keys) * self.temperature[:, None, None]
        attended = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), value)
        return self.projection(attended.reshape(tokens.shape)) if self.merged else attended


def with_attention(model, merged, key):
    """The model with its stack of attentions replaced; `Stack.build` draws one for each block."""
    config = model.config
    fresh = Stack.build(lambda key: CosineAttention(config.dim, config.heads, merged, key=key), config.depth, key=key)
    return eqx.tree_at(lambda model: model.blocks.block.attention, model, fresh.block)


@eqx.filter_jit
def step(model, optimiser_state, images, labels):
    def loss(model):
        logits, _ = eqx_vit.forward(model, state, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = eqx.filter_value_and_grad(loss)(model)
    updates, optimiser_state = optimiser.update(gradients, optimiser_state)
    return eqx.apply_updates(model, updates), optimiser_state, value


config = eqx_vit.ViTConfig(image_size=16, patch_size=4, num_classes=4, dim=32, depth=2, heads=4, mlp_dim=64)
model, state = eqx_vit.create(config, key=jax.random.key(0))
images = jax.random.normal(jax.random.key(1), (32, 16, 16, 3))
labels = jnp.arange(32) % 4

try:
    with_attention(model, merged=False, key=jax.random.key(2))(images[0])
except TypeCheckError as error:
    print("The first attempt:", *str(error).splitlines()[:4], sep="\n    ")

model = with_attention(model, merged=True, key=jax.random.key(2))
optimiser = optax.adam(3e-3)
optimiser_state = optimiser.init(eqx_vit.trainable(model))
for number in range(60):
    model, optimiser_state, value = step(model, optimiser_state, images, labels)
    if number % 20 == 0 or number == 59:
        print(f"step {number:2d}  loss {value:.3f}")
