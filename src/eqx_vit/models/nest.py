"""Nested hierarchical transformer, NesT (arXiv 2105.12723).

The idea: plain transformers inside non-overlapping blocks of the map, never across; between the stages of a hierarchy a
convolution and a max pool over the whole map let neighbouring blocks exchange information, and halve it: a quarter of
the blocks is left, each as large as before. At the top there is one.

Axes: windows = blocks of the map, row-major; positions = places inside one, row-major; dim = width of a token.
No departure from the official code (google-research/nested-transformer); beyond it, images need not be square.
timm runs the released weights with the exact GELU (`approximate_gelu=False`), which moves the logits by about 1e-4, and
its untrained variants pad the max pool on all sides (`pool_padding="symmetric"`).
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Conv,
    Dropout,
    LayerNorm,
    Linear,
    OutputProjection,
    PatchEmbedding,
    PreNormBlock,
    Stack,
    attend,
    drop_path_schedule,
    dropout_active,
    from_windows,
    gelu,
    gelu_tanh,
    kernels,
    make_head,
    max_pool,
    merge_heads,
    split_heads,
    split_or_none,
    stack_or_none,
    to_windows,
)
from eqx_vit.layers.config import Size, check, check_heads, check_multiple, check_stages, no_type_check, pair, per_stage
from eqx_vit.layers.init import constant, truncated_normal
from eqx_vit.model import PatchGridConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import FeaturePoint

_INIT = truncated_normal(0.02, sigmas=2.0)  # of every kernel and table, as Flax cuts it


class StageSizes(NamedTuple):
    """The numbers of one stage."""

    dim: int
    heads: int
    head_dim: int
    mlp_dim: int
    depth: int
    windows: int


@no_type_check
@dataclass(frozen=True, kw_only=True)
class NesTConfig(PatchGridConfig["NesT"]):
    """Everything that defines a NesT. Stages count from the finest up: many windows first, one window last."""

    RESIZABLE = False
    COUNTS = ("num_hierarchies",)

    image_size: Size  # a multiple of patch_size * 2 ** (num_hierarchies - 1)
    dim: int | tuple[int, ...]  # one number: of the first stage, times scale_dims from stage to stage
    heads: int | tuple[int, ...]  # likewise
    num_hierarchies: int  # stages
    block_repeats: int | tuple[int, ...]  # transformer blocks of each stage
    mlp_mult: float = 4.0  # MLP width, in multiples of dim
    dropout: float = 0.0  # attention output, inside and after the MLP
    dim_head: int | None = None  # None: dim // heads
    scale_dims: int = 2  # 1: the same dim and heads in all stages (the official CIFAR models)
    multi_query: bool = False  # one key and value head for all query heads (the official CIFAR models)
    qkv_bias: bool = True
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, rising over all blocks from 0 to the rate
    pool_padding: Literal["same", "symmetric"] = "same"  # of the max pool: after the map alone, or on all sides
    approximate_gelu: bool = True  # the tanh form of the official code
    norm_eps: float = 1e-6

    def check(self) -> None:
        check_stages(self, self.num_hierarchies, "num_hierarchies", "dim", "heads", "block_repeats")
        for sizes in self.stages:
            check(sizes.mlp_dim > 0, f"NesTConfig.mlp_mult leaves no MLP, given {self.mlp_mult}")
            if self.dim_head is None:
                check_heads(sizes.dim, sizes.heads)
        side = 2 ** (self.num_hierarchies - 1)
        height, width = pair(self.patch_size)
        step = side * height if isinstance(self.patch_size, int) else (side * height, side * width)
        check_multiple("image_size", self.image_size, step)

    @property
    def stages(self) -> tuple[StageSizes, ...]:
        count = self.num_hierarchies
        dims, heads = self._scale(self.dim), self._scale(self.heads)
        head_dims = (self.dim_head or dim // number for dim, number in zip(dims, heads, strict=True))
        mlp_dims = (int(dim * self.mlp_mult) for dim in dims)
        windows = (4 ** (count - 1 - stage) for stage in range(count))
        return tuple(map(StageSizes, dims, heads, head_dims, mlp_dims, per_stage(self.block_repeats, count), windows))

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of a window in tokens, the same in all stages: the last stage's whole map."""
        side, (rows, columns) = 2 ** (self.num_hierarchies - 1), self.grid
        return rows // side, columns // side

    def _scale(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        count = self.num_hierarchies
        scaled = isinstance(value, int)
        return tuple(value * self.scale_dims**stage for stage in range(count)) if scaled else per_stage(value, count)


class MultiQueryAttention(eqx.Module):
    """Attention whose heads have queries of their own, but share one head of keys and values."""

    query: Linear
    key_value: Linear  # rows: k, v
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: NesTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        dim, inner = sizes.dim, sizes.heads * sizes.head_dim
        make = functools.partial(Linear, use_bias=config.qkv_bias, weight_init=_INIT)
        self.query = make(dim, inner, key=query_key)
        self.key_value = make(dim, 2 * sizes.head_dim, key=key_value_key)
        self.projection = OutputProjection(inner, dim, dropout=config.dropout, weight_init=_INIT, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.heads = sizes.heads

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        (query,) = split_heads(self.query(tokens), 1, self.heads)
        keys, value = (jnp.broadcast_to(shared, query.shape) for shared in split_heads(self.key_value(tokens), 2, 1))
        attended = attend(query, keys, value, dropout=self.attention_dropout, dropout_key=attention_key)
        return self.projection(merge_heads(attended), key=projection_key)


class LocalAttention(eqx.Module):
    """Attention inside each window (equation 1)."""

    attention: Attention | MultiQueryAttention

    def __init__(self, config: NesTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        self.attention = (
            MultiQueryAttention(config, sizes, key=key)
            if config.multi_query
            else Attention(
                sizes.dim,
                sizes.heads,
                head_dim=sizes.head_dim,
                qkv_bias=config.qkv_bias,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                qkv_init=_INIT,
                projection_init=_INIT,
                key=key,
            )
        )

    def __call__(
        self, windows: Float[Array, "windows positions dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "windows positions dim"]:
        # A key for each window costs time, also where only the drop-path is active.
        keys = stack_or_none(key if dropout_active(self.attention) else None, len(windows))
        return kernels.map_windows(lambda window, key: self.attention(window, key=key), windows, keys)


class Aggregation(eqx.Module):
    """Block aggregation (section 3.2): convolution, norm and max pool over the whole map, which is halved."""

    conv: Conv
    norm: LayerNorm
    padding: tuple[int, int] = eqx.field(static=True)

    def __init__(self, dim: int, new_dim: int, config: NesTConfig, *, key: PRNGKeyArray) -> None:
        self.conv = Conv(dim, new_dim, 3, padding=1, weight_init=_INIT, bias_init=constant(0.0), key=key)
        self.norm = LayerNorm(new_dim, config.norm_eps)
        self.padding = (0, 1) if config.pool_padding == "same" else (1, 1)

    def __call__(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "new_rows new_columns new_dim"]:
        return max_pool(self.norm(self.conv(x)), 3, 2, self.padding)


class Stage(eqx.Module):
    """One level of the hierarchy: the map is cut into windows, and put together again after the blocks."""

    aggregation: Aggregation | eqx.nn.Identity
    position_embedding: Float[Array, "windows positions dim"]
    blocks: Stack[PreNormBlock[LocalAttention]]
    window: tuple[int, int] = eqx.field(static=True)

    def __init__(self, config: NesTConfig, dim: int | None, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        """`dim`: of the stage before; None for the first stage, which has no aggregation."""
        aggregation_key, position_key, blocks_key = jax.random.split(key, 3)
        aggregate = functools.partial(Aggregation, new_dim=sizes.dim, config=config, key=aggregation_key)
        self.aggregation = eqx.nn.Identity() if dim is None else aggregate(dim)
        self.position_embedding = _INIT(position_key, (sizes.windows, math.prod(config.window), sizes.dim))
        self.blocks = Stack.build(functools.partial(_make_block, config, sizes), sizes.depth, key=blocks_key)
        self.window = config.window

    def embed(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "windows positions new_dim"]:
        """The windows that the blocks take, with their positions, of the map of patches or of the stage before."""
        return to_windows(self.aggregation(x), self.window) + self.position_embedding

    def __call__(
        self,
        windows: Float[Array, "windows positions dim"],
        drop_scales: Float[Array, " depth"],
        *,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "rows columns dim"]:
        side, (height, width) = math.isqrt(len(windows)), self.window
        windows = self.blocks(windows, xs=(drop_scales,), key=key)
        return from_windows(windows, self.window, (side * height, side * width))


class NesT(StatelessImageModel[NesTConfig]):
    """Nested hierarchical transformer: one image to logits.

        step                         shape                     nest_tiny_jx
        image                        height width channels     224 224 3
        patch embedding              rows columns dim[0]       56 56 96
        stage i: aggregation         rows columns dim[i]       from the second on: 28 28 192, then 14 14 384
          windows and positions      windows positions dim[i]  16 196 96, then 4 196 192, 1 196 384
          block_repeats[i] x block   windows positions dim[i]  16 196 96, ...
        norm                         rows columns dim[-1]      14 14 384
        mean over the map            dim[-1]                   384
        head                         num_classes               1000

    rows = height / patch height, columns = width / patch width, halved by each aggregation. A block is attention inside
    each window, and MLP, pre-norm, residual. windows = 4 ** (stages - 1 - i): the last stage is one window.
    """

    patch_embedding: PatchEmbedding
    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity

    def __init__(self, config: NesTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, stages_key, head_key = jax.random.split(key, 3)
        first, last = config.stages[0], config.stages[-1]
        self.config = config
        self.patch_embedding = PatchEmbedding(
            pair(config.patch_size),
            config.channels,
            first.dim,
            weight_init=_INIT,
            bias_init=constant(0.0),
            key=patch_key,
        )
        before = (None, *(sizes.dim for sizes in config.stages))
        stage_keys = jax.random.split(stages_key, len(config.stages))
        self.stages = tuple(
            Stage(config, dim, sizes, key=stage_key)
            for dim, sizes, stage_key in zip(before, config.stages, stage_keys, strict=False)
        )
        self.norm = LayerNorm(last.dim, config.norm_eps)
        self.head = make_head(last.dim, config.num_classes, weight_init=_INIT, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "windows positions dim"]:
        """The windows of the first stage, with their positions."""
        return self.stages[0].embed(self.patch_embedding(image))

    def encode(
        self, x: Float[Array, "windows positions dim"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "rows columns new_dim"]:
        """The map of the last stage, one window, after the final norm."""
        schedules = drop_path_schedule([sizes.depth for sizes in self.config.stages])
        keys = split_or_none(key, len(self.stages))
        for index, (stage, schedule, stage_key) in enumerate(zip(self.stages, schedules, keys, strict=True)):
            x = stage(stage.embed(x) if index else x, schedule, key=stage_key)
        return self.norm(x)

    def classify(self, features: Float[Array, "rows columns dim"]) -> Float[Array, " classes"]:
        """Logits of the mean over the map."""
        return self.head(jnp.mean(features, axis=(0, 1)))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each stage."""
        patch_height, patch_width = pair(self.config.patch_size)
        *first, last = (
            FeaturePoint(f"stages.{stage}", sizes.dim, (patch_height * 2**stage, patch_width * 2**stage))
            for stage, sizes in enumerate(self.config.stages)
        )
        return [*first, last._replace(norm=self.norm)]

    def resize_spec(self, image_size: Size) -> tuple[NesTConfig, Mapping[str, Array]]:
        """**Raises:** `ValueError`: the tables belong to windows of one size, and no official rule resizes them."""
        raise ValueError(
            f"NesT cannot be resized to {image_size}: its position tables belong to windows of {self.config.window}; "
            "build one with image_size=... and train it"
        )


def _make_block(config: NesTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> PreNormBlock[LocalAttention]:
    attention_key, mlp_key = jax.random.split(key)
    mlp = MLP(
        sizes.dim,
        sizes.mlp_dim,
        activation=gelu_tanh if config.approximate_gelu else gelu,
        dropout=config.dropout,
        weight_init=_INIT,
        key=mlp_key,
    )
    attention = LocalAttention(config, sizes, key=attention_key)
    return PreNormBlock(attention, mlp, sizes.dim, norm_eps=config.norm_eps, drop_path=config.drop_path)


def _preset(dim: int, heads: int, repeats: tuple[int, ...], drop_path: float) -> NesTConfig:
    return NesTConfig(
        image_size=224,
        patch_size=4,
        num_classes=1000,
        dim=dim,
        heads=heads,
        num_hierarchies=3,
        block_repeats=repeats,
        drop_path=drop_path,
        approximate_gelu=False,
    )


def _cifar(dim: int, heads: int) -> NesTConfig:
    return NesTConfig(
        image_size=32,
        patch_size=1,
        num_classes=10,
        dim=dim,
        heads=heads,
        num_hierarchies=4,
        block_repeats=3,
        drop_path=0.1,
        scale_dims=1,
        multi_query=True,
    )


_TINY = _preset(96, 3, (2, 2, 8), 0.2)
_SMALL = _preset(96, 3, (2, 2, 20), 0.3)
_BASE = _preset(128, 4, (2, 2, 20), 0.5)

PRESETS: dict[str, NesTConfig] = {  # timm's with timm's GELU; the CIFAR models are the official code's alone
    "nest_tiny_jx": _TINY,  # 17,057,608
    "nest_small_jx": _SMALL,  # 38,351,176
    "nest_base_jx": _BASE,  # 67,723,368
    "nest_tiny": replace(_TINY, pool_padding="symmetric"),  # 17,057,608
    "nest_small": replace(_SMALL, pool_padding="symmetric"),  # 38,351,176
    "nest_base": replace(_BASE, pool_padding="symmetric"),  # 67,723,368
    "nest_tiny_s16_32": _cifar(192, 3),  # 6,006,730
    "nest_small_s16_32": _cifar(384, 6),  # 22,849,930
    "nest_base_s16_32": _cifar(768, 12),  # 89,050,378
}

WEIGHTS: dict[str, Source] = {
    f"nest_{size}_jx": Source(hub=f"timm/nest_{size}_jx.goog_in1k", crop=0.875) for size in ("tiny", "small", "base")
}
