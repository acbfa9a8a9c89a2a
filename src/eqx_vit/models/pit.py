"""Pooling-based Vision Transformer, PiT (arXiv 2103.16302).

The idea: as in convolutional networks, the map shrinks and the channels grow with depth; between the stages of a plain
ViT a strided depthwise convolution pools the patches, and a linear map widens the class token.

Axes: tokens = class token, distillation token (if any), then rows * columns patches, row-major; dim = width of a token.
No departure from the official code (naver-ai/pit). It has no rule for other image sizes: `resize_spec` resamples the
position map as timm does for ViT.
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Conv,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    PreNormBlock,
    Stack,
    TokenLayer,
    drop_path_schedule,
    flatten_map,
    make_head,
    resize_grid,
    split_or_none,
)
from eqx_vit.layers.config import Size, check, check_heads, check_stages, no_type_check, pair, per_stage
from eqx_vit.layers.init import truncated_normal
from eqx_vit.model import FixedSizeConfig, LogitsPair, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint


class StageSizes(NamedTuple):
    """The numbers of one stage."""

    dim: int
    depth: int
    heads: int
    dim_head: int | None
    mlp_dim: int
    grid: tuple[int, int]


@no_type_check
@dataclass(frozen=True, kw_only=True)
class PiTConfig(FixedSizeConfig["PiT"]):
    """Everything that defines a PiT. One value for `heads`, `mlp_dim`, ... stands for all stages."""

    patch_size: Size
    dim: int | tuple[int, ...]  # one number: of the first stage, doubled from stage to stage
    depth: tuple[int, ...]  # blocks per stage
    heads: int | tuple[int, ...]
    mlp_dim: int | tuple[int, ...] | None = None  # None: mlp_ratio * dim
    dim_head: int | tuple[int, ...] | None = None  # None: dim // heads
    dropout: float = 0.0  # attention output, inside and after the MLP
    emb_dropout: float = 0.0  # on the patches after their positions are added, not on the class token
    stride: Size | None = None  # of the patches; None: half of patch_size
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, rising over all blocks from 0 to just under the rate
    distillation: bool = False  # a second token and head
    norm_eps: float = 1e-6

    def check(self) -> None:
        check_stages(self, len(self.depth), "depth", "dim", "heads", "mlp_dim", "dim_head")
        for sizes in self.stages:
            check(sizes.mlp_dim > 0, f"PiTConfig.mlp_ratio leaves no MLP, given {self.mlp_ratio}")
            if sizes.dim_head is None:
                check_heads(sizes.dim, sizes.heads)
        for before, after in itertools.pairwise(sizes.dim for sizes in self.stages):
            check(
                after % before == 0,
                f"dim {self.dim}: each stage's must be a multiple of the one before, for the depthwise pool; {after} "
                f"after {before} is not: use {max(after // before, 1) * before} or {(after // before + 1) * before}",
            )
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        check(
            height >= patch_height and width >= patch_width,
            f"image_size {self.image_size} is smaller than patch_size {self.patch_size}: use at least that",
        )

    @property
    def strides(self) -> tuple[int, int]:
        """(down, across) from patch to patch."""
        height, width = pair(self.patch_size)
        return (max(height // 2, 1), max(width // 2, 1)) if self.stride is None else pair(self.stride)

    @property
    def stages(self) -> tuple[StageSizes, ...]:
        """The numbers of each stage; pixels that make no whole patch are left out of its grid."""
        count = len(self.depth)
        dims = (
            tuple(self.dim * 2**stage for stage in range(count))
            if isinstance(self.dim, int)
            else per_stage(self.dim, count)
        )
        mlp_dims = (
            tuple(int(dim * self.mlp_ratio) for dim in dims) if self.mlp_dim is None else per_stage(self.mlp_dim, count)
        )
        heads, dim_heads = per_stage(self.heads, count), per_stage(self.dim_head, count)
        lengths = zip(pair(self.image_size), pair(self.patch_size), self.strides, strict=True)
        rows, columns = ((length - patch) // stride + 1 for length, patch, stride in lengths)
        grids = [(rows, columns)]
        for _ in range(count - 1):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
            grids.append((rows, columns))
        return tuple(map(StageSizes, dims, self.depth, heads, dim_heads, mlp_dims, grids))


class PoolingLayer(eqx.Module):
    """Between two stages (section 3.2): a strided depthwise convolution of the patches, a linear map of the prefix."""

    conv: Conv
    linear: Linear

    def __init__(self, dim: int, new_dim: int, *, key: PRNGKeyArray) -> None:
        conv_key, linear_key = jax.random.split(key)
        self.conv = Conv(dim, new_dim, 3, stride=2, padding=1, groups=dim, key=conv_key)
        self.linear = Linear(dim, new_dim, weight_init=None, bias_init=None, key=linear_key)

    def __call__(self, tokens: Float[Array, "tokens dim"], grid: tuple[int, int]) -> Float[Array, "new_tokens new_dim"]:
        """`grid` is (rows, columns) of the patches, which are the last tokens."""
        prefix = tokens.shape[0] - grid[0] * grid[1]
        patches = self.conv(tokens[prefix:].reshape(*grid, -1))
        return jnp.concatenate([self.linear(tokens[:prefix]), patches.reshape(-1, patches.shape[-1])])


def make_patch_embedding(config: PiTConfig, *, key: PRNGKeyArray) -> Conv:
    """The linear map of each patch, where patches overlap."""
    return Conv(config.channels, config.stages[0].dim, pair(config.patch_size), stride=config.strides, key=key)


def make_attention(config: PiTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> Attention:
    """Multi-head self-attention."""
    return Attention(
        sizes.dim,
        sizes.heads,
        head_dim=sizes.dim_head,
        qkv_bias=config.qkv_bias,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        qkv_init=None,
        projection_init=None,
        bias_init=None,
        key=key,
    )


def make_mlp(config: PiTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a block."""
    return MLP(sizes.dim, sizes.mlp_dim, dropout=config.dropout, weight_init=None, bias_init=None, key=key)


