"""CaiT (arXiv 2103.17239): going deeper with image transformers.

The idea: a learned scale per channel on every residual branch (LayerScale) lets very deep transformers train; the class
token enters only after the patches are done, in a few blocks of its own that leave the patches as they are.

Axes: tokens, patches = positions in the sequence, with and without the class token; dim = width of a token. No
departure from the official code (facebookresearch/deit); `layer_dropout` is its drop-path rate.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Dropout,
    Embedding,
    LayerNorm,
    LayerScale,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    OutputProjection,
    PatchEmbedding,
    PreNormBlock,
    Stack,
    TokenLayer,
    add_branch,
    attend,
    attention_scores,
    attention_values,
    attention_weights,
    flatten_map,
    make_head,
    merge_heads,
    resize_table,
    save_for_backward,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import Size, check_heads, no_type_check, pair
from eqx_vit.layers.init import truncated_normal
from eqx_vit.model import PatchGridConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint, points_of_blocks


@no_type_check
@dataclass(frozen=True, kw_only=True)
class CaiTConfig(PatchGridConfig["CaiT"]):
    """Everything that defines a CaiT."""

    dim: int
    depth: int  # blocks among the patches
    cls_depth: int = 2  # blocks of the class token
    heads: int
    mlp_dim: int
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP; never in the class blocks
    emb_dropout: float = 0.0  # after the positions are added
    layer_dropout: float = 0.0  # stochastic depth, the same for every residual among the patches
    dim_head: int | None = None  # None: dim // heads
    cls_mlp_dim: int | None = None  # MLP width of the class blocks; None: mlp_dim
    qkv_bias: bool = True
    layer_scale: float | None = None  # start of the factors on the residual branches; None: by depth, see initial_scale
    norm_eps: float = 1e-6

    def check(self) -> None:
        if self.dim_head is None:
            check_heads(self.dim, self.heads)

    @property
    def inner(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * (self.dim_head or self.dim // self.heads)

    @property
    def initial_scale(self) -> float:
        """The paper's rule: the deeper the network, the closer to zero all its residual branches start."""
        if self.layer_scale is not None:
            return self.layer_scale
        return 0.1 if self.depth <= 18 else 1e-5 if self.depth <= 24 else 1e-6


