"""ScalableViT (arXiv 2203.10790): attention whose keys scale in space and in channels.

The idea: window attention and global attention take turns. The global one (SSA) scales its keys, fewer positions and
more or fewer channels; the windowed one (IWSA) lets its windows interact through a depthwise convolution of the values.

Axes: rows, columns of the map; dim[i] = dim * 2**i = width of a position in stage i; heads; key_dim and value_dim =
width of one head's keys and values. No departure from the official code (Yangr116/ScalableViT).
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Conv,
    Dropout,
    LayerNorm,
    Linear,
    OutputProjection,
    PeriodicStack,
    PreNormBlock,
    attend,
    drop_path_schedule,
    from_windows,
    gelu,
    make_head,
    merge_heads,
    split_heads,
    split_or_none,
    stack_or_none,
    to_windows,
)
from eqx_vit.layers.config import check, check_heads, check_multiple, check_stages, no_type_check, pair, per_stage
from eqx_vit.layers.init import constant, fan_out_normal
from eqx_vit.model import ImageModelConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import FeaturePoint

REDUCTION_NORM_EPS = 1e-5  # the official code names none for this one norm


class StageSizes(NamedTuple):
    """The numbers of one stage."""

    dim: int
    depth: int
    heads: int
    key_dim: int
    reduction: int
    window: int | None
    stride: int  # of its map, in pixels

    @property
    def windowed(self) -> bool:
        """Whether every second block, the first included, attends in windows."""
        return self.window != 1


@no_type_check
@dataclass(frozen=True, kw_only=True)
class ScalableViTConfig(ImageModelConfig["ScalableViT"]):
    """Everything that defines a ScalableViT. One value for `heads`, `window_size`, ... stands for all stages."""

    dim: int  # width of the first stage; it doubles at every stage
    depth: tuple[int, ...]  # blocks of each stage, windowed and global in turn
    heads: int | tuple[int, ...]
    reduction_factor: int | tuple[int, ...]  # of the map's sides, for the keys of global attention
    # Width of a head's keys in global attention; at reduction 1 it sets their scale only.
    ssa_dim_key: int | tuple[int, ...] = 32
    window_size: int | tuple[int | None, ...] | None = 7  # None: one window over the map; 1: all blocks are global
    ff_expansion_factor: float = 4.0  # MLP width, in multiples of the stage's width
    dropout: float = 0.0  # patch embeddings, attention weights, attention output, inside and after the MLP
    drop_path: float = 0.0  # stochastic depth of the last block, from 0 at the first
    qkv_bias: bool = True
    head_dim: int | None = 4096  # hidden width of the head; None: a single linear map
    norm_eps: float = 1e-6

    def check(self) -> None:
        check(
            self.ff_expansion_factor * self.dim >= 1,
            f"ScalableViTConfig.ff_expansion_factor must leave a width, given {self.ff_expansion_factor}",
        )
        check_stages(self, len(self.depth), "depth", "heads", "ssa_dim_key", "reduction_factor", "window_size")
        for sizes in self.stages:
            check_heads(sizes.dim, sizes.heads, dim_head=None)

    @property
    def stages(self) -> tuple[StageSizes, ...]:
        count = len(self.depth)
        each = (self.heads, self.ssa_dim_key, self.reduction_factor, self.window_size)
        columns = zip(self.depth, *(per_stage(values, count) for values in each), strict=True)
        return tuple(StageSizes(self.dim * 2**i, *column, stride=4 * 2**i) for i, column in enumerate(columns))

    def check_image_size(self, height: int, width: int) -> None:
        unit = math.lcm(*(sizes.stride * (sizes.window or 1) for sizes in self.stages))
        check_multiple("the image's size", (height, width), unit)
        for index, sizes in enumerate(self.stages):
            least = sizes.stride * sizes.reduction
            check(
                min(height, width) >= least or (sizes.windowed and sizes.depth == 1),
                f"an image of {(height, width)} leaves stage {index} a map that cannot be reduced {sizes.reduction} "
                f"times: use at least {least}, or a smaller reduction_factor",
            )


class InteractiveWindowAttention(eqx.Module):
    """Interactive window attention (IWSA, section 3.3): attention in windows, joined by a convolution of the values."""

    qkv: Linear
    local_interactive_module: Conv  # depthwise, over the whole map
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)

    def __init__(self, config: ScalableViTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        qkv_key, module_key, projection_key = jax.random.split(key, 3)
        dim = sizes.dim
        self.qkv = Linear(dim, 3 * dim, use_bias=config.qkv_bias, key=qkv_key)
        self.local_interactive_module = _make_depthwise(dim, 3, padding=1, key=module_key)
        self.projection = OutputProjection(dim, dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.heads = sizes.heads
        self.window = sizes.window

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        rows, columns, dim = x.shape
        fused = self.qkv(x)
        window = (rows, columns) if self.window is None else pair(self.window)
        windows = to_windows(fused, window)
        keys = stack_or_none(attention_key, len(windows))
        attended = from_windows(jax.vmap(self.attend_in_window)(windows, keys), window, (rows, columns))
        attended = attended + self.local_interactive_module(fused[..., 2 * dim :])
        return self.projection(attended, key=projection_key)

    def attend_in_window(
        self, fused: Float[Array, "positions channels"], key: PRNGKeyArray | None
    ) -> Float[Array, "positions dim"]:
        query, keys, value = split_heads(fused, 3, self.heads)
        return merge_heads(attend(query, keys, value, dropout=self.attention_dropout, dropout_key=key))


class Reduction(eqx.Module):
    """What keys and values are made of: fewer positions, and channels for keys of a width of their own."""

    conv: Conv  # depthwise, its kernel is its stride
    linear: Linear
    norm: LayerNorm

    def __init__(self, dim: int, new_dim: int, factor: int, *, key: PRNGKeyArray) -> None:
        conv_key, linear_key = jax.random.split(key)
        self.conv = _make_depthwise(dim, factor, stride=factor, key=conv_key)
        self.linear = Linear(dim, new_dim, weight_init=fan_out_normal(), key=linear_key)
        self.norm = LayerNorm(new_dim, REDUCTION_NORM_EPS)

    def __call__(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "new_rows new_columns new_dim"]:
        return gelu(self.norm(self.linear(self.conv(x))))


class ScalableSelfAttention(eqx.Module):
    """Scalable self-attention (SSA, section 3.2): keys and values from a smaller map, keys of a width of their own.

    Where nothing is reduced, the official code leaves the keys their width, but scales as if they had that other one.
    """

    query: Linear
    reduction: Reduction | None
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, config: ScalableViTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        query_key, reduction_key, key_value_key, projection_key = jax.random.split(key, 4)
        dim, factor, bias = sizes.dim, sizes.reduction, config.qkv_bias
        inner = sizes.heads * sizes.key_dim if factor > 1 else dim
        self.query = Linear(dim, inner, use_bias=bias, key=query_key)
        self.reduction = Reduction(dim, inner, factor, key=reduction_key) if factor > 1 else None
        self.key_value = Linear(inner, inner + dim, use_bias=bias, key=key_value_key)
        self.projection = OutputProjection(dim, dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.heads = sizes.heads
        self.scale = sizes.key_dim**-0.5

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        query = self.query(x)
        key_value = self.key_value(x if self.reduction is None else self.reduction(x))
        keys, value = jnp.split(key_value, [query.shape[-1]], axis=-1)
        attended = attend(
            _split_map(query, self.heads),
            _split_map(keys, self.heads),
            _split_map(value, self.heads),
            scale=self.scale,
            dropout=self.attention_dropout,
            dropout_key=attention_key,
        )
        return self.projection(merge_heads(attended).reshape(x.shape), key=projection_key)


Block = PreNormBlock[InteractiveWindowAttention | ScalableSelfAttention]


class Stage(eqx.Module):
    """Patch embedding and the blocks on one map; the positions come after the first of them."""

    patch_embedding: Conv
    norm: LayerNorm
    embedding_dropout: Dropout
    first_block: Block
    position_generator: Conv  # depthwise
    blocks: PeriodicStack[Block]  # global and windowed in turn

    def __init__(self, config: ScalableViTConfig, channels: int, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        patch_key, first_key, position_key, blocks_key = jax.random.split(key, 4)
        kernel, stride = (7, 4) if sizes.stride == 4 else (3, 2)
        self.patch_embedding = _make_conv(
            channels, sizes.dim, kernel, stride=stride, padding=kernel // 2, key=patch_key
        )
        self.norm = LayerNorm(sizes.dim, config.norm_eps)
        self.embedding_dropout = Dropout(config.dropout)
        make_block = functools.partial(_make_block, config, sizes)
        self.first_block = make_block(1, key=first_key)
        self.position_generator = _make_depthwise(sizes.dim, 3, padding=1, key=position_key)
        self.blocks = PeriodicStack.build(make_block, sizes.depth - 1, 2, key=blocks_key)

    def embed(
        self, x: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "rows columns dim"]:
        """The map that the blocks take, of an image or of the map before."""
        return self.embedding_dropout(self.norm(self.patch_embedding(x)), key=key)

    def __call__(
        self, x: Float[Array, "rows columns dim"], drop_scales: Float[Array, " depth"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "rows columns dim"]:
        first_key, blocks_key = split_or_none(key)
        x = self.first_block(x, drop_scales[0], key=first_key)
        x = x + self.position_generator(x)
        return self.blocks(x, xs=(drop_scales[1:],), key=blocks_key)


class Head(eqx.Module):
    """The official classifier: a wide hidden layer with a norm."""

    fc1: Linear
    norm: LayerNorm
    fc2: Linear

    def __init__(self, dim: int, hidden_dim: int, classes: int, eps: float, *, key: PRNGKeyArray) -> None:
        fc1_key, fc2_key = jax.random.split(key)
        self.fc1 = Linear(dim, hidden_dim, key=fc1_key)
        self.norm = LayerNorm(hidden_dim, eps)
        self.fc2 = Linear(hidden_dim, classes, key=fc2_key)

    def __call__(self, x: Float[Array, " dim"]) -> Float[Array, " classes"]:
        return self.fc2(gelu(self.norm(self.fc1(x))))


class ScalableViT(StatelessImageModel[ScalableViTConfig]):
    """ScalableViT: one image to logits.

        step                            shape                  scalable_vit_small
        image                           height width channels  224 224 3
        stage i: patch embedding, norm  rows columns dim[i]    56 56 64, then 28 28 128, 14 14 256, 7 7 512
          windowed block                rows columns dim[i]    56 56 64, ...
          + depthwise convolution       rows columns dim[i]    56 56 64, ...
          global, windowed, ... block   rows columns dim[i]    56 56 64, ...
        norm                            rows columns dim[-1]   7 7 512
        mean over the map               dim[-1]                512
        head                            num_classes            1000

    The patch embedding is 7 x 7 of stride 4, then 3 x 3 of stride 2. A windowed block is IWSA and MLP, a global one SSA
    and MLP, pre-norm, residual: depth[i] in all. The depthwise convolution, 3 x 3, tells the positions. The head is
    linear to 4096, norm, GELU, linear; or a single linear map.
    """

    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Head | Linear | eqx.nn.Identity

    def __init__(self, config: ScalableViTConfig, *, key: PRNGKeyArray) -> None:
        *stage_keys, head_key = jax.random.split(key, len(config.stages) + 1)
        self.config = config
        widths = (config.channels, *(sizes.dim for sizes in config.stages))
        self.stages = tuple(
            Stage(config, channels, sizes, key=stage_key)
            for channels, sizes, stage_key in zip(widths, config.stages, stage_keys, strict=False)
        )
        self.norm = LayerNorm(widths[-1], config.norm_eps)
        self.head = _make_head(config, widths[-1], key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "rows columns dim"]:
        """The map of the first stage."""
        return self.stages[0].embed(image, key=key)

    def encode(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "new_rows new_columns new_dim"]:
        """The map of the last stage, after the final norm."""
        schedules = drop_path_schedule(self.config.depth)
        keys = split_or_none(key, len(self.stages))
        for index, (stage, schedule, stage_key) in enumerate(zip(self.stages, schedules, keys, strict=True)):
            embedding_key, blocks_key = split_or_none(stage_key)
            x = stage.embed(x, key=embedding_key) if index else x
            x = stage(x, schedule, key=blocks_key)
        return self.norm(x)

    def classify(self, features: Float[Array, "rows columns dim"]) -> Float[Array, " classes"]:
        """Logits of the mean over the map."""
        return self.head(jnp.mean(features, axis=(0, 1)))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each stage."""
        *first, last = (
            FeaturePoint(f"stages.{stage}", sizes.dim, sizes.stride) for stage, sizes in enumerate(self.config.stages)
        )
        return [*first, last._replace(norm=self.norm)]


