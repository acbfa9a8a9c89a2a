"""ScalableViT (arXiv 2203.10790): attention whose keys shrink in space and stretch in channels.

The idea: window attention and global attention take turns. The global one (SSA) scales its keys, fewer positions and
more or fewer channels; the windowed one (IWSA) lets its windows talk through a depthwise convolution of the values.

    image                        height width channels
    for each stage i:
      patch embedding, norm      rows columns dims[i]    stage 0: 7x7 of stride 4; then 3x3 of stride 2
      windowed block             rows columns dims[i]    IWSA and MLP, pre-norm, residual
      + depthwise 3x3            rows columns dims[i]    the only positions
      global, windowed, ...      rows columns dims[i]    SSA and IWSA in turn: depth[i] blocks in all
    norm, mean over the map      dims[-1]
    head                         num_classes             linear to 4096, norm, GELU, linear; or a single linear map

Axes: rows, columns of the map; dims[i] = dim * 2**i = width of a position; heads; key_dim and value_dim = width of one
head's keys and values. No departure from the official code (Yangr116/ScalableViT).
"""

import functools
import math
import typing
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    Stack,
    attend,
    from_windows,
    gelu,
    image_door,
    merge_heads,
    ramp,
    split_heads,
    split_or_none,
    to_windows,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair, per_stage
from eqx_vit.layers.init import constant, normal
from eqx_vit.models.source import Source

REDUCED_NORM_EPS = 1e-5  # the official code names none for this one norm


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class ScalableViTConfig:
    """Everything that defines a ScalableViT. One value for `heads`, `window_size`, ... stands for all stages."""

    num_classes: int  # 0: no head, the pooled features come out
    dim: int  # width of the first stage; it doubles at every stage
    depth: tuple[int, ...]  # blocks of each stage, windowed and global in turn
    heads: int | tuple[int, ...]
    reduction_factor: int | tuple[int, ...]  # of the map's sides, for the keys of global attention
    ssa_dim_key: int | tuple[int, ...] = (
        32  # width of a head's keys in global attention; at reduction 1 their scale only
    )
    window_size: int | tuple[int | None, ...] | None = 7  # None: one window over the map; 1: all blocks are global
    ff_expansion_factor: float = 4.0  # MLP width, in multiples of the stage's width
    dropout: float = 0.0  # patch embeddings, attention weights, attention output, inside and after the MLP
    drop_path: float = 0.0  # stochastic depth of the last block, from 0 at the first
    channels: int = 3
    qkv_bias: bool = True
    head_dim: int | None = 4096  # hidden width of the head; None: a single linear map
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "dim", "depth", "heads", "ssa_dim_key", "reduction_factor", "window_size")
        check_positive(self, "channels", "head_dim")
        check_rates(self, "dropout", "drop_path")
        check(self.num_classes >= 0, f"ScalableViTConfig.num_classes must not be negative, given {self.num_classes}")
        check(
            self.ff_expansion_factor * self.dim >= 1,
            f"ScalableViTConfig.ff_expansion_factor must leave a width, given {self.ff_expansion_factor}",
        )
        for name in ("heads", "ssa_dim_key", "reduction_factor", "window_size"):
            count = len(per_stage(getattr(self, name), 1))
            check(
                count <= self.stages, f"ScalableViTConfig.{name} has {count} values for {self.stages} stages of depth"
            )
        for dim, heads in zip(self.dims, self.stage_heads, strict=True):
            check(dim % heads == 0, f"the stage of width {dim} cannot have {heads} heads: change dim or heads")

    @property
    def stages(self):
        return len(self.depth)

    @property
    def dims(self):
        return tuple(self.dim * 2**stage for stage in range(self.stages))

    @property
    def stage_heads(self):
        return per_stage(self.heads, self.stages)

    @property
    def key_dims(self):
        return per_stage(self.ssa_dim_key, self.stages)

    @property
    def reductions(self):
        return per_stage(self.reduction_factor, self.stages)

    @property
    def windows(self):
        return per_stage(self.window_size, self.stages)

    def check_image_size(self, height, width):
        strides = [4 * 2**stage for stage in range(self.stages)]
        windows = zip(strides, self.windows, strict=True)
        unit = math.lcm(strides[-1], *(stride * window for stride, window in windows if window))
        check_multiple("image_size", (height, width), unit)
        for stage, (stride, reduction) in enumerate(zip(strides, self.reductions, strict=True)):
            is_global = self.depth[stage] > 1 or self.windows[stage] == 1
            check(
                not is_global or min(height, width) >= stride * reduction,
                f"image_size {(height, width)} leaves stage {stage} a map that cannot be reduced {reduction} times: "
                f"use at least {stride * reduction}, or a smaller reduction_factor",
            )


