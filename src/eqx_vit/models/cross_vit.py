"""CrossViT (arXiv 2103.14899): two vision transformers see one image at two patch sizes and exchange class tokens.

The idea: a small-patch branch (many narrow tokens) and a large-patch branch (few wide ones) run side by side; in each
multi-scale block the class token of a branch asks the patches of the other one, by cross-attention in linear time.

    image                      height width channels
    for each branch i:
    resample                   height_i width_i channels    image_size * image_scale[i]; as it is where sizes agree
    patch embedding            rows_i columns_i dim_i       one convolution, or three (the dagger models)
    class token + patches      tokens_i dim_i               plus a learned position table
    depth x multi-scale block:
        branch i               tokens_i dim_i               a ViT encoder over all tokens
        exchange i             tokens_i dim_i               class token: to dim_j, cross-attention with patches j, back
    norm i                     tokens_i dim_i
    pool i                     dim_i                        the class token, or the mean of the patches
    head                       num_classes                  the mean of both branches' logits

Axes: small and large = the branches 0 (`sm_`) and 1 (`lg_`); tokens_i = 1 + rows_i * columns_i; j = the other branch.
No departure from the official code (IBM/CrossViT) and timm's `CrossVit`. As there, only the first of several
cross-attentions (`cross_attn_depth` above 1) sees the patches.
"""