# The official code starts every convolution by its fan-out.
_make_conv = functools.partial(Conv, weight_init=fan_out_normal(), bias_init=constant(0.0))


def _make_depthwise(dim: int, kernel: int, *, stride: int = 1, padding: int = 0, key: PRNGKeyArray) -> Conv:
    init = fan_out_normal(groups=dim)
    return _make_conv(dim, dim, kernel, stride=stride, padding=padding, groups=dim, weight_init=init, key=key)


def _make_block(config: ScalableViTConfig, sizes: StageSizes, index: int, *, key: PRNGKeyArray) -> Block:
    """A block with window attention where `index` is odd."""
    attention_key, mlp_key = jax.random.split(key)
    kind = InteractiveWindowAttention if index % 2 and sizes.windowed else ScalableSelfAttention
    attention = kind(config, sizes, key=attention_key)
    mlp = MLP(sizes.dim, int(sizes.dim * config.ff_expansion_factor), dropout=config.dropout, key=mlp_key)
    return PreNormBlock(attention, mlp, sizes.dim, norm_eps=config.norm_eps, drop_path=config.drop_path)


def _make_head(config: ScalableViTConfig, dim: int, *, key: PRNGKeyArray) -> Head | Linear | eqx.nn.Identity:
    if config.num_classes == 0 or config.head_dim is None:
        return make_head(dim, config.num_classes, key=key)
    return Head(dim, config.head_dim, config.num_classes, config.norm_eps, key=key)


