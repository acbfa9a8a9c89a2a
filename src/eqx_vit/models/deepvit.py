"""DeepViT (arXiv 2103.11886): a vision transformer that goes deeper, by re-attention.

The idea: in deep layers the attention maps of successive blocks grow alike. Re-attention makes new ones out of the maps
of all heads: a learned map from heads to heads after the softmax, then BatchNorm, and nothing is renormalised.

Axes: tokens = 1 + rows * columns; dim = width of a token; heads, queries, keys = the axes of the attention maps.
No departure from the official code (zhoudaquan/dvit_repo).
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    BatchNorm,
    Conv,
    Dropout,
    DropPath,
    Embedding,
    LayerNorm,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    OutputProjection,
    PatchEmbedding,
    Stack,
    TokenLayer,
    add_branch,
    attention_scores,
    attention_values,
    attention_weights,
    drop_path_schedule,
    flatten_map,
    make_head,
    merge_heads,
    pool_tokens,
    resize_table,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import Size, check, check_heads, check_multiple, no_type_check, pair, shorten
from eqx_vit.layers.init import fan_in_uniform, truncated_normal
from eqx_vit.model import PatchGridConfig, StatefulImageModel
from eqx_vit.models.source import INCEPTION_MEAN, INCEPTION_STD, Source
from eqx_vit.points import AttentionPoint, FeaturePoint, points_of_blocks

STEM_WIDTH = 64


@no_type_check
@dataclass(frozen=True, kw_only=True)
class DeepViTConfig(PatchGridConfig["DeepViT"]):
    """Everything that defines a DeepViT."""

    MAY_BE_ZERO = ("re_attention_depth", "re_attention_indices")

    dim: int
    depth: int  # of all blocks together
    heads: int
    mlp_dim: int
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches, the class token left out
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # attention weights (before the heads are mixed), attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over depth
    re_attention_depth: int | None = None  # the last blocks, those with re-attention; None: all of them
    re_attention_indices: tuple[int, ...] | None = None  # the blocks with re-attention, from 0, where not the last
    re_attention_scale: bool = False  # the new attention maps times head_dim ** -0.5
    branch_scale: float = 1.0  # each branch reads its input times this, and its output is divided by it
    convolutional_stem: bool = False  # two convolutions before the patches are cut
    qkv_bias: bool = True
    norm_eps: float = 1e-6  # of the LayerNorms

    def check(self) -> None:
        if self.dim_head is None:
            check_heads(self.dim, self.heads)
        if self.convolutional_stem:
            check_multiple("patch_size", self.patch_size, 2)
        check(self.branch_scale > 0, f"DeepViTConfig.branch_scale must be positive, given {self.branch_scale}")
        depth, indices = self.re_attention_depth or 0, self.re_attention_indices
        check(depth <= self.depth, f"re_attention_depth {depth} must be at most depth {self.depth}")
        check(
            indices is None or self.re_attention_depth is None,
            "re_attention_depth and re_attention_indices both say which blocks have re-attention: give one",
        )
        check(
            indices is None or (indices == tuple(sorted(set(indices))) and indices[-1] < self.depth),
            f"re_attention_indices must be rising numbers from 0 to depth - 1 = {self.depth - 1}, given "
            f"{shorten(indices)}",
        )

    @property
    def head_dim(self) -> int:
        return self.dim_head or self.dim // self.heads

    @property
    def depths(self) -> tuple[int, ...]:
        """The numbers of blocks that follow each other: plain (maybe 0), with re-attention (maybe 0), plain, ..."""
        if self.re_attention_indices is None:
            re_attention = self.depth if self.re_attention_depth is None else self.re_attention_depth
            return self.depth - re_attention, re_attention
        changes = sorted({*self.re_attention_indices} ^ {index + 1 for index in self.re_attention_indices})
        ends = dict.fromkeys((*changes, self.depth))
        return tuple(end - start for start, end in itertools.pairwise((0, *ends)))


# One with BatchNorm is an `eqx.nn.StatefulLayer`: called as `attention(tokens, state, key=key)`, to (tokens, state).
AnyAttention: TypeAlias = TokenLayer | eqx.nn.StatefulLayer


class ReAttention(eqx.nn.StatefulLayer):
    """`Norm(Theta^T softmax(Q K^T / sqrt(d))) V`: Theta mixes the heads, Norm is a BatchNorm over them."""

    qkv: Linear
    mix: Linear  # Theta
    mix_norm: BatchNorm
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)
    mix_scale: float = eqx.field(static=True)

    def __init__(self, config: DeepViTConfig, *, key: PRNGKeyArray) -> None:
        qkv_key, mix_key, projection_key = jax.random.split(key, 3)
        dim, heads, inner = config.dim, config.heads, config.heads * config.head_dim
        self.qkv = Linear(dim, 3 * inner, use_bias=config.qkv_bias, key=qkv_key)
        # The official code mixes by a 1x1 convolution: it starts as convolutions do, far from the identity.
        init = fan_in_uniform(heads)
        self.mix = Linear(heads, heads, weight_init=init, bias_init=init, key=mix_key)
        self.mix_norm = BatchNorm(heads)
        self.projection = OutputProjection(inner, dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.heads = heads
        self.mix_scale = config.head_dim**-0.5 if config.re_attention_scale else 1.0

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        attention_key, projection_key = split_or_none(key)
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        weights = attention_weights(attention_scores(query, keys))
        weights = self.attention_dropout(weights, key=attention_key).astype(value.dtype)
        # Heads last, where Linear and BatchNorm work: measured faster than mixing along the first axis.
        maps, state = self.mix_norm(self.mix(jnp.moveaxis(weights, 0, -1)), state)
        attended = attention_values(jnp.moveaxis(maps * self.mix_scale, -1, 0), value)
        return self.projection(merge_heads(attended), key=projection_key), state


class Block(eqx.nn.StatefulLayer):
    """(Re-)attention and MLP, each normalised before and added after."""

    norm1: Norm
    attention: Attention | ReAttention | AnyAttention
    norm2: Norm
    mlp: MLP | TokenLayer
    drop_path: DropPath
    branch_scale: float = eqx.field(static=True)

    def __init__(self, attention: AnyAttention, mlp: TokenLayer, config: DeepViTConfig, norm: MakeNorm) -> None:
        self.norm1 = norm(config.dim, config.norm_eps)
        self.attention = attention
        self.norm2 = norm(config.dim, config.norm_eps)
        self.mlp = mlp
        self.drop_path = DropPath(config.drop_path)
        self.branch_scale = config.branch_scale

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        state: State,
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], State]:
        """`drop_scale` multiplies the rate of stochastic depth."""
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        # The norm undoes the scale but for its eps; the division then doubles the branches of DeepViT-S and -L.
        normed = self.norm1(tokens * self.branch_scale)
        if isinstance(self.attention, eqx.nn.StatefulLayer):
            branch, state = self.attention(normed, state, key=attention_key)
        else:
            branch = self.attention(normed, key=attention_key)
        tokens = add_branch(tokens, self.drop_path(branch / self.branch_scale, drop_scale, key=path1_key))
        branch = self.mlp(self.norm2(tokens * self.branch_scale), key=mlp_key)
        return add_branch(tokens, self.drop_path(branch / self.branch_scale, drop_scale, key=path2_key)), state


class Stem(eqx.nn.StatefulLayer):
    """Two convolutions, each with BatchNorm and ReLU; the first halves the image."""

    conv1: Conv
    norm1: BatchNorm
    conv2: Conv
    norm2: BatchNorm

    def __init__(self, channels: int, *, key: PRNGKeyArray) -> None:
        key1, key2 = jax.random.split(key)
        self.conv1 = Conv(channels, STEM_WIDTH, 7, stride=2, padding=3, use_bias=False, key=key1)
        self.norm1 = BatchNorm(STEM_WIDTH)
        self.conv2 = Conv(STEM_WIDTH, STEM_WIDTH, 3, padding=1, use_bias=False, key=key2)
        self.norm2 = BatchNorm(STEM_WIDTH)

    def __call__(
        self, image: Float[Array, "height width channels"], state: State
    ) -> tuple[Float[Array, "half_height half_width stem"], State]:
        x, state = self.norm1(self.conv1(image), state)
        x, state = self.norm2(self.conv2(jax.nn.relu(x)), state)
        return jax.nn.relu(x), state


def make_patch_embedding(config: DeepViTConfig, *, key: PRNGKeyArray) -> PatchEmbedding:
    """The linear map of each patch, of the image or of what the stem makes of it."""
    height, width = pair(config.patch_size)
    if config.convolutional_stem:
        return PatchEmbedding((height // 2, width // 2), STEM_WIDTH, config.dim, key=key)
    return PatchEmbedding((height, width), config.channels, config.dim, key=key)


def make_attention(config: DeepViTConfig, *, key: PRNGKeyArray) -> Attention:
    """Multi-head self-attention."""
    return Attention(
        config.dim, config.heads, head_dim=config.dim_head, qkv_bias=config.qkv_bias, dropout=config.dropout, key=key
    )


def make_mlp(config: DeepViTConfig, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a block."""
    return MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=key)