import functools
import itertools
import typing
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Stack,
    attend,
    gelu,
    image_door,
    merge_heads,
    resize_grid,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import (
    check,
    check_fields,
    check_multiple,
    check_positive,
    check_rates,
    pair,
    per_stage,
)
from eqx_vit.layers.init import truncated_normal
from eqx_vit.models.source import Source


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class CrossViTConfig:
    """Everything that defines a CrossViT. `sm_` is the branch of small patches, `lg_` that of large ones."""

    image_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features of both branches come out, one after the other
    sm_dim: int
    lg_dim: int
    depth: int = 3  # multi-scale blocks
    sm_patch_size: int | tuple[int, int] = 12
    sm_enc_depth: int | tuple[int, ...] = 1  # ViT blocks in a multi-scale block, or in each of them
    sm_enc_heads: int = 8
    sm_enc_mlp_dim: int = 2048
    sm_enc_dim_head: int | None = None  # None: sm_dim // sm_enc_heads
    lg_patch_size: int | tuple[int, int] = 16
    lg_enc_depth: int | tuple[int, ...] = 4
    lg_enc_heads: int = 8
    lg_enc_mlp_dim: int = 2048
    lg_enc_dim_head: int | None = None  # None: lg_dim // lg_enc_heads
    cross_attn_depth: int = 1  # 0 is 1 under the older checkpoint names, which all released models have
    cross_attn_heads: int | None = None  # None: those of the branch that is asked
    cross_attn_dim_head: int | None = None  # None: its dim // heads
    dropout: float = 0.0  # attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    channels: int = 3
    image_scale: tuple[float, float] = (1.0, 1.0)  # the image size of each branch, in multiples of image_size
    crop_scale: bool = False  # cut the centre out of a larger image instead of resampling it
    convolutional_embedding: bool = False  # three convolutions (the dagger models), for patches of 12 or 16
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over depth; the paper trains with 0.1
    qkv_bias: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "depth", "channels", "cross_attn_heads", "cross_attn_dim_head")
        for name in ("dim", "patch_size", "enc_depth", "enc_heads", "enc_mlp_dim", "enc_dim_head"):
            check_positive(self, f"sm_{name}", f"lg_{name}")
        check_rates(self, "dropout", "emb_dropout", "attention_dropout", "drop_path")
        for name in ("num_classes", "cross_attn_depth"):
            value = getattr(self, name)
            check(value >= 0, f"CrossViTConfig.{name} must not be negative, given {value}")
        check(min(self.image_scale) > 0, f"image_scale must be above 0, given {self.image_scale}")
        for name in ("sm_enc_depth", "lg_enc_depth"):
            count = len(per_stage(getattr(self, name), 1))
            check(count <= self.depth, f"CrossViTConfig.{name} has {count} values for depth={self.depth}")
        for branch, name in enumerate(("sm", "lg")):
            self._check_heads(branch, f"{name}_enc", self.heads, self.head_dims[branch])
            self._check_heads(branch, "cross_attn", self.cross_heads, self.cross_attn_dim_head)
            self._check_patches(branch, f"{name}_patch_size")

    def _check_heads(self, branch, owner, heads, head_dim):
        dim = self.dims[branch]
        check(
            head_dim is not None or dim % heads[branch] == 0,
            f"dim {dim} is not a multiple of {owner}_heads {heads[branch]}: change one, or give {owner}_dim_head",
        )

    def _check_patches(self, branch, name):
        size, patch_size = self.image_sizes[branch], self.patch_sizes[branch]
        scale = self.image_scale[branch]
        if scale == 1:
            check_multiple("image_size", self.image_size, getattr(self, name))
        elif self.convolutional_embedding:
            check_multiple(f"image_size * {scale}, the image of the branch of {name},", size, patch_size)
        check(
            min(self.grids[branch]) > 0,
            f"image_size {self.image_size} * {scale} is smaller than {name} {patch_size}: use a larger image_size",
        )
        check(
            not self.convolutional_embedding or (patch_size in ((12, 12), (16, 16)) and self.dims[branch] >= 4),
            f"convolutional_embedding=True needs patches of 12 or 16 and dims of 4 or more, given {name} {patch_size} "
            f"and dim {self.dims[branch]}",
        )

    @property
    def dims(self):
        return self.sm_dim, self.lg_dim

    @property
    def patch_sizes(self):
        return pair(self.sm_patch_size), pair(self.lg_patch_size)

    @property
    def image_sizes(self):
        """(height, width) that each branch sees."""
        # The small amount keeps 240 * (224 / 240), which is no exact float, from falling to 223.
        return tuple(tuple(int(side * scale + 1e-6) for side in pair(self.image_size)) for scale in self.image_scale)

    @property
    def grids(self):
        """(rows, columns) of each branch; what a scaled image has beyond whole patches is left out, as in timm."""
        sides = zip(self.image_sizes, self.patch_sizes, strict=True)
        return tuple((height // rows, width // columns) for (height, width), (rows, columns) in sides)

    @property
    def depths(self):
        """(small, large) ViT blocks of each multi-scale block."""
        counts = per_stage(self.sm_enc_depth, self.depth), per_stage(self.lg_enc_depth, self.depth)
        return tuple(zip(*counts, strict=True))

    @property
    def heads(self):
        return self.sm_enc_heads, self.lg_enc_heads

    @property
    def head_dims(self):
        return self.sm_enc_dim_head, self.lg_enc_dim_head

    @property
    def mlp_dims(self):
        return self.sm_enc_mlp_dim, self.lg_enc_mlp_dim

    @property
    def cross_heads(self):
        """Heads of the cross-attention with the patches of each branch."""
        return self.heads if self.cross_attn_heads is None else (self.cross_attn_heads, self.cross_attn_heads)

    def check_image_size(self, height, width):
        """Any size: each branch resamples the image to its own."""
        check(min(height, width) > 0, f"the image is empty: {(height, width)}")


class ConvPatchEmbedding(eqx.Module):
    """The dagger models' patch embedding: three convolutions with ReLU between them (section 4.1)."""

    convolutions: tuple[Conv, Conv, Conv]

    def __init__(self, patch_size: int, channels: int, dim: int, *, key: PRNGKeyArray) -> None:
        first_key, second_key, third_key = jax.random.split(key, 3)
        quarter, half = dim // 4, dim // 2
        stride, padding = (3, 0) if patch_size == 12 else (2, 1)
        self.convolutions = (
            Conv(channels, quarter, 7, stride=4, padding=3, key=first_key),
            Conv(quarter, half, 3, stride=stride, padding=padding, key=second_key),
            Conv(half, dim, 3, stride=patch_size // (4 * stride), padding=1, key=third_key),
        )

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "rows columns dim"]:
        first, second, third = self.convolutions
        return third(jax.nn.relu(second(jax.nn.relu(first(image)))))


class Embedding(eqx.Module):
    """The tokens of one branch: its image, cut and embedded, behind its class token, with positions."""

    patch_embedding: PatchEmbedding | ConvPatchEmbedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "tokens dim"]
    dropout: Dropout
    image_size: tuple[int, int] = eqx.field(static=True)
    crop: bool = eqx.field(static=True)

    def __init__(self, config: CrossViTConfig, branch: int, *, key: PRNGKeyArray) -> None:
        patch_key, token_key, position_key = jax.random.split(key, 3)
        dim, patch_size, (rows, columns) = config.dims[branch], config.patch_sizes[branch], config.grids[branch]
        self.patch_embedding = (
            ConvPatchEmbedding(patch_size[0], config.channels, dim, key=patch_key)
            if config.convolutional_embedding
            else PatchEmbedding(patch_size, config.channels, dim, key=patch_key)
        )
        self.class_token = truncated_normal()(token_key, (1, dim))
        self.position_embedding = truncated_normal()(position_key, (1 + rows * columns, dim))
        self.dropout = Dropout(config.emb_dropout)
        self.image_size = config.image_sizes[branch]
        self.crop = config.crop_scale

    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        image = fitted(image, self.image_size, crop=self.crop)
        if isinstance(self.patch_embedding, PatchEmbedding):
            rows, columns = (
                side // patch * patch for side, patch in zip(image.shape, self.patch_embedding.patch_size, strict=False)
            )
            image = image[:rows, :columns]
        patches = self.patch_embedding(image)
        tokens = jnp.concatenate([self.class_token, patches.reshape(-1, patches.shape[-1])])
        return self.dropout(tokens + self.position_embedding, key=key)


class Block(eqx.Module):
    """A ViT block of one branch: attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: CrossViTConfig, branch: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        dim = config.dims[branch]
        self.norm1 = LayerNorm(dim, config.norm_eps)
        self.attention = Attention(
            dim,
            config.heads[branch],
            head_dim=config.head_dims[branch],
            qkv_bias=config.qkv_bias,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            key=attention_key,
        )
        self.norm2 = LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(dim, config.mlp_dims[branch], dropout=config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], drop_scale: Float[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.attention(self.norm1(tokens), key=attention_key)
        tokens = tokens + self.drop_path(branch, drop_scale, key=path1_key)
        branch = self.mlp(self.norm2(tokens), key=mlp_key)
        return tokens + self.drop_path(branch, drop_scale, key=path2_key)


class CrossAttention(eqx.Module):
    """A class token asks itself and patches (equations 4 and 5); the residual is the token before the norm."""

    norm: LayerNorm
    query: Linear
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    drop_path: DropPath
    heads: int = eqx.field(static=True)

    def __init__(self, config: CrossViTConfig, branch: int, *, key: PRNGKeyArray) -> None:
        """`branch` is the one whose patches are asked."""
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        dim = config.dims[branch]
        self.heads = config.cross_heads[branch]
        inner = self.heads * (config.cross_attn_dim_head or dim // self.heads)
        self.norm = LayerNorm(dim, config.norm_eps)
        self.query = Linear(dim, inner, use_bias=config.qkv_bias, key=query_key)
        self.key_value = Linear(dim, 2 * inner, use_bias=config.qkv_bias, key=key_value_key)
        self.projection = Linear(inner, dim, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.projection_dropout = Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        token: Float[Array, "1 dim"],
        patches: Float[Array, "patches dim"],
        drop_scale: Float[Array, ""],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "1 dim"]:
        attention_key, projection_key, path_key = split_or_none(key, 3)
        normal = self.norm(jnp.concatenate([token, patches]))
        (query,) = split_heads(self.query(normal[:1]), 1, self.heads)
        keys, value = split_heads(self.key_value(normal), 2, self.heads)
        mixed = attend(query, keys, value, dropout=self.attention_dropout, dropout_key=attention_key)
        branch = self.projection_dropout(self.projection(merge_heads(mixed)), key=projection_key)
        return token + self.drop_path(branch, drop_scale, key=path_key)


class Projection(eqx.Module):
    """A class token to the other branch's width: norm, GELU, then linear."""

    norm: LayerNorm
    linear: Linear

    def __init__(self, in_dim: int, out_dim: int, norm_eps: float, *, key: PRNGKeyArray) -> None:
        self.norm = LayerNorm(in_dim, norm_eps)
        self.linear = Linear(in_dim, out_dim, key=key)

    def __call__(self, token: Float[Array, "1 in"]) -> Float[Array, "1 out"]:
        return self.linear(gelu(self.norm(token)))


class Exchange(eqx.Module):
    """The new class token of a branch: projected, fused with the other branch's patches, projected back."""

    projection: Projection
    fusion: tuple[CrossAttention, ...]
    reversion: Projection

    def __init__(self, config: CrossViTConfig, branch: int, *, key: PRNGKeyArray) -> None:
        projection_key, fusion_key, reversion_key = jax.random.split(key, 3)
        dim, other_dim = config.dims[branch], config.dims[1 - branch]
        self.projection = Projection(dim, other_dim, config.norm_eps, key=projection_key)
        fusion_keys = jax.random.split(fusion_key, max(config.cross_attn_depth, 1))
        self.fusion = tuple(CrossAttention(config, 1 - branch, key=key) for key in fusion_keys)
        self.reversion = Projection(other_dim, dim, config.norm_eps, key=reversion_key)

    def __call__(
        self,
        token: Float[Array, "1 dim"],
        patches: Float[Array, "patches other_dim"],
        drop_scale: Float[Array, ""],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "1 dim"]:
        token = self.projection(token)
        for fuse, fusion_key in zip(self.fusion, split_or_none(key, len(self.fusion)), strict=True):
            token = fuse(token, patches, drop_scale, key=fusion_key)
            patches = patches[:0]  # the official chain hands on the class token alone
        return self.reversion(token)


class MultiScaleBlock(eqx.Module):
    """Both branches' encoders, then both exchanges of class tokens, each of which sees the branches before either."""

    branches: tuple[Stack, Stack]
    exchanges: tuple[Exchange, Exchange]

    def __init__(self, config: CrossViTConfig, depths: tuple[int, int], *, key: PRNGKeyArray) -> None:
        small_key, large_key, exchange_key, back_key = jax.random.split(key, 4)
        self.branches = (
            Stack.build(lambda key: Block(config, 0, key=key), depths[0], key=small_key),
            Stack.build(lambda key: Block(config, 1, key=key), depths[1], key=large_key),
        )
        self.exchanges = (Exchange(config, 0, key=exchange_key), Exchange(config, 1, key=back_key))

    def __call__(
        self,
        tokens: tuple[Float[Array, "small_tokens small_dim"], Float[Array, "large_tokens large_dim"]],
        small_scales: Float[Array, " small_depth"],
        large_scales: Float[Array, " large_depth"],
        fusion_scale: Float[Array, ""],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "small_tokens small_dim"], Float[Array, "large_tokens large_dim"]]:
        small_key, large_key, exchange_key, back_key = split_or_none(key, 4)
        small = self.branches[0](tokens[0], scanned=(small_scales,), key=small_key)
        large = self.branches[1](tokens[1], scanned=(large_scales,), key=large_key)
        small_token = self.exchanges[0](small[:1], large[1:], fusion_scale, key=exchange_key)
        large_token = self.exchanges[1](large[:1], small[1:], fusion_scale, key=back_key)
        return jnp.concatenate([small_token, small[1:]]), jnp.concatenate([large_token, large[1:]])


