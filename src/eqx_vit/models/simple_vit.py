"""SimpleViT (arXiv 2205.01580): the plain ViT baseline for ImageNet-1k.

The idea: a ViT without frills trains as well as the tuned ones: positions are a fixed sine-cosine table, and the
prediction is read from the mean of the patches, not from a class token.

Axes: tokens = rows * columns, and first a class token with pool="cls"; dim = width of a token. With the fixed table a
model takes images of any multiple of the patch size. No departure from the official code (google-research/big_vision).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    AttentionPool,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    PatchEmbedding,
    PreNormBlock,
    Stack,
    TokenLayer,
    flatten_map,
    gelu_tanh,
    make_head,
    pool_tokens,
    resize_grid_corners,
    sincos_2d,
)
from eqx_vit.layers.config import Size, check, check_heads, check_multiple, no_type_check, pair
from eqx_vit.layers.init import constant, lecun_normal, normal, xavier_uniform
from eqx_vit.model import PatchGridConfig, StatelessImageModel
from eqx_vit.models.source import INCEPTION_MEAN, INCEPTION_STD, Source
from eqx_vit.points import AttentionPoint, FeaturePoint, points_of_blocks

NORM_EPS = 1e-6  # Flax's default


@no_type_check
@dataclass(frozen=True, kw_only=True)
class SimpleViTConfig(PatchGridConfig["SimpleViT"]):
    """Everything that defines a SimpleViT."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int | None = None  # None: 4 * dim
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # after the positions, after the attention, inside and after the MLP
    pool: Literal["mean", "cls", "map", "first"] = "mean"  # map: a learned query attends to the tokens
    learned_positions: bool = False  # a trained table instead of the fixed one
    representation_size: int | None = None  # a tanh layer before the head; the official S/16 has one as wide as dim

    def check(self) -> None:
        if self.dim_head is None:
            check_heads(self.dim, self.heads)
        check(
            self.learned_positions or (self.dim % 4 == 0 and self.dim >= 8),
            f"the sine-cosine table needs a dim that is a multiple of 4 and at least 8, given {self.dim}: change it, "
            "or give learned_positions=True",
        )

    def check_image_size(self, height: int, width: int) -> None:
        """Raise `ValueError` for an image that does not split into patches, or that a learned table does not fit."""
        check_multiple("the image's size", (height, width), self.patch_size)
        if self.learned_positions:
            super().check_image_size(height, width)

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.heads * (self.dim_head or self.dim // self.heads)

    @property
    def hidden(self) -> int:
        """Width inside the MLP."""
        return self.mlp_dim or 4 * self.dim


def make_patch_embedding(config: SimpleViTConfig, *, key: PRNGKeyArray) -> PatchEmbedding:
    """The linear map of each patch."""
    patch_size = pair(config.patch_size)
    return PatchEmbedding(
        patch_size,
        config.channels,
        config.dim,
        weight_init=lecun_normal(math.prod(patch_size) * config.channels),
        bias_init=constant(0.0),
        key=key,
    )


def make_attention(config: SimpleViTConfig, *, key: PRNGKeyArray) -> Attention:
    """Multi-head self-attention."""
    return Attention(
        config.dim,
        config.heads,
        head_dim=config.dim_head,
        dropout=config.dropout,
        attention_dropout=0.0,
        # The official code has q, k and v apart: the fans are those of one of them.
        qkv_init=xavier_uniform(config.dim, config.inner),
        projection_init=xavier_uniform(config.inner, config.dim),
        key=key,
    )


def make_mlp(config: SimpleViTConfig, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a block."""
    return MLP(
        config.dim,
        config.hidden,
        activation=gelu_tanh,
        dropout=config.dropout,
        weight_init=xavier_uniform(config.dim, config.hidden),
        bias_init=normal(1e-6),
        key=key,
    )


def make_attention_pool(config: SimpleViTConfig, norm: MakeNorm, *, key: PRNGKeyArray) -> AttentionPool:
    """The learned query of pool="map" (the official code's MAP head)."""
    attention_key, mlp_key = jax.random.split(key)
    mlp = make_mlp(replace(config, dropout=0.0), key=mlp_key)
    head_dim = config.dim_head
    return AttentionPool(
        config.dim, config.heads, mlp, head_dim=head_dim, norm=norm, norm_eps=NORM_EPS, key=attention_key
    )


class SimpleViT(StatelessImageModel[SimpleViTConfig]):
    """SimpleViT: one image to logits.

        step             shape                  simple_vit_s16
        image            height width channels  224 224 3
        patch embedding  rows columns dim       14 14 384
        + positions      tokens dim             196 384
        depth x block    tokens dim             196 384
        norm             tokens dim             196 384
        pool             dim                    384
        head             num_classes            1000

    rows = height / patch height, columns = width / patch width. A block is attention and MLP, pre-norm, residual. The
    pool is the mean of the tokens; `config.pool` has the official code's others. The head is linear, or (the official
    checkpoints) follows a tanh layer.
    """

    patch_embedding: PatchEmbedding | Embedding
    class_token: Float[Array, "1 dim"] | None
    position_embedding: Float[Array, "positions dim"] | None
    embedding_dropout: Dropout
    blocks: Stack[PreNormBlock[Attention | TokenLayer]]
    norm: Norm
    attention_pool: AttentionPool | None
    pre_logits: Linear | None
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: SimpleViTConfig,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`, `attention`, `mlp`: make these parts, as `attention(config, key=key)`, an
        attention and an MLP for each block; `norm`: makes each norm, as `norm(dim, eps)`.
        """
        patch_key, position_key, blocks_key, pool_key, pre_logits_key, head_key = jax.random.split(key, 6)
        dim, width = config.dim, config.representation_size
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.class_token = jnp.zeros((1, dim)) if config.pool == "cls" else None
        table = normal(1 / math.sqrt(dim))
        positions = (math.prod(config.grid), dim)
        self.position_embedding = table(position_key, positions) if config.learned_positions else None
        self.embedding_dropout = Dropout(config.dropout)

        def make_block(*, key: PRNGKeyArray) -> PreNormBlock[Attention | TokenLayer]:
            attention_key, mlp_key = jax.random.split(key)
            layers = (attention(config, key=attention_key), mlp(config, key=mlp_key))
            return PreNormBlock(*layers, dim, norm=norm, norm_eps=NORM_EPS)

        self.blocks = Stack.build(make_block, config.depth, key=blocks_key)
        self.norm = norm(dim, NORM_EPS)
        self.attention_pool = make_attention_pool(config, norm, key=pool_key) if config.pool == "map" else None
        init = lecun_normal(dim)
        self.pre_logits = None if width is None else Linear(dim, width, weight_init=init, key=pre_logits_key)
        # Zero, as the official code starts.
        self.head = make_head(width or dim, config.num_classes, weight_init=constant(0.0), key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """The patches with their positions, after the class token of pool="cls", which has none."""
        # Not the config's: with the fixed table the image may have another size.
        grid = replace(self.config, image_size=image.shape[:2]).grid
        tokens = flatten_map(self.patch_embedding(image), grid, self.config.dim)
        if self.position_embedding is None:
            positions = sincos_2d(*grid, self.config.dim).astype(tokens.dtype).reshape(tokens.shape)
        else:
            positions = self.position_embedding
        tokens = tokens + positions
        if self.class_token is not None:
            tokens = jnp.concatenate([self.class_token, tokens])
        return self.embedding_dropout(tokens, key=key)

    def encode(self, x: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None) -> Float[Array, "tokens dim"]:
        """All tokens after the final norm, the class token (with pool="cls") first."""
        return self.norm(self.blocks(x, key=key))

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits."""
        if self.attention_pool is not None:
            pooled = self.attention_pool(features)
        else:
            pooled = pool_tokens(features, "mean" if self.config.pool == "mean" else "cls", prefix=0)
        return self.head(pooled if self.pre_logits is None else jnp.tanh(self.pre_logits(pooled)))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        config = self.config
        return points_of_blocks(
            "blocks",
            config.depth,
            config.dim,
            config.patch_size,
            config.grid,
            prefix=0 if self.class_token is None else 1,
            norm=self.norm,
        )

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head may read the class token alone."""
        return self.feature_points(height, width)[-1]._replace(module="blocks.norm1")

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block."""
        prefix = 0 if self.class_token is None else 1
        return [AttentionPoint("blocks.attention", self.config.grid, prefix, self.class_token is not None)]

    def resize_spec(self, image_size: Size) -> tuple[SimpleViTConfig, Mapping[str, Array]]:
        """The config for another image size, and a learned table resampled as big_vision does it."""
        config = replace(self.config, image_size=image_size)
        if self.position_embedding is None:
            return config, {}
        grid = self.position_embedding.reshape(*self.config.grid, -1)
        return config, {"position_embedding": resize_grid_corners(grid, config.grid).reshape(-1, config.dim)}


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
