"""Hypothesis-test a variant of your own, with the helpers of this library's test suite.

    python examples/properties.py          # or: pytest examples/properties.py

Takes about 10 seconds. Prints how many random configurations held; nothing is compiled, only shapes are computed.
"""

import functools
import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from hypothesis import given, settings, strategies as st
from jaxtyping import Array, Float

from eqx_vit.layers import MLP, LayerNorm, Linear, PatchEmbedding, Stack
from eqx_vit.layers.config import pair
from eqx_vit.model import PatchGridConfig, StatelessImageModel
from eqx_vit.testing import shapes


@dataclass(frozen=True, kw_only=True)
class MixerConfig(PatchGridConfig["Mixer"]):
    """A patch model without attention: each block mixes the patches, then the channels."""

    dim: int
    depth: int


class Block(eqx.Module):
    norm: LayerNorm
    patch_mlp: MLP
    channel_mlp: MLP

    def __init__(self, config, *, key):
        patch_key, channel_key = jax.random.split(key)
        patches = math.prod(config.grid)
        self.norm = LayerNorm(config.dim, 1e-6)
        self.patch_mlp = MLP(patches, 2 * patches, key=patch_key)
        self.channel_mlp = MLP(config.dim, 2 * config.dim, key=channel_key)

    def __call__(self, tokens: Float[Array, "tokens dim"], *, key=None) -> Float[Array, "tokens dim"]:
        tokens = tokens + self.patch_mlp(self.norm(tokens).T).T
        return tokens + self.channel_mlp(tokens)


class Mixer(StatelessImageModel[MixerConfig]):
    patch_embedding: PatchEmbedding
    blocks: Stack[Block]
    head: Linear

    def __init__(self, config, *, key):
        patch_key, blocks_key, head_key = jax.random.split(key, 3)
        self.config = config
        self.patch_embedding = PatchEmbedding(pair(config.patch_size), config.channels, config.dim, key=patch_key)
        self.blocks = Stack.build(functools.partial(Block, config), config.depth, key=blocks_key)
        self.head = Linear(config.dim, config.num_classes, key=head_key)

    def embed(self, image, *, key):
        return self.patch_embedding(image).reshape(-1, self.config.dim)

    def encode(self, x, *, key):
        return self.blocks(x, key=key)

    def classify(self, features):
        return self.head(jnp.mean(features, axis=0))


sides = st.tuples(st.integers(1, 8), st.integers(1, 8))


@settings(deadline=None, max_examples=60)
@given(grid=sides, patch_size=sides, dim=st.integers(1, 32), depth=st.integers(1, 4), channels=st.integers(1, 4))
def test_shapes(grid, patch_size, dim, depth, channels):
    size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = MixerConfig(image_size=size, patch_size=patch_size, num_classes=5, dim=dim, depth=depth, channels=channels)
    assert shapes(Mixer, config, size) == ((grid[0] * grid[1], dim), (5,))


if __name__ == "__main__":
    test_shapes()
    print("60 random configurations: the shapes of features and logits are as they should be")