class TalkingHeadsAttention(eqx.Module):
    """Self-attention with linear maps across heads around the softmax (Shazeer et al., arXiv 2003.02436)."""

    qkv: Linear
    mix_scores: Linear  # heads to heads
    mix_weights: Linear
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: CaiTConfig, *, key: PRNGKeyArray) -> None:
        qkv_key, scores_key, weights_key, projection_key = jax.random.split(key, 4)
        self.qkv = Linear(config.dim, 3 * config.inner, use_bias=config.qkv_bias, key=qkv_key)
        self.mix_scores = Linear(config.heads, config.heads, key=scores_key)
        self.mix_weights = Linear(config.heads, config.heads, key=weights_key)
        self.projection = OutputProjection(config.inner, config.dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.heads = config.heads

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        scores = save_for_backward(attention_scores(query, keys))
        weights = attention_weights(_mix_heads(self.mix_scores, scores))
        weights = self.attention_dropout(_mix_heads(self.mix_weights, weights), key=attention_key)
        return self.projection(merge_heads(attention_values(weights, value)), key=projection_key)


def _mix_heads(linear: Linear, maps: Float[Array, "heads queries keys"]) -> Float[Array, "heads queries keys"]:
    """The linear map applied along the axis of heads, in the dtype of `maps`."""
    mixed = save_for_backward(jnp.einsum("gh,hqk->gqk", linear.weight.astype(maps.dtype), maps))
    if linear.bias is None:
        return mixed
    return mixed + jnp.broadcast_to(linear.bias.astype(maps.dtype)[:, None, None], mixed.shape)


class ClassAttention(eqx.Module):
    """Attention whose one query is the first token (section 3, equations 6 and 7)."""

    query: Linear
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: OutputProjection
    heads: int = eqx.field(static=True)

    def __init__(self, config: CaiTConfig, *, key: PRNGKeyArray) -> None:
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        self.query = Linear(config.dim, config.inner, use_bias=config.qkv_bias, key=query_key)
        self.key_value = Linear(config.dim, 2 * config.inner, use_bias=config.qkv_bias, key=key_value_key)
        self.projection = OutputProjection(config.inner, config.dim, key=projection_key)
        self.heads = config.heads

    def __call__(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, "1 dim"]:
        (query,) = split_heads(self.query(tokens[:1]), 1, self.heads)
        keys, value = split_heads(self.key_value(tokens), 2, self.heads)
        return self.projection(merge_heads(attend(query, keys, value)))


# Called as `class_attention(tokens)`, the class token first.
ClassLayer: TypeAlias = Callable[[Float[Array, "tokens dim"]], Float[Array, "1 dim"]]


class ClassBlock(eqx.Module):
    """Class attention and MLP: only the class token changes. The official code drops nothing here."""

    norm1: Norm
    attention: ClassAttention | ClassLayer
    layer_scale1: LayerScale
    norm2: Norm
    mlp: MLP
    layer_scale2: LayerScale

    def __init__(
        self, config: CaiTConfig, attention: Callable[..., ClassLayer], norm: MakeNorm, *, key: PRNGKeyArray
    ) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = norm(config.dim, config.norm_eps)
        self.attention = attention(config, key=attention_key)
        self.layer_scale1 = LayerScale(config.dim, config.initial_scale)
        self.norm2 = norm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.cls_mlp_dim or config.mlp_dim, key=mlp_key)
        self.layer_scale2 = LayerScale(config.dim, config.initial_scale)

    def __call__(
        self,
        class_token: Float[Array, "1 dim"],
        patches: Float[Array, "patches dim"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "1 dim"]:
        """The next class token. `key` is not used."""
        tokens = jnp.concatenate([class_token, patches])
        class_token = add_branch(class_token, self.layer_scale1(self.attention(self.norm1(tokens))))
        return add_branch(class_token, self.layer_scale2(self.mlp(self.norm2(class_token))))


def make_patch_embedding(config: CaiTConfig, *, key: PRNGKeyArray) -> PatchEmbedding:
    """The linear map of each patch."""
    return PatchEmbedding(pair(config.patch_size), config.channels, config.dim, key=key)


def make_mlp(config: CaiTConfig, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a block among the patches."""
    return MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=key)


class CaiT(StatelessImageModel[CaiTConfig]):
    """Class-Attention in image Transformers: one image to logits.

        step                     shape                  cait_xxs24_224
        image                    height width channels  224 224 3
        patch embedding          rows columns dim       14 14 192
        + positions              patches dim            196 192
        depth x block            patches dim            196 192
        cls_depth x class block  1 dim                  1 192
        norm                     tokens dim             197 192
        head                     num_classes            1000

    rows = height / patch height, columns = width / patch width; patches = rows * columns, tokens = 1 + patches. A block
    is talking-heads attention and MLP, pre-norm, scaled per channel, residual (equation 5). In a class block the class
    token attends to itself and the patches, and passes an MLP. The final norm is applied to both; the head reads the
    class token.
    """

    patch_embedding: PatchEmbedding | Embedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "patches dim"]
    embedding_dropout: Dropout
    blocks: Stack[PreNormBlock[TalkingHeadsAttention | TokenLayer]]
    class_blocks: Stack[ClassBlock]
    norm: Norm
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: CaiTConfig,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = TalkingHeadsAttention,
        class_attention: Callable[..., ClassLayer] = ClassAttention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`, `attention`, `class_attention`, `mlp`: make these parts, as
        `attention(config, key=key)`, an attention and an MLP for each block among the patches, a class attention for
        each block of the class token; `norm`: makes each norm, as `norm(dim, eps)`.
        """
        patch_key, token_key, position_key, blocks_key, class_blocks_key, head_key = jax.random.split(key, 6)
        dim, (rows, columns) = config.dim, config.grid
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.class_token = truncated_normal()(token_key, (1, dim))
        self.position_embedding = truncated_normal()(position_key, (rows * columns, dim))
        self.embedding_dropout = Dropout(config.emb_dropout)

        def make_block(*, key: PRNGKeyArray) -> PreNormBlock[TalkingHeadsAttention | TokenLayer]:
            attention_key, mlp_key = jax.random.split(key)
            return PreNormBlock(
                attention(config, key=attention_key),
                mlp(config, key=mlp_key),
                dim,
                norm=norm,
                norm_eps=config.norm_eps,
                drop_path=config.layer_dropout,
                layer_scale=config.initial_scale,
            )

        make_class_block = functools.partial(ClassBlock, config, class_attention, norm)
        self.blocks = Stack.build(make_block, config.depth, key=blocks_key)
        self.class_blocks = Stack.build(make_class_block, config.cls_depth, key=class_blocks_key)
        self.norm = norm(dim, config.norm_eps)
        self.head = make_head(dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "patches dim"]:
        """The patches with their positions, without the class token."""
        patches = flatten_map(self.patch_embedding(image), self.config.grid, self.config.dim)
        return self.embedding_dropout(patches + self.position_embedding, key=key)

    def encode(self, x: Float[Array, "patches dim"], *, key: PRNGKeyArray | None) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm."""
        patches = self.blocks(x, key=key)
        class_token = self.class_blocks(self.class_token, patches)
        return self.norm(jnp.concatenate([class_token, patches]))

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits, read from the class token."""
        return self.head(features[0])

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block among the patches."""
        config = self.config
        return points_of_blocks("blocks", config.depth, config.dim, config.patch_size, config.grid, norm=self.norm)

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of the class token in each of its blocks."""
        return [AttentionPoint("class_blocks.attention", self.config.grid, 1, self_attention=False)]

    def resize_spec(self, image_size: Size) -> tuple[CaiTConfig, Mapping[str, Array]]:
        """The config for another image size, and the table resampled as the official fine-tuning does it."""
        config = replace(self.config, image_size=image_size)
        table = resize_table(self.position_embedding, self.config.grid, config.grid, antialias=False)
        return config, {"position_embedding": table}


def _preset(dim: int, depth: int, heads: int, image_size: int, layer_scale: float) -> CaiTConfig:
    return CaiTConfig(
        image_size=image_size,
        patch_size=16,
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=4 * dim,
        layer_scale=layer_scale,
    )


PRESETS: dict[str, CaiTConfig] = {
    "cait_xxs24_224": _preset(192, 24, 4, 224, 1e-5),  # 11,956,264
    "cait_xxs24_384": _preset(192, 24, 4, 384, 1e-5),  # 12,029,224
    "cait_xxs36_224": _preset(192, 36, 4, 224, 1e-5),  # 17,299,720
    "cait_xxs36_384": _preset(192, 36, 4, 384, 1e-5),  # 17,372,680
    "cait_xs24_384": _preset(288, 24, 6, 384, 1e-5),  # 26,670,088
    "cait_s24_224": _preset(384, 24, 8, 224, 1e-5),  # 46,916,200
    "cait_s24_384": _preset(384, 24, 8, 384, 1e-5),  # 47,062,120
    "cait_s36_384": _preset(384, 36, 8, 384, 1e-6),  # 68,366,632
    "cait_m36_384": _preset(768, 36, 16, 384, 1e-6),  # 271,221,352
    "cait_m48_448": _preset(768, 48, 16, 448, 1e-6),  # 356,460,520
}

WEIGHTS: dict[str, Source] = {name: Source(hub=f"timm/{name}.fb_dist_in1k", crop=1.0) for name in PRESETS}
