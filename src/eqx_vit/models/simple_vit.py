"""SimpleViT (arXiv 2205.01580): the plain ViT baseline for ImageNet-1k.

The idea: a ViT without frills trains as well as the tuned ones: positions are a fixed sine-cosine table, and the answer
is the mean of the patches, not a class token.

    image                     height width channels
    patch embedding           rows columns dim           rows = height / patch height, columns = width / patch width
    + positions               tokens dim                 tokens = rows * columns, row-major
    depth x block             tokens dim                 attention and MLP, pre-norm, residual
    norm                      tokens dim
    pool                      dim                        the mean of the tokens
    head                      num_classes                linear, or (the official checkpoints) after a tanh layer

Axes: tokens = rows * columns, and first a class token with pool="cls"; dim = width of a token. With the fixed table a
model takes images of any multiple of the patch size. No departure from the official code (google-research/big_vision).
"""

import math
import typing
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Dropout,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Stack,
    attend,
    gelu_tanh,
    image_door,
    merge_heads,
    resize_grid_corners,
    sincos_2d,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair
from eqx_vit.layers.init import constant, lecun_normal, normal, xavier_uniform
from eqx_vit.models.source import INCEPTION_MEAN, INCEPTION_STD, Source

_EPS = 1e-6  # Flax's default


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class SimpleViTConfig:
    """Everything that defines a SimpleViT. `image_size` and `patch_size` in pixels, one number or (height, width)."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int
    depth: int
    heads: int
    mlp_dim: int | None = None  # None: 4 * dim
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # after the positions, after the attention, inside and after the MLP
    pool: Literal["mean", "cls", "map", "first"] = "mean"  # map: a learned query attends to the tokens
    learned_positions: bool = False  # a trained table instead of the fixed one
    representation_size: int | None = None  # a tanh layer before the head; the official S/16 has one as wide as dim

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "channels", "dim_head")
        check_positive(self, "representation_size")
        check_rates(self, "dropout")
        check(self.num_classes >= 0, f"SimpleViTConfig.num_classes must not be negative, given {self.num_classes}")
        check_multiple("image_size", self.image_size, self.patch_size)
        check(
            self.dim_head is not None or self.dim % self.heads == 0,
            f"dim {self.dim} is not a multiple of heads {self.heads}: change one, or give dim_head",
        )
        check(
            self.learned_positions or (self.dim % 4 == 0 and self.dim >= 8),
            f"the sine-cosine table needs a dim that is a multiple of 4 and at least 8, given {self.dim}: change it, "
            "or give learned_positions=True",
        )

    @property
    def grid(self):
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def inner(self):
        """Width of all heads together."""
        return self.heads * (self.dim_head or self.dim // self.heads)

    @property
    def hidden(self):
        """Width inside the MLP."""
        return self.mlp_dim or 4 * self.dim

    def check_image_size(self, height, width):
        check_multiple("the image's size", (height, width), self.patch_size)
        check(
            not self.learned_positions or (height, width) == pair(self.image_size),
            f"this SimpleViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or "
            f"the model with eqx_vit.resize(model, ({height}, {width}))",
        )


class Block(eqx.Module):
    """Attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: Attention
    attention_dropout: Dropout
    norm2: LayerNorm
    mlp: MLP

    def __init__(self, config: SimpleViTConfig, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.dim, _EPS)
        self.attention = Attention(
            config.dim,
            config.heads,
            head_dim=config.dim_head,
            # The official code has q, k and v apart: the fans are those of one of them.
            qkv_init=xavier_uniform(config.dim, config.inner),
            projection_init=xavier_uniform(config.inner, config.dim),
            key=attention_key,
        )
        # After the branch, not inside the module: the attention weights themselves are never dropped.
        self.attention_dropout = Dropout(config.dropout)
        self.norm2 = LayerNorm(config.dim, _EPS)
        self.mlp = _mlp(config, config.dropout, key=mlp_key)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, mlp_key = split_or_none(key)
        tokens = tokens + self.attention_dropout(self.attention(self.norm1(tokens)), key=attention_key)
        return tokens + self.mlp(self.norm2(tokens), key=mlp_key)


class AttentionPool(eqx.Module):
    """A learned query gathers the tokens, and an MLP follows (the official code's MAP head)."""

    probe: Float[Array, "1 dim"]
    query: Linear
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: Linear
    norm: LayerNorm
    mlp: MLP
    heads: int = eqx.field(static=True)

    def __init__(self, config: SimpleViTConfig, *, key: PRNGKeyArray) -> None:
        probe_key, query_key, key_value_key, projection_key, mlp_key = jax.random.split(key, 5)
        dim, inner = config.dim, config.inner
        weight_init = xavier_uniform(dim, inner)
        self.probe = xavier_uniform(1, dim)(probe_key, (1, dim))
        self.query = Linear(dim, inner, weight_init=weight_init, key=query_key)
        self.key_value = Linear(dim, 2 * inner, weight_init=weight_init, key=key_value_key)
        self.projection = Linear(inner, dim, weight_init=weight_init, key=projection_key)
        self.norm = LayerNorm(dim, _EPS)
        self.mlp = _mlp(config, 0.0, key=mlp_key)
        self.heads = config.heads

    def __call__(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, " dim"]:
        (query,) = split_heads(self.query(self.probe), 1, self.heads)
        keys, value = split_heads(self.key_value(tokens), 2, self.heads)
        pooled = self.projection(merge_heads(attend(query, keys, value)))
        return (pooled + self.mlp(self.norm(pooled)))[0]