class CrossViT(eqx.Module):
    """CrossViT: one image to logits. See the module's text for the shapes.

    Images of any size are taken: each branch resamples them to its own.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    embeddings: tuple[Embedding, Embedding]
    blocks: tuple[Stack, ...]  # of multi-scale blocks: one stack for each run of equal ones
    norm: tuple[LayerNorm, LayerNorm]
    head: tuple[Linear | eqx.nn.Identity, Linear | eqx.nn.Identity]
    config: CrossViTConfig = eqx.field(static=True)

    def __init__(self, config: CrossViTConfig, *, key: PRNGKeyArray) -> None:
        small_key, large_key, blocks_key, small_head_key, large_head_key = jax.random.split(key, 5)
        self.embeddings = (Embedding(config, 0, key=small_key), Embedding(config, 1, key=large_key))
        runs = equal_runs(config)
        self.blocks = tuple(
            Stack.build(functools.partial(_multi_scale_block, config, depths), len(run), key=key)
            for (depths, run), key in zip(runs, jax.random.split(blocks_key, len(runs)), strict=True)
        )
        self.norm = (LayerNorm(config.sm_dim, config.norm_eps), LayerNorm(config.lg_dim, config.norm_eps))
        self.head = (_head(config, 0, key=small_head_key), _head(config, 1, key=large_head_key))
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "small_tokens small_dim"], Float[Array, "large_tokens large_dim"]]:
        """(small, large) tokens, class token first, after the final norms."""
        small_key, large_key, *blocks_keys = split_or_none(key, 2 + len(self.blocks))
        tokens = self.embeddings[0](image, key=small_key), self.embeddings[1](image, key=large_key)
        scales = drop_scales(self.config)
        for blocks, (_, run), blocks_key in zip(self.blocks, equal_runs(self.config), blocks_keys, strict=True):
            scanned = tuple(jnp.asarray(np.stack(part)) for part in zip(*(scales[index] for index in run), strict=True))
            tokens = blocks(tokens, scanned=scanned, key=blocks_key)
        return self.norm[0](tokens[0]), self.norm[1](tokens[1])

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits: the mean of those of both branches."""
        pooled = [
            tokens[0] if self.config.pool == "cls" else jnp.mean(tokens[1:], axis=0)
            for tokens in self.features(image, key=key)
        ]
        if self.config.num_classes == 0:
            return jnp.concatenate(pooled)
        small, large = (head(features) for head, features in zip(self.head, pooled, strict=True))
        return (small + large) / 2

    def resized(self, image_size: int | tuple[int, int]) -> tuple[CrossViTConfig, dict[str, Array]]:
        """As it is, whatever the size: the official code resamples the image for each branch, never the positions."""
        return self.config, {}