class PiT(StatelessImageModel[PiTConfig]):
    """Pooling-based Vision Transformer: one image to logits.

        step                       shape                     pit_b_224
        image                      height width channels     224 224 3
        patch embedding            rows columns dim[0]       31 31 256
        prefix + patches           tokens dim[0]             962 256
        stage i: depth[i] x block  tokens dim[i]             962 256, 257 512, 65 1024
        pool i, but for the last   new_tokens dim[i + 1]     257 512, 65 1024
        norm                       tokens dim[-1]            65 1024
        head                       num_classes               1000

    Patches overlap: rows = (height - patch height) // stride + 1, columns likewise; a pool leaves (rows + 1) // 2. A
    block is attention and MLP, pre-norm, residual. The head reads the class token; with distillation the logits are the
    mean of two heads.
    """

    patch_embedding: Conv | Embedding
    class_token: Float[Array, "prefix dim"]  # with distillation two: class, distillation
    position_embedding: Float[Array, "rows columns dim"]
    embedding_dropout: Dropout
    stages: tuple[Stack[PreNormBlock[Attention | TokenLayer]], ...]
    pools: tuple[PoolingLayer, ...]
    norm: Norm
    head: Linear | eqx.nn.Identity
    head_dist: Linear | eqx.nn.Identity | None

    def __init__(
        self,
        config: PiTConfig,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`: makes this part, as `patch_embedding(config, key=key)`; `attention`, `mlp`:
        make these, as `attention(config, sizes, key=key)`, one for each block of a stage of those `sizes`; `norm`:
        makes each norm, as `norm(dim, eps)`.
        """
        patch_key, token_key, position_key, stages_key, pools_key, head_key, head_dist_key = jax.random.split(key, 7)
        first, last = config.stages[0], config.stages[-1]
        stage_keys = jax.random.split(stages_key, len(config.stages))
        pool_keys = jax.random.split(pools_key, len(config.stages) - 1)
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.class_token = truncated_normal()(token_key, (1 + config.distillation, first.dim))
        self.position_embedding = truncated_normal()(position_key, (*first.grid, first.dim))
        self.embedding_dropout = Dropout(config.emb_dropout)

        def make_block(sizes: StageSizes, *, key: PRNGKeyArray) -> PreNormBlock[Attention | TokenLayer]:
            attention_key, mlp_key = jax.random.split(key)
            return PreNormBlock(
                attention(config, sizes, key=attention_key),
                mlp(config, sizes, key=mlp_key),
                sizes.dim,
                norm=norm,
                norm_eps=config.norm_eps,
                drop_path=config.drop_path,
            )

        self.stages = tuple(
            Stack.build(functools.partial(make_block, sizes), sizes.depth, key=stage_key)
            for sizes, stage_key in zip(config.stages, stage_keys, strict=True)
        )
        self.pools = tuple(
            PoolingLayer(before.dim, after.dim, key=pool_key)
            for (before, after), pool_key in zip(itertools.pairwise(config.stages), pool_keys, strict=True)
        )
        self.norm = norm(last.dim, config.norm_eps)
        make = functools.partial(make_head, last.dim, config.num_classes, weight_init=None, bias_init=None)
        self.head = make(key=head_key)
        self.head_dist = make(key=head_dist_key) if config.distillation else None

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """Prefix tokens, which have no position, and patches."""
        first = self.config.stages[0]
        patches = flatten_map(self.patch_embedding(image), first.grid, first.dim)
        patches = self.embedding_dropout(patches + self.position_embedding.reshape(patches.shape), key=key)
        return jnp.concatenate([self.class_token, patches])

    def encode(self, x: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None) -> Float[Array, "new_tokens new_dim"]:
        """All tokens of the last stage, class token first, after the final norm."""
        stage_keys = split_or_none(key, len(self.stages))
        # The official schedule never reaches the rate: block j of L drops with rate * j / L.
        schedules = drop_path_schedule(self.config.depth, endpoint=False)
        for stage, blocks in enumerate(self.stages):
            if stage > 0:
                x = self.pools[stage - 1](x, self.config.stages[stage - 1].grid)
            x = blocks(x, xs=(schedules[stage],), key=stage_keys[stage])
        return self.norm(x)

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits: of the one head, or the mean of the pair with a distillation token."""
        if self.head_dist is not None:
            logits, distilled = self.classify_pair(features)
            return (logits + distilled) / 2
        return self.head(features[0])

    def classify_pair(self, features: Float[Array, "tokens dim"]) -> LogitsPair:
        """(class logits, distillation logits), each of its token."""
        if self.head_dist is None:
            raise ValueError("this PiT has one head: a pair needs a config with distillation=True")
        return self.head(features[0]), self.head_dist(features[1])

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each stage's last block."""
        (height, width), prefix = self.config.strides, len(self.class_token)
        return [
            FeaturePoint(
                f"stages.{stage}",
                sizes.dim,
                (height * 2**stage, width * 2**stage),
                (-1,),
                grid=sizes.grid,
                prefix=prefix,
            )
            for stage, sizes in enumerate(self.config.stages)
        ]

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head reads the prefix tokens alone."""
        point = self.feature_points(height, width)[-1]
        return point._replace(module=f"{point.module}.norm1")

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block of each stage."""
        return [
            AttentionPoint(f"stages.{stage}.attention", sizes.grid, len(self.class_token))
            for stage, sizes in enumerate(self.config.stages)
        ]

    def resize_spec(self, image_size: Size) -> tuple[PiTConfig, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change: the position map, resampled."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_grid(self.position_embedding, config.stages[0].grid)}


def _preset(dim: int, depth: tuple[int, ...], heads: tuple[int, ...], patch_size: int = 16) -> PiTConfig:
    return PiTConfig(image_size=224, patch_size=patch_size, num_classes=1000, dim=dim, depth=depth, heads=heads)


_TINY = _preset(64, (2, 6, 4), (2, 4, 8))
_EXTRA_SMALL = _preset(96, (2, 6, 4), (2, 4, 8))
_SMALL = _preset(144, (2, 6, 4), (3, 6, 12))
_BASE = _preset(256, (3, 6, 4), (4, 8, 16), patch_size=14)

PRESETS: dict[str, PiTConfig] = {
    "pit_ti_224": _TINY,  # 4,847,272
    "pit_xs_224": _EXTRA_SMALL,  # 10,618,888
    "pit_s_224": _SMALL,  # 23,461,912
    "pit_b_224": _BASE,  # 73,764,840
    "pit_ti_distilled_224": replace(_TINY, distillation=True),  # 5,104,336
    "pit_xs_distilled_224": replace(_EXTRA_SMALL, distillation=True),  # 11,003,984
    "pit_s_distilled_224": replace(_SMALL, distillation=True),  # 24,039,056
    "pit_b_distilled_224": replace(_BASE, distillation=True),  # 74,790,096
}

WEIGHTS: dict[str, Source] = {name: Source(hub=f"timm/{name}.in1k") for name in PRESETS}