class SimpleViT(eqx.Module):
    """SimpleViT: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: PatchEmbedding
    class_token: Float[Array, "1 dim"] | None
    position_embedding: Float[Array, "positions dim"] | None
    embedding_dropout: Dropout
    blocks: Stack
    norm: LayerNorm
    attention_pool: AttentionPool | None
    pre_logits: Linear | None
    head: Linear | eqx.nn.Identity
    config: SimpleViTConfig = eqx.field(static=True)

    def __init__(self, config: SimpleViTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, position_key, blocks_key, pool_key, pre_logits_key, head_key = jax.random.split(key, 6)
        dim, patch_size = config.dim, pair(config.patch_size)
        self.patch_embedding = PatchEmbedding(
            patch_size,
            config.channels,
            dim,
            weight_init=lecun_normal(math.prod(patch_size) * config.channels),
            bias_init=constant(0.0),
            key=patch_key,
        )
        self.class_token = jnp.zeros((1, dim)) if config.pool == "cls" else None
        positions = (math.prod(config.grid), dim)
        table = normal(1 / math.sqrt(dim))
        self.position_embedding = table(position_key, positions) if config.learned_positions else None
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = Stack.build(lambda key: Block(config, key=key), config.depth, key=blocks_key)
        self.norm = LayerNorm(dim, _EPS)
        self.attention_pool = AttentionPool(config, key=pool_key) if config.pool == "map" else None
        width = config.representation_size
        self.pre_logits = (
            None if width is None else Linear(dim, width, weight_init=lecun_normal(dim), key=pre_logits_key)
        )
        self.head = (
            Linear(width or dim, config.num_classes, weight_init=constant(0.0), key=head_key)  # zero, officially
            if config.num_classes
            else eqx.nn.Identity()
        )
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens after the final norm, the class token (with pool="cls") first."""
        embedding_key, blocks_key = split_or_none(key)
        patches = self.patch_embedding(image)
        rows, columns, dim = patches.shape
        if self.position_embedding is None:
            positions = sincos_2d(rows, columns, dim).astype(patches.dtype)
        else:
            positions = self.position_embedding.reshape(patches.shape)
        tokens = (patches + positions).reshape(-1, dim)
        if self.class_token is not None:
            tokens = jnp.concatenate([self.class_token, tokens])
        tokens = self.embedding_dropout(tokens, key=embedding_key)
        return self.norm(self.blocks(tokens, key=blocks_key))

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        tokens = self.features(image, key=key)
        if self.attention_pool is not None:
            pooled = self.attention_pool(tokens)
        else:
            pooled = jnp.mean(tokens, axis=0) if self.config.pool == "mean" else tokens[0]
        return self.head(pooled if self.pre_logits is None else jnp.tanh(self.pre_logits(pooled)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[SimpleViTConfig, dict[str, Array]]:
        """The config for another image size, and a learned table resampled as big_vision does it."""
        config = replace(self.config, image_size=image_size)
        if self.position_embedding is None:
            return config, {}
        grid = self.position_embedding.reshape(*self.config.grid, -1)
        return config, {"position_embedding": resize_grid_corners(grid, config.grid).reshape(-1, config.dim)}


def _mlp(config: SimpleViTConfig, dropout: float, *, key: PRNGKeyArray) -> MLP:
    return MLP(
        config.dim,
        config.hidden,
        activation=gelu_tanh,
        dropout=dropout,
        weight_init=xavier_uniform(config.dim, config.hidden),
        bias_init=normal(1e-6),
        key=key,
    )


def _preset(dim: int, depth: int, heads: int, patch_size: int) -> SimpleViTConfig:
    return SimpleViTConfig(
        image_size=224,
        patch_size=patch_size,
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=4 * dim,
    )


_SMALL = _preset(384, 12, 6, 16)
_OFFICIAL_SMALL = replace(_SMALL, representation_size=384)

PRESETS: dict[str, SimpleViTConfig] = {
    "simple_vit_mu16": _preset(32, 1, 2, 16),  # 70,376
    "simple_vit_ti16": _preset(192, 12, 3, 16),  # 5,679,400
    "simple_vit_s16": _SMALL,  # 21,974,632
    "simple_vit_s32": _preset(384, 12, 6, 32),  # 22,859,368
    "simple_vit_m16": _preset(512, 12, 8, 16),  # 38,736,360
    "simple_vit_b16": _preset(768, 12, 12, 16),  # 86,415,592
    "simple_vit_b32": _preset(768, 12, 12, 32),  # 88,185,064
    "simple_vit_l16": _preset(1024, 24, 16, 16),  # 304,123,880
    "simple_vit_h14": _preset(1280, 32, 16, 14),  # 631,715,560
    "simple_vit_s16_i1k_90ep": _OFFICIAL_SMALL,  # 22,122,472
    "simple_vit_s16_i1k_150ep": _OFFICIAL_SMALL,  # 22,122,472
    "simple_vit_s16_i1k_300ep": _OFFICIAL_SMALL,  # 22,122,472
}


def _source(epochs: int) -> Source:
    file = f"vit_s16_i1k_{epochs}ep.npz"
    return Source(
        hub=f"https://storage.googleapis.com/big_vision/{file}",
        layout="official",
        file=file,
        mean=INCEPTION_MEAN,
        std=INCEPTION_STD,
        interpolation="bilinear",  # nearest to TensorFlow's "area", which the official code uses
        crop=0.875,
    )


WEIGHTS: dict[str, Source] = {f"simple_vit_s16_i1k_{epochs}ep": _source(epochs) for epochs in (90, 150, 300)}