def fitted(
    image: Float[Array, "height width channels"], size: tuple[int, int], *, crop: bool
) -> Float[Array, "new_height new_width channels"]:
    """The image resampled to (height, width), bicubic, not antialiased; with `crop` cut to it where it is larger."""
    height, width = image.shape[:2]
    if crop and height >= size[0] and width >= size[1]:
        top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
        return image[top : top + size[0], left : left + size[1]]
    return resize_grid(image, size, antialias=False)


def equal_runs(config: CrossViTConfig) -> list[tuple[tuple[int, int], list[int]]]:
    """The multi-scale blocks in runs of equal (small, large) depths: those depths, and the blocks' indices."""
    runs = itertools.groupby(range(config.depth), key=lambda index: config.depths[index])
    return [(depths, list(run)) for depths, run in runs]


def drop_scales(config: CrossViTConfig) -> list[tuple[np.ndarray, np.ndarray, np.floating]]:
    """For each multi-scale block, the drop-path scales of its small and large ViT blocks and of its fusions.

    One linear ramp over all of them in the official order: both branches of a block take its values from the start,
    the fusions its last. A small branch deeper than the large one, which the official code refuses, stays at the end.
    """
    total = sum(large + config.cross_attn_depth for _, large in config.depths)
    ramp = np.linspace(0, 1, total, dtype=np.float32)
    scales, start = [], 0
    for small, large in config.depths:
        count = max(small, large) + config.cross_attn_depth
        own = ramp[np.minimum(np.arange(start, start + count), total - 1)]
        scales.append((own[:small], own[:large], own[-1]))
        start += count
    return scales


