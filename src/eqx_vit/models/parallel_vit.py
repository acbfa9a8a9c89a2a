"""Parallel ViT (arXiv 2203.09795, "Three things everyone should know about Vision Transformers").

The idea: pairs of layers run side by side instead of in turn. Half the depth, the same parameters, about the same
accuracy, and more work at once. `ParallelViTHMLP` also has the paper's hMLP stem, which suits masked pre-training: it
cuts patches in three steps that never mix two patches. The stem has BatchNorm, hence a class of its own, with state.

Axes: tokens = class token + rows * columns; dim = width of a token. Every branch has its own norm and its own scale. No
departure from the official code (facebookresearch/deit) and timm's `ParallelThingsBlock`; `prefix_positions` and
`drop_path_ramp` select between them (official: False, False; timm: True, True). `class_token=False` and `pool_norm` are
timm's; its registers, distillation token, `qk_norm` and `pre_norm`, which `ViTConfig` has, are left out here.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    BatchNorm,
    Dropout,
    DropPath,
    Embedding,
    LayerNorm,
    LayerScale,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    PatchEmbedding,
    Stack,
    TokenLayer,
    add_branch,
    drop_path_schedule,
    flatten_map,
    gelu,
    make_head,
    make_layer_scale,
    pool_tokens,
    resize_table,
    split_or_none,
)
from eqx_vit.layers.config import Size, check, check_heads, no_type_check, pair
from eqx_vit.layers.init import truncated_normal
from eqx_vit.model import Model, PatchGridConfig, StatefulImageModel, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint, points_of_blocks

HMLP_CUTS = (4, 2, 2)

Layer = TypeVar("Layer", bound=TokenLayer)


@no_type_check
@dataclass(frozen=True, kw_only=True)
class ParallelConfig(PatchGridConfig[Model]):
    """What both configurations hold."""

    dim: int
    depth: int  # of blocks: with two branches a depth of 18 holds the layers of a plain ViT of 36
    heads: int
    mlp_dim: int
    num_parallel_branches: int = 2
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches, the class token left out
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    drop_path: float = 0.0  # stochastic depth, drawn for each branch
    drop_path_ramp: bool = False  # from 0 to the rate over depth (timm), or the same everywhere
    layer_scale: float | None = None  # start of the factors on the branches
    class_token: bool = True
    prefix_positions: bool = False  # True: the table has an entry for the class token too (timm)
    pool_norm: bool = False  # norm after the pool instead of before (timm with pool="mean")
    qkv_bias: bool = True
    norm_eps: float = 1e-6  # of the LayerNorms

    def check(self) -> None:
        if self.dim_head is None:
            check_heads(self.dim, self.heads)
        check(
            self.class_token or self.pool == "mean",
            "class_token=False needs pool='mean': there is no token to read",
        )


@no_type_check
@dataclass(frozen=True, kw_only=True)
class ParallelViTConfig(ParallelConfig["ParallelViT"]):
    """Everything that defines a ParallelViT."""


@no_type_check
@dataclass(frozen=True, kw_only=True)
class ParallelViTHMLPConfig(ParallelConfig["ParallelViTHMLP"]):
    """Everything that defines a ParallelViTHMLP: the same fields, with patches of 16 and `dim` a multiple of 4."""

    def check(self) -> None:
        super().check()
        check(
            pair(self.patch_size) == (16, 16),
            f"the hMLP stem cuts patches of 16 (by {HMLP_CUTS}), given patch_size {self.patch_size}: use 16, or "
            "ParallelViTConfig",
        )
        check(self.dim % 4 == 0, f"the hMLP stem needs dim to be a multiple of 4, given {self.dim}")


EitherConfig: TypeAlias = ParallelViTConfig | ParallelViTHMLPConfig


class HMLPStem(eqx.nn.StatefulLayer):
    """Hierarchical MLP stem (section 5): non-overlapping cuts with BatchNorm after each and GELU between them."""

    cuts: tuple[PatchEmbedding, ...]
    norms: tuple[BatchNorm, ...]

    def __init__(self, channels: int, dim: int, *, key: PRNGKeyArray) -> None:
        widths = (channels, dim // 4, dim // 4, dim)
        cut_keys = jax.random.split(key, len(HMLP_CUTS))
        self.cuts = tuple(
            PatchEmbedding((size, size), before, after, key=cut_key)
            for size, before, after, cut_key in zip(HMLP_CUTS, widths[:-1], widths[1:], cut_keys, strict=True)
        )
        self.norms = tuple(BatchNorm(width) for width in widths[1:])

    def __call__(
        self, image: Float[Array, "height width channels"], state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "rows columns dim"], State]:
        """`key` is not used."""
        x, state = self.norms[0](self.cuts[0](image), state)
        for cut, norm in zip(self.cuts[1:], self.norms[1:], strict=True):
            x, state = norm(cut(gelu(x)), state)
        return x, state


def make_patch_embedding(config: ParallelViTConfig, *, key: PRNGKeyArray) -> PatchEmbedding:
    """The linear map of each patch."""
    return PatchEmbedding(pair(config.patch_size), config.channels, config.dim, key=key)


def make_attention(config: EitherConfig, *, key: PRNGKeyArray) -> Attention:
    """Multi-head self-attention."""
    return Attention(
        config.dim, config.heads, head_dim=config.dim_head, qkv_bias=config.qkv_bias, dropout=config.dropout, key=key
    )


def make_mlp(config: EitherConfig, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a branch."""
    return MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=key)