class DeepViT(StatefulImageModel[DeepViTConfig]):
    """DeepViT: one image and the BatchNorm state to logits and state.

        step                   shape                  deepvit_S
        image                  height width channels  224 224 3
        stem                   height/2 width/2 64    112 112 64
        patch embedding        rows columns dim       14 14 396
        class token + patches  tokens dim             197 396
        plain blocks           tokens dim             197 396
        re-attention blocks    tokens dim             197 396
        later blocks           tokens dim             (none)
        norm                   tokens dim             197 396
        pool                   dim                    396
        head                   num_classes            1000

    rows = height / patch height, columns = width / patch width. Only S and L have a stem. All tokens have positions. A
    block is attention and MLP, pre-norm, residual; re-attention is in the last `re_attention_depth` of `depth`, or in
    those of `re_attention_indices`: plain and re-attention blocks then go on in turn. The pool is the class token, or
    the mean of the patches.
    """

    stem: Stem | None
    patch_embedding: PatchEmbedding | Embedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "tokens dim"]
    embedding_dropout: Dropout
    blocks: Stack[Block] | None
    re_attention_blocks: Stack[Block] | None
    later_blocks: tuple[Stack[Block], ...]  # plain, re-attention, ... in turn
    norm: Norm
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: DeepViTConfig,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = make_attention,
        re_attention: Callable[..., AnyAttention] = ReAttention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`, `attention`, `re_attention`, `mlp`: make these parts, as
        `attention(config, key=key)`, an attention for each plain block, a re-attention for each of the others, an MLP
        for both; `norm`: makes each norm but BatchNorm, as `norm(dim, eps)`.
        """
        keys = jax.random.split(key, 5 + len(config.depths))
        stem_key, patch_key, token_key, position_key, *block_keys, head_key = keys
        dim, (rows, columns) = config.dim, config.grid
        self.config = config
        self.stem = Stem(config.channels, key=stem_key) if config.convolutional_stem else None
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.class_token = truncated_normal()(token_key, (1, dim))
        self.position_embedding = truncated_normal()(position_key, (1 + rows * columns, dim))
        self.embedding_dropout = Dropout(config.emb_dropout)

        def make_block(make: Callable[..., AnyAttention], *, key: PRNGKeyArray) -> Block:
            attention_key, mlp_key = jax.random.split(key)
            return Block(make(config, key=attention_key), mlp(config, key=mlp_key), config, norm)

        makers = (functools.partial(make_block, attention), functools.partial(make_block, re_attention))
        self.blocks, self.re_attention_blocks, *later = (
            Stack.build(makers[index % 2], depth, key=blocks_key) if depth else None
            for index, (depth, blocks_key) in enumerate(zip(config.depths, block_keys, strict=True))
        )
        self.later_blocks = tuple(blocks for blocks in later if blocks is not None)
        self.norm = norm(dim, config.norm_eps)
        self.head = make_head(dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        """The class token and the patches, with their positions."""
        x = image
        if self.stem is not None:
            x, state = self.stem(x, state)
        patches = flatten_map(self.patch_embedding(x), self.config.grid, self.config.dim)
        tokens = jnp.concatenate([self.class_token, patches]) + self.position_embedding
        return self.embedding_dropout(tokens, key=key), state

    def encode(
        self, x: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        """All tokens, the class token first, after the final norm."""
        stacks = (self.blocks, self.re_attention_blocks, *self.later_blocks)
        schedules, keys = drop_path_schedule(self.config.depths), split_or_none(key, len(stacks))
        for blocks, drop_scales, blocks_key in zip(stacks, schedules, keys, strict=True):
            if blocks is not None:
                x, state = blocks.with_state(x, state, xs=(drop_scales,), key=blocks_key)
        return self.norm(x), state

    def classify(self, features: Float[Array, "tokens dim"], state: State) -> tuple[Float[Array, " classes"], State]:
        """Logits."""
        return self.head(pool_tokens(features, self.config.pool, prefix=1)), state

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        config, points = self.config, list[FeaturePoint]()
        for name, depth in self._stacks():
            points += points_of_blocks(
                name, depth, config.dim, config.patch_size, config.grid, prefix=1, norm=self.norm
            )
        return points

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head may read the class token alone."""
        point = self.feature_points(height, width)[-1]
        return point._replace(module=f"{point.module}.norm1")

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block, before its re-attention."""
        return [
            AttentionPoint(f"{name}.attention", self.config.grid, 1, self.config.pool == "cls")
            for name, _ in self._stacks()
        ]

    def _stacks(self) -> list[tuple[str, int]]:
        """(name, depth) of each stack of blocks, in order."""
        later = [(f"later_blocks.{index}", blocks) for index, blocks in enumerate(self.later_blocks)]
        stacks = [("blocks", self.blocks), ("re_attention_blocks", self.re_attention_blocks), *later]
        return [(name, len(blocks)) for name, blocks in stacks if blocks is not None]

    def resize_spec(self, image_size: Size) -> tuple[DeepViTConfig, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as timm does it."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


def _preset(dim: int, depth: int, image_size: int = 224) -> DeepViTConfig:
    return DeepViTConfig(
        image_size=image_size, patch_size=16, num_classes=1000, dim=dim, depth=depth, heads=12, mlp_dim=3 * dim
    )


def _optimised(config: DeepViTConfig, re_attention_depth: int, *, re_attention_scale: bool = False) -> DeepViTConfig:
    return replace(
        config,
        re_attention_depth=re_attention_depth,
        re_attention_scale=re_attention_scale,
        branch_scale=0.5,
        convolutional_stem=True,
    )


PRESETS: dict[str, DeepViTConfig] = {
    "deepvit_patch16_224_re_attn_16b": _preset(384, 16),  # 24,426,664
    "deepvit_patch16_224_re_attn_24b": _preset(384, 24),  # 36,261,448
    "deepvit_patch16_224_re_attn_32b": _preset(384, 32),  # 48,096,232
    "deepvit_S": _optimised(_preset(396, 16), 5, re_attention_scale=True),  # 27,312,632
    "deepvit_L": _optimised(_preset(420, 32), 12),  # 58,883,708
    "deepvit_L_384": _optimised(_preset(420, 32, 384), 12),  # 59,043,308
}


def _source(file: str) -> Source:
    url = f"https://drive.google.com/file/d/{file}"
    return Source(hub=url, layout="official", mean=INCEPTION_MEAN, std=INCEPTION_STD, license="unknown")


WEIGHTS: dict[str, Source] = {
    "deepvit_patch16_224_re_attn_24b": _source("1lPmKdNMPJq-mq-4FivqIY4JNAPoQHYxV"),
    "deepvit_patch16_224_re_attn_32b": _source("1kUBrAbAQfMT5FQJprITRxDtOE6ECZM0M"),
    "deepvit_S": _source("1evhBjla4Nth7LawW2PAXnGEcpv3YBWEC"),
    "deepvit_L": _source("1MTRm0NK_sPGRSyuD_hHJ1Zgw2diEaKLR"),
}