class WindowAttention(eqx.Module):
    """Interactive window attention (IWSA, section 3.3): attention in windows, joined by a convolution of the values."""

    qkv: Linear
    interaction: Conv  # depthwise, over the whole map: the official "local interactive module"
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)

    def __init__(self, config: ScalableViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        qkv_key, interaction_key, projection_key = jax.random.split(key, 3)
        dim = config.dims[stage]
        self.qkv = Linear(dim, 3 * dim, use_bias=config.qkv_bias, key=qkv_key)
        self.interaction = _conv(dim, dim, 3, padding=1, groups=dim, key=interaction_key)
        self.projection = Linear(dim, dim, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.projection_dropout = Dropout(config.dropout)
        self.heads = config.stage_heads[stage]
        self.window = config.windows[stage]

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        rows, columns, dim = x.shape
        fused = self.qkv(x)
        window = (rows, columns) if self.window is None else pair(self.window)
        windows = to_windows(fused, window)
        keys = None if attention_key is None else jax.random.split(attention_key, len(windows))
        mixed = from_windows(jax.vmap(self.within)(windows, keys), window, (rows, columns))
        mixed = mixed + self.interaction(fused[..., 2 * dim :])
        return self.projection_dropout(self.projection(mixed), key=projection_key)

    def within(
        self, fused: Float[Array, "positions channels"], key: PRNGKeyArray | None
    ) -> Float[Array, "positions dim"]:
        """Attention inside one window."""
        query, keys, value = split_heads(fused, 3, self.heads)
        return merge_heads(attend(query, keys, value, dropout=self.attention_dropout, dropout_key=key))


class ReducedAttention(eqx.Module):
    """Scalable attention (SSA, section 3.2): keys and values from a smaller map, keys of a width of their own."""

    query: Linear
    reduction: Conv  # depthwise, its kernel is its stride
    stretch: Linear
    norm: LayerNorm
    key: Linear
    value: Linear
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: ScalableViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        keys = jax.random.split(key, 6)
        query_key, reduction_key, stretch_key, key_key, value_key, projection_key = keys
        dim, factor, bias = config.dims[stage], config.reductions[stage], config.qkv_bias
        self.heads = config.stage_heads[stage]
        inner = self.heads * config.key_dims[stage]
        self.query = Linear(dim, inner, use_bias=bias, key=query_key)
        self.reduction = _conv(dim, dim, factor, stride=factor, groups=dim, key=reduction_key)
        self.stretch = Linear(dim, inner, weight_init=normal(math.sqrt(2 / inner)), key=stretch_key)
        self.norm = LayerNorm(inner, REDUCED_NORM_EPS)
        self.key = Linear(inner, inner, use_bias=bias, key=key_key)
        self.value = Linear(inner, dim, use_bias=bias, key=value_key)
        self.projection = Linear(dim, dim, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.projection_dropout = Dropout(config.dropout)

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        reduced = gelu(self.norm(self.stretch(self.reduction(x))))
        mixed = attend(
            _by_head(self.query(x), self.heads),
            _by_head(self.key(reduced), self.heads),
            _by_head(self.value(reduced), self.heads),
            dropout=self.attention_dropout,
            dropout_key=attention_key,
        )
        return self.projection_dropout(self.projection(mixed.reshape(x.shape)), key=projection_key)


class FullAttention(eqx.Module):
    """Scalable attention where nothing is reduced: the official code then keeps the key width, but not its scale."""

    query: Linear
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, config: ScalableViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        dim = config.dims[stage]
        self.query = Linear(dim, dim, use_bias=config.qkv_bias, key=query_key)
        self.key_value = Linear(dim, 2 * dim, use_bias=config.qkv_bias, key=key_value_key)
        self.projection = Linear(dim, dim, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.projection_dropout = Dropout(config.dropout)
        self.heads = config.stage_heads[stage]
        self.scale = config.key_dims[stage] ** -0.5

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        keys, value = jnp.split(self.key_value(x), 2, axis=-1)
        mixed = attend(
            _by_head(self.query(x), self.heads),
            _by_head(keys, self.heads),
            _by_head(value, self.heads),
            scale=self.scale,
            dropout=self.attention_dropout,
            dropout_key=attention_key,
        )
        return self.projection_dropout(self.projection(mixed.reshape(x.shape)), key=projection_key)


class Block(eqx.Module):
    """Attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: WindowAttention | ReducedAttention | FullAttention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: ScalableViTConfig, stage: int, windowed: bool, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        dim = config.dims[stage]
        self.norm1 = LayerNorm(dim, config.norm_eps)
        if windowed and config.windows[stage] != 1:
            self.attention = WindowAttention(config, stage, key=attention_key)
        elif config.reductions[stage] > 1:
            self.attention = ReducedAttention(config, stage, key=attention_key)
        else:
            self.attention = FullAttention(config, stage, key=attention_key)
        self.norm2 = LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(dim, int(dim * config.ff_expansion_factor), dropout=config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, x: Float[Array, "rows columns dim"], drop_scale: Float[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.attention(self.norm1(x), key=attention_key)
        x = x + self.drop_path(branch, drop_scale, key=path1_key)
        return x + self.drop_path(self.mlp(self.norm2(x), key=mlp_key), drop_scale, key=path2_key)


class Pair(eqx.Module):
    """A global block, then a windowed one."""

    scalable: Block
    windowed: Block

    def __init__(self, config: ScalableViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        scalable_key, windowed_key = jax.random.split(key)
        self.scalable = Block(config, stage, False, key=scalable_key)
        self.windowed = Block(config, stage, True, key=windowed_key)

    def __call__(
        self, x: Float[Array, "rows columns dim"], drop_scales: Float[Array, " 2"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        scalable_key, windowed_key = split_or_none(key)
        x = self.scalable(x, drop_scales[0], key=scalable_key)
        return self.windowed(x, drop_scales[1], key=windowed_key)


class Stage(eqx.Module):
    """Patch embedding; a windowed block; positions; then pairs of blocks, and a global one left over at even depth."""

    patch_embedding: Conv
    norm: LayerNorm
    embedding_dropout: Dropout
    first: Block
    position: Conv  # depthwise: the official "position generator"
    pairs: Stack | None
    last: Block | None

    def __init__(self, config: ScalableViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        patch_key, first_key, position_key, pairs_key, last_key = jax.random.split(key, 5)
        dim, depth = config.dims[stage], config.depth[stage]
        if stage == 0:
            self.patch_embedding = _conv(config.channels, dim, 7, stride=4, padding=3, key=patch_key)
        else:
            self.patch_embedding = _conv(dim // 2, dim, 3, stride=2, padding=1, key=patch_key)
        self.norm = LayerNorm(dim, config.norm_eps)
        self.embedding_dropout = Dropout(config.dropout)
        self.first = Block(config, stage, True, key=first_key)
        self.position = _conv(dim, dim, 3, padding=1, groups=dim, key=position_key)
        count = (depth - 1) // 2
        self.pairs = Stack.build(functools.partial(_pair, config, stage), count, key=pairs_key) if count else None
        self.last = Block(config, stage, False, key=last_key) if depth % 2 == 0 else None

    def __call__(
        self,
        x: Float[Array, "height width in"],
        drop_scales: Float[Array, " depth"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "rows columns dim"]:
        embedding_key, first_key, pairs_key, last_key = split_or_none(key, 4)
        x = self.embedding_dropout(self.norm(self.patch_embedding(x)), key=embedding_key)
        x = self.first(x, drop_scales[0], key=first_key)
        x = x + self.position(x)
        if self.pairs is not None:
            scales = drop_scales[1 : 1 + 2 * len(self.pairs)].reshape(-1, 2)
            x = self.pairs(x, scanned=(scales,), key=pairs_key)
        return x if self.last is None else self.last(x, drop_scales[-1], key=last_key)


class Head(eqx.Module):
    """The official classifier: a wide hidden layer with a norm."""

    expand: Linear
    norm: LayerNorm
    contract: Linear

    def __init__(self, dim: int, hidden_dim: int, classes: int, eps: float, *, key: PRNGKeyArray) -> None:
        expand_key, contract_key = jax.random.split(key)
        self.expand = Linear(dim, hidden_dim, key=expand_key)
        self.norm = LayerNorm(hidden_dim, eps)
        self.contract = Linear(hidden_dim, classes, key=contract_key)

    def __call__(self, x: Float[Array, " dim"]) -> Float[Array, " classes"]:
        return self.contract(gelu(self.norm(self.expand(x))))


class ScalableViT(eqx.Module):
    """ScalableViT: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Head | Linear | eqx.nn.Identity
    config: ScalableViTConfig = eqx.field(static=True)

    def __init__(self, config: ScalableViTConfig, *, key: PRNGKeyArray) -> None:
        stages_key, head_key = jax.random.split(key)
        self.stages = tuple(
            Stage(config, stage, key=key) for stage, key in enumerate(jax.random.split(stages_key, config.stages))
        )
        self.norm = LayerNorm(config.dims[-1], config.norm_eps)
        self.head = _head(config, key=head_key)
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        """The map of the last stage, after the final norm."""
        x, scales, start = image, ramp(sum(self.config.depth)), 0
        for stage, depth, stage_key in zip(
            self.stages, self.config.depth, split_or_none(key, len(self.stages)), strict=True
        ):
            x = stage(x, scales[start : start + depth], key=stage_key)
            start += depth
        return self.norm(x)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits, from the mean of the map."""
        return self.head(jnp.mean(self.features(image, key=key), axis=(0, 1)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[ScalableViTConfig, dict[str, Array]]:
        """The model takes any size that its windows divide: nothing changes.

        **Raises:** `ValueError` for a size that they do not.
        """
        self.config.check_image_size(*pair(image_size))
        return self.config, {}


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    key: PRNGKeyArray,
) -> Conv:
    """A convolution as the official code starts it: normal by the fan-out, no bias."""
    fan_out = kernel_size**2 * out_channels // groups
    return Conv(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        groups=groups,
        weight_init=normal(math.sqrt(2 / fan_out)),
        bias_init=constant(0.0),
        key=key,
    )


def _by_head(x: Float[Array, "rows columns channels"], heads: int) -> Float[Array, "tokens heads head_dim"]:
    return x.reshape(x.shape[0] * x.shape[1], heads, -1)


def _pair(config: ScalableViTConfig, stage: int, key: PRNGKeyArray) -> Pair:
    return Pair(config, stage, key=key)


def _head(config: ScalableViTConfig, *, key: PRNGKeyArray) -> Head | Linear | eqx.nn.Identity:
    if config.num_classes == 0:
        return eqx.nn.Identity()
    if config.head_dim is None:
        return Linear(config.dims[-1], config.num_classes, key=key)
    return Head(config.dims[-1], config.head_dim, config.num_classes, config.norm_eps, key=key)


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