class Branch(eqx.Module, Generic[Layer]):
    """Norm, layer, scale: one of the attentions, or of the MLPs, that run side by side."""

    norm: Norm
    layer: Layer
    layer_scale: LayerScale | eqx.nn.Identity
    drop_path: DropPath

    def __init__(self, layer: Layer, config: EitherConfig, norm: MakeNorm) -> None:
        self.norm = norm(config.dim, config.norm_eps)
        self.layer = layer
        self.layer_scale = make_layer_scale(config.dim, config.layer_scale)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        layer_key, path_key = split_or_none(key)
        branch = self.layer_scale(self.layer(self.norm(tokens), key=layer_key))
        return self.drop_path(branch, drop_scale, key=path_key)


class Block(eqx.Module):
    """All attentions read the same tokens and are added to them; then all MLPs (section 3)."""

    attentions: Stack[Branch[Attention | TokenLayer]]
    mlps: Stack[Branch[MLP | TokenLayer]]

    def __init__(
        self,
        config: EitherConfig,
        attention: MakeTokenLayer,
        mlp: MakeTokenLayer,
        norm: MakeNorm,
        *,
        key: PRNGKeyArray,
    ) -> None:
        attentions_key, mlps_key = jax.random.split(key)

        def make_branch(make: MakeTokenLayer, *, key: PRNGKeyArray) -> Branch[TokenLayer]:
            return Branch(make(config, key=key), config, norm)

        branches = config.num_parallel_branches
        self.attentions = Stack.build(functools.partial(make_branch, attention), branches, key=attentions_key)
        self.mlps = Stack.build(functools.partial(make_branch, mlp), branches, key=mlps_key)

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        attentions_key, mlps_key = split_or_none(key)
        tokens = add_branch(
            tokens, jnp.sum(self.attentions.side_by_side(tokens, drop_scale, key=attentions_key), axis=0)
        )
        return add_branch(tokens, jnp.sum(self.mlps.side_by_side(tokens, drop_scale, key=mlps_key), axis=0))