def _multi_scale_block(config: CrossViTConfig, depths: tuple[int, int], key: PRNGKeyArray) -> MultiScaleBlock:
    return MultiScaleBlock(config, depths, key=key)


def _head(config: CrossViTConfig, branch: int, *, key: PRNGKeyArray) -> Linear | eqx.nn.Identity:
    return Linear(config.dims[branch], config.num_classes, key=key) if config.num_classes else eqx.nn.Identity()


def _preset(dim: int, heads: int, large_depth: int, mlp_ratio: int) -> CrossViTConfig:
    return CrossViTConfig(
        image_size=240,
        image_scale=(1.0, 224 / 240),
        num_classes=1000,
        sm_dim=dim,
        sm_enc_heads=heads,
        sm_enc_mlp_dim=mlp_ratio * dim,
        lg_dim=2 * dim,
        lg_enc_depth=large_depth,
        lg_enc_heads=heads,
        lg_enc_mlp_dim=mlp_ratio * 2 * dim,
        cross_attn_depth=0,
    )


def _dagger(config: CrossViTConfig, image_size: int = 240) -> CrossViTConfig:
    scale = {240: 224 / 240, 408: 384 / 408}[image_size]
    return replace(config, convolutional_embedding=True, image_size=image_size, image_scale=(1.0, scale))


_9, _15, _18 = _preset(128, 4, 3, 3), _preset(192, 6, 5, 3), _preset(224, 7, 6, 3)

PRESETS: dict[str, CrossViTConfig] = {
    "crossvit_tiny_240": _preset(96, 3, 4, 4),  # 7,014,800
    "crossvit_small_240": _preset(192, 6, 4, 4),  # 26,856,272
    "crossvit_base_240": _preset(384, 12, 4, 4),  # 105,025,232
    "crossvit_9_240": _9,  # 8,553,296
    "crossvit_15_240": _15,  # 27,528,464
    "crossvit_18_240": _18,  # 43,271,408
    "crossvit_9_dagger_240": _dagger(_9),  # 8,776,592
    "crossvit_15_dagger_240": _dagger(_15),  # 28,209,008
    "crossvit_18_dagger_240": _dagger(_18),  # 44,266,976
    "crossvit_15_dagger_408": _dagger(_15, 408),  # 28,500,080
    "crossvit_18_dagger_408": _dagger(_18, 408),  # 44,606,560
}

WEIGHTS: dict[str, Source] = {
    name: Source(hub=f"timm/{name}.in1k", crop=1.0 if name.endswith("408") else 0.875) for name in PRESETS
}