def _split_map(x: Float[Array, "rows columns channels"], heads: int) -> Float[Array, "tokens heads head_dim"]:
    """A map as a sequence of tokens, split into heads."""
    (by_head,) = split_heads(x.reshape(-1, x.shape[-1]), 1, heads)
    return by_head


def _preset(dim: int, depth: tuple[int, ...], ssa_dim_key: tuple[int, ...]) -> ScalableViTConfig:
    return ScalableViTConfig(
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=tuple(dim // 32 * 2**stage for stage in range(4)),
        reduction_factor=(8, 4, 2, 1),
        ssa_dim_key=ssa_dim_key,
    )


_SMALL = _preset(64, (2, 2, 20, 2), (40, 40, 40, 32))

PRESETS: dict[str, ScalableViTConfig] = {
    "scalable_vit_small": _SMALL,  # 32,000,472
    "scalable_vit_small_0": replace(_SMALL, ssa_dim_key=40, head_dim=None),  # 26,307,032
    "scalable_vit_base": _preset(96, (2, 2, 14, 6), (64, 40, 40, 32)),  # 81,881,624
    "scalable_vit_large": _preset(128, (2, 6, 12, 4), (8, 16, 32, 32)),  # 109,288,840
}

WEIGHTS: dict[str, Source] = {}  # none are released