class Encoder(eqx.Module):
    """What both models do with the patches: class token, positions, blocks, norm and pool."""

    class_token: Float[Array, "1 dim"] | None
    position_embedding: Float[Array, "positions dim"]
    embedding_dropout: Dropout
    blocks: Stack[Block]
    norm: Norm
    prefix_positions: bool = eqx.field(static=True)
    drop_path_ramp: bool = eqx.field(static=True)
    pool: Literal["cls", "mean"] = eqx.field(static=True)
    pool_norm: bool = eqx.field(static=True)

    def __init__(
        self,
        config: EitherConfig,
        attention: MakeTokenLayer,
        mlp: MakeTokenLayer,
        norm: MakeNorm,
        *,
        key: PRNGKeyArray,
    ) -> None:
        token_key, position_key, blocks_key = jax.random.split(key, 3)
        rows, columns = config.grid
        positions = rows * columns + (config.class_token and config.prefix_positions)
        self.class_token = truncated_normal()(token_key, (1, config.dim)) if config.class_token else None
        self.position_embedding = truncated_normal()(position_key, (positions, config.dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        make_block = functools.partial(Block, config, attention, mlp, norm)
        self.blocks = Stack.build(make_block, config.depth, key=blocks_key)
        self.norm = norm(config.dim, config.norm_eps)
        self.prefix_positions = config.prefix_positions
        self.drop_path_ramp = config.drop_path_ramp
        self.pool, self.pool_norm = config.pool, config.pool_norm

    def embed(
        self, patches: Float[Array, "patches dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """Class token and patches, with their positions."""
        if self.class_token is None:
            tokens = patches + self.position_embedding
        elif self.prefix_positions:
            tokens = jnp.concatenate([self.class_token, patches]) + self.position_embedding
        else:
            tokens = jnp.concatenate([self.class_token, patches + self.position_embedding])
        return self.embedding_dropout(tokens, key=key)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        (schedule,) = drop_path_schedule([len(self.blocks)])
        scales = schedule if self.drop_path_ramp else jnp.ones(len(self.blocks))
        tokens = self.blocks(tokens, xs=(scales,), key=key)
        return tokens if self.pool_norm else self.norm(tokens)

    def read(self, features: Float[Array, "tokens dim"]) -> Float[Array, " dim"]:
        """What the head takes."""
        pooled = pool_tokens(features, self.pool, prefix=0 if self.class_token is None else 1)
        return self.norm(pooled) if self.pool_norm else pooled

    def feature_points(self, config: EitherConfig) -> list[FeaturePoint]:
        """The output of each block."""
        return points_of_blocks(
            "encoder.blocks",
            config.depth,
            config.dim,
            config.patch_size,
            config.grid,
            prefix=0 if self.class_token is None else 1,
            norm=None if self.pool_norm else self.norm,
        )

    def cam_point(self, config: EitherConfig) -> FeaturePoint:
        """The input of the last block."""
        *_, before, last = (self.feature_points(config)[0], *self.feature_points(config))
        return before if config.depth > 1 else last._replace(module="encoder.embedding_dropout", block=())

    def attention_points(self, config: EitherConfig) -> list[AttentionPoint]:
        """The attentions of each block."""
        prefix = 0 if self.class_token is None else 1
        return [AttentionPoint("encoder.blocks.attentions.layer", config.grid, prefix, self.pool == "cls")]


class ParallelViT(StatelessImageModel[ParallelViTConfig]):
    """Parallel ViT: one image to logits.

        step                   shape                  vit_small_patch16_18x2_224
        image                  height width channels  224 224 3
        patch embedding        rows columns dim       14 14 384
        class token + patches  tokens dim             197 384
        depth x block          tokens dim             197 384
        norm                   tokens dim             197 384
        pool                   dim                    384
        head                   num_classes            1000

    rows = height / patch height, columns = width / patch width. A block adds the sum of all its attentions, then the
    sum of all its MLPs. The pool is the class token, or the mean of the patches; the norm may follow it.
    """

    patch_embedding: PatchEmbedding | Embedding
    encoder: Encoder
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: ParallelViTConfig,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`, `attention`, `mlp`: make these parts, as `attention(config, key=key)`, an
        attention and an MLP for each branch; `norm`: makes each norm, as `norm(dim, eps)`.
        """
        patch_key, encoder_key, head_key = jax.random.split(key, 3)
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.encoder = Encoder(config, attention, mlp, norm, key=encoder_key)
        self.head = make_head(config.dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """Class token and patches, with their positions."""
        patches = flatten_map(self.patch_embedding(image), self.config.grid, self.config.dim)
        return self.encoder.embed(patches, key=key)

    def encode(self, x: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm (unless that one follows the pool)."""
        return self.encoder(x, key=key)

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits."""
        return self.head(self.encoder.read(features))

    def resize_spec(self, image_size: Size) -> tuple[ParallelViTConfig, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as timm does it."""
        config = replace(self.config, image_size=image_size)
        table = resize_table(self.encoder.position_embedding, self.config.grid, config.grid)
        return config, {"encoder.position_embedding": table}

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        return self.encoder.feature_points(self.config)

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attentions read: of their output the head may read the class token alone."""
        return self.encoder.cam_point(self.config)

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attentions of each block."""
        return self.encoder.attention_points(self.config)


class ParallelViTHMLP(StatefulImageModel[ParallelViTHMLPConfig]):
    """Parallel ViT with the hMLP stem: one image and the BatchNorm state to logits and state.

        step                   shape                  deit_small_patch16_18x2_LS_hmlp
        image                  height width channels  224 224 3
        hMLP stem              rows columns dim       14 14 384
        class token + patches  tokens dim             197 384
        depth x block          tokens dim             197 384
        norm                   tokens dim             197 384
        pool                   dim                    384
        head                   num_classes            1000

    The stem cuts by 4, 2 and 2 pixels, each cut with BatchNorm: rows = height / 16, columns = width / 16. The rest is
    that of `ParallelViT`.
    """

    patch_embedding: HMLPStem
    encoder: Encoder
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: ParallelViTHMLPConfig,
        *,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `attention`, `mlp`: make these parts, as `attention(config, key=key)`, one for each branch;
        `norm`: makes each norm but those of the stem, as `norm(dim, eps)`.
        """
        patch_key, encoder_key, head_key = jax.random.split(key, 3)
        self.config = config
        self.patch_embedding = HMLPStem(config.channels, config.dim, key=patch_key)
        self.encoder = Encoder(config, attention, mlp, norm, key=encoder_key)
        self.head = make_head(config.dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        """Class token and patches, with their positions; and the state."""
        patches, state = self.patch_embedding(image, state)
        return self.encoder.embed(flatten_map(patches, self.config.grid, self.config.dim), key=key), state

    def encode(
        self, x: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        """All tokens, the class token first, after the final norm (unless it follows the pool); the state as it was."""
        return self.encoder(x, key=key), state

    def classify(self, features: Float[Array, "tokens dim"], state: State) -> tuple[Float[Array, " classes"], State]:
        """Logits, and the state as it was."""
        return self.head(self.encoder.read(features)), state

    def resize_spec(self, image_size: Size) -> tuple[ParallelViTHMLPConfig, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as timm does it."""
        config = replace(self.config, image_size=image_size)
        table = resize_table(self.encoder.position_embedding, self.config.grid, config.grid)
        return config, {"encoder.position_embedding": table}

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        return self.encoder.feature_points(self.config)

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attentions read: of their output the head may read the class token alone."""
        return self.encoder.cam_point(self.config)

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attentions of each block."""
        return self.encoder.attention_points(self.config)


def _preset(
    dim: int, depth: int, *, branches: int = 2, heads: int | None = None, patch_size: int = 16
) -> ParallelViTConfig:
    return ParallelViTConfig(
        image_size=224,
        patch_size=patch_size,
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=dim // 64 if heads is None else heads,
        mlp_dim=4 * dim,
        num_parallel_branches=branches,
    )


_SMALL = _preset(384, 18)
_BASE = _preset(768, 18)
_HUGE = _preset(1280, 26, heads=16, patch_size=14)
_SMALL_36 = _preset(384, 36, branches=1)  # in turn, not parallel: what the paper compares with
_BASE_36 = _preset(768, 36, branches=1)


def _timm(config: ParallelViTConfig) -> ParallelViTConfig:
    return replace(config, layer_scale=1e-5, prefix_positions=True, drop_path_ramp=True)


def _hmlp(dim: int, heads: int) -> ParallelViTHMLPConfig:
    return ParallelViTHMLPConfig(
        image_size=224,
        patch_size=16,
        num_classes=1000,
        dim=dim,
        depth=18,
        heads=heads,
        mlp_dim=4 * dim,
        layer_scale=1e-4,
    )


PRESETS: dict[str, ParallelViTConfig] = {
    "vit_small_patch16_18x2_224": _timm(_SMALL),  # 64,665,448
    "vit_base_patch16_18x2_224": _timm(_BASE),  # 256,731,880
    "vit_small_patch16_36x1_224": _timm(_SMALL_36),  # 64,665,448
    "deit_small_patch16_18x2": _SMALL,  # 64,637,416
    "deit_small_patch16_18x2_LS": replace(_SMALL, layer_scale=1e-4),  # 64,665,064
    "deit_base_patch16_18x2": _BASE,  # 256,675,816
    "deit_base_patch16_18x2_LS": replace(_BASE, layer_scale=1e-4),  # 256,731,112
    "deit_huge_patch14_26x2_LS": replace(_HUGE, layer_scale=1e-4),  # 1,025,726,440
    "deit_small_patch16_36": _SMALL_36,  # 64,637,416
    "deit_small_patch16_36_LS": replace(_SMALL_36, layer_scale=1e-4),  # 64,665,064
    "deit_base_patch16_36": _BASE_36,  # 256,675,816
    "deit_base_patch16_36_LS": replace(_BASE_36, layer_scale=1e-4),  # 256,731,112
}

# The official code has the stem but names no model with it.
HMLP_PRESETS: dict[str, ParallelViTHMLPConfig] = {
    "deit_small_patch16_18x2_LS_hmlp": _hmlp(384, 6),  # 64,560,424
    "deit_base_patch16_18x2_LS_hmlp": _hmlp(768, 12),  # 256,890,472
}

WEIGHTS: dict[str, Source] = {}  # none were released
HMLP_WEIGHTS: dict[str, Source] = {}
