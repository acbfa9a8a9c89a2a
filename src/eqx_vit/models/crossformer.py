"""CrossFormer (arXiv 2108.00154) and CrossFormer++ (2303.06908): attention across scales.

The idea: every token is embedded from patches of several sizes at once, and blocks attend in turn to the neighbourhood
(short distance) and to tokens spaced evenly over the map (long distance). The position bias is computed by a small
network from the offsets themselves, so that any size of map will do.

    image                      height width channels
    embedding                  rows columns dim[0]         rows = height // 4, columns = width // 4; kernels 4 to 32
    stage i: depth[i] x block  rows columns dim[i]         short- and long-distance attention in turn; MLP; residual
    merge i                    rows columns dim[i + 1]     norm, then kernels 2 and 4 with stride 2
    norm                       rows columns dim[-1]
    mean over the map          dim[-1]
    head                       num_classes

Axes: groups = sets of tokens that attend to each other; members = positions in one group, row-major, G x G. Each side
of a map is ((block * G) + member) * interval + offset; short-distance attention is interval 1. Maps that do not divide
are padded at the bottom and right, and nothing attends to the padding; on maps of no more than G tokens a side all
blocks are short-distance, with G that side. No departure from the official code (cheerss/CrossFormer), of whose options
absolute positions, group sizes that grow by block, and padding on both sides or without a mask are left out.
"""

import functools
import itertools
import typing
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    Stack,
    attend,
    image_door,
    merge_heads,
    ramp,
    relative_position_index,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_positive, check_rates, per_stage
from eqx_vit.layers.window import grid_coordinates
from eqx_vit.models.source import Source

_EPS = 1e-5


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class CrossFormerConfig:
    """Everything that defines a CrossFormer. `dim` counts the stages; one value of another field stands for all."""

    num_classes: int = 1000  # 0: no head, the pooled features come out
    dim: tuple[int, ...] = (64, 128, 256, 512)
    depth: int | tuple[int, ...] = (
        2,
        2,
        8,
        2,
    )  # blocks: the first, third ... attend at short distance, the others long
    global_window_size: int | tuple[int, ...] = (8, 4, 2, 1)  # spacing of the tokens of one long-distance group
    local_window_size: int | tuple[int, ...] = 7  # side of a group, short- and long-distance alike
    heads: int | tuple[int, ...] | None = None  # None: dim // 32
    mlp_ratio: float | tuple[float, ...] = 4.0  # MLP width, in multiples of dim
    cross_embed_kernel_sizes: tuple[tuple[int, ...], ...] = (
        (4, 8, 16, 32),
        (2, 4),
    )  # of the embedding, then the merges
    cross_embed_strides: int | tuple[int, ...] = (4, 2)
    channels: int = 3
    dropout: float = 0.0  # after the embedding, attention output, inside and after the MLP
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over all blocks
    qkv_bias: bool = True
    cooling: bool = False  # CrossFormer++: an activation cooling layer after every third block of a stage but the last

    def __post_init__(self):
        check_fields(self)
        check_positive(
            self, "dim", "depth", "global_window_size", "local_window_size", "heads", "mlp_ratio", "channels"
        )
        check_positive(self, "cross_embed_strides")
        check_rates(self, "dropout", "attention_dropout", "drop_path")
        check(self.num_classes >= 0, f"CrossFormerConfig.num_classes must not be negative, given {self.num_classes}")
        for name in _PER_STAGE:
            count = len(per_stage(getattr(self, name), 1))
            check(count <= self.stages, f"CrossFormerConfig.{name} has {count} values for {self.stages} stages (dim)")
        for dim, heads in zip(self.dim, self.heads_of_stages, strict=True):
            check(dim >= 32 or self.heads is not None, f"dim {dim} is below 32, the width of a head: give heads")
            check(dim % heads == 0, f"dim {dim} is not a multiple of heads {heads}: change one")
            check(dim >= 16, f"dim {dim} is below 16: the position bias has width dim // 16")
        for dim, kernels, stride in zip(self.dim, self.kernels_of_stages, self.strides_of_stages, strict=True):
            check(
                all(kernel >= stride and (kernel - stride) % 2 == 0 for kernel in kernels),
                f"cross_embed_kernel_sizes {kernels} must each be stride {stride} plus an even number",
            )
            unit = 2 ** (len(kernels) - 1)
            check(dim % unit == 0, f"dim {dim} is not a multiple of {unit}, to share among {len(kernels)} kernels")

    @property
    def stages(self):
        return len(self.dim)

    @property
    def depths(self):
        return per_stage(self.depth, self.stages)

    @property
    def heads_of_stages(self):
        default = tuple(max(dim // 32, 1) for dim in self.dim)
        return default if self.heads is None else per_stage(self.heads, self.stages)

    @property
    def kernels_of_stages(self):
        return per_stage(self.cross_embed_kernel_sizes, self.stages)

    @property
    def strides_of_stages(self):
        return per_stage(self.cross_embed_strides, self.stages)

    @property
    def coolings_of_stages(self):
        return tuple((depth - 1) // 3 if self.cooling else 0 for depth in self.depths)

    def check_image_size(self, height, width):
        first, *merges = self.strides_of_stages
        even = int(np.prod(merges, dtype=int))
        step = first * even
        for side in (height, width):
            below = side // step * step
            ways = f"use {below} or {below + step}" if below else f"use {step}"
            check(
                side // first % even == 0 and side >= step,
                f"this CrossFormer's maps are halved {len(merges)} times: an image of {(height, width)} does not "
                f"divide by {step} (a rest below {first} is cut off): {ways} instead of {side}",
            )


_PER_STAGE = (
    "depth",
    "global_window_size",
    "local_window_size",
    "heads",
    "mlp_ratio",
    "cross_embed_kernel_sizes",
    "cross_embed_strides",
)


class CrossScaleEmbedding(eqx.Module):
    """Convolutions of several kernel sizes and one stride, side by side (section 3.1): the larger, the narrower."""

    convs: tuple[Conv, ...]

    def __init__(
        self, in_channels: int, out_channels: int, kernels: tuple[int, ...], stride: int, *, key: PRNGKeyArray
    ) -> None:
        widths = [out_channels // 2 ** (index + 1) for index in range(len(kernels) - 1)]
        widths.append(out_channels - sum(widths))
        keys = jax.random.split(key, len(kernels))
        self.convs = tuple(
            Conv(in_channels, width, kernel, stride=stride, padding=(kernel - stride) // 2, key=key)
            for width, kernel, key in zip(widths, kernels, keys, strict=True)
        )

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "rows columns out"]:
        return jnp.concatenate([conv(x) for conv in self.convs], axis=-1)


class DynamicPositionBias(eqx.Module):
    """A bias per head for each offset of two members of a group, by a small network of the offset (section 3.3)."""

    embedding: Linear
    norms: tuple[LayerNorm, LayerNorm, LayerNorm]
    linears: tuple[Linear, Linear, Linear]

    def __init__(self, dim: int, heads: int, *, key: PRNGKeyArray) -> None:
        width = dim // 16
        embedding_key, *keys = jax.random.split(key, 4)
        self.embedding = Linear(2, width, key=embedding_key)
        self.norms = (LayerNorm(width, _EPS), LayerNorm(width, _EPS), LayerNorm(width, _EPS))
        self.linears = (
            Linear(width, width, key=keys[0]),
            Linear(width, width, key=keys[1]),
            Linear(width, heads, key=keys[2]),
        )

    def __call__(self, side: int) -> Float[Array, "heads members members"]:
        """For groups of `side` x `side` members. Offsets are query minus key, as raw numbers."""
        offsets = grid_coordinates(2 * side - 1, 2 * side - 1) - (side - 1)
        table = self.embedding(jnp.asarray(offsets, dtype=self.embedding.weight.dtype))
        for norm, linear in zip(self.norms, self.linears, strict=True):
            table = linear(jax.nn.relu(norm(table)))
        return table.T[:, relative_position_index(side, side)]


class GroupAttention(eqx.Module):
    """Self-attention within the groups of a map, with a dynamic position bias (section 3.2)."""

    qkv: Linear  # rows: q of all heads, k of all heads, v of all heads
    position_bias: DynamicPositionBias
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)
    side: int = eqx.field(static=True)

    def __init__(self, config: CrossFormerConfig, stage: int, *, key: PRNGKeyArray) -> None:
        qkv_key, bias_key, projection_key = jax.random.split(key, 3)
        dim = config.dim[stage]
        self.heads = config.heads_of_stages[stage]
        self.side = per_stage(config.local_window_size, config.stages)[stage]
        self.qkv = Linear(dim, 3 * dim, use_bias=config.qkv_bias, key=qkv_key)
        self.position_bias = DynamicPositionBias(dim, self.heads, key=bias_key)
        self.projection = Linear(dim, dim, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.projection_dropout = Dropout(config.dropout)

    def __call__(
        self, x: Float[Array, "rows columns dim"], interval: int, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        rows, columns = x.shape[:2]
        whole = min(rows, columns) <= self.side
        side, interval = (min(rows, columns), 1) if whole else (self.side, interval)
        # The padding is put after the projection: what it holds is never seen, masked as key and cut off as query.
        groups = to_groups(self.qkv(x), side, interval)
        mask = real_members((rows, columns), side, interval)
        keys = None if attention_key is None else jax.random.split(attention_key, groups.shape[0])
        run = functools.partial(_attend, self.heads, self.position_bias(side), self.attention_dropout)
        mixed = jax.vmap(run, in_axes=(0, None if mask is None else 0, None if keys is None else 0))(groups, mask, keys)
        mixed = from_groups(mixed, side, interval, (rows, columns))
        return self.projection_dropout(self.projection(mixed), key=projection_key)


class Block(eqx.Module):
    """Attention within groups of tokens `interval` apart, and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: GroupAttention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: CrossFormerConfig, stage: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        dim = config.dim[stage]
        hidden = int(dim * per_stage(config.mlp_ratio, config.stages)[stage])
        self.norm1 = LayerNorm(dim, _EPS)
        self.attention = GroupAttention(config, stage, key=attention_key)
        self.norm2 = LayerNorm(dim, _EPS)
        self.mlp = MLP(dim, hidden, dropout=config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        x: Float[Array, "rows columns dim"],
        interval: int = 1,
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "rows columns dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.attention(self.norm1(x), interval, key=attention_key)
        x = x + self.drop_path(branch, drop_scale, key=path1_key)
        branch = self.mlp(self.norm2(x), key=mlp_key)
        return x + self.drop_path(branch, drop_scale, key=path2_key)


class Cooling(eqx.Module):
    """CrossFormer++'s activation cooling layer: a depthwise convolution and a norm, without a residual."""

    conv: Conv
    norm: LayerNorm

    def __init__(self, dim: int, *, key: PRNGKeyArray) -> None:
        self.conv = Conv(dim, dim, 3, padding=1, groups=dim, key=key)
        self.norm = LayerNorm(dim, _EPS)

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        return self.norm(self.conv(x))


class Cycle(eqx.Module):
    """Blocks of short- and long-distance attention in turn, with a cooling layer after every third."""

    blocks: Stack
    coolings: Stack | None
    interval: int = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, "rows columns dim"],
        drop_scales: Float[Array, " blocks"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "rows columns dim"]:
        keys = split_or_none(key, len(self.blocks))
        for index, block in enumerate(self.blocks):
            x = block(x, self.interval if index % 2 else 1, drop_scales[index], key=keys[index])
            if self.coolings is not None and index % 3 == 2 and index // 3 < len(self.coolings):
                x = self.coolings[index // 3](x)
        return x


class Stage(eqx.Module):
    """The blocks of one stage. All have the same arrays; a scan runs over whole cycles, the rest follows."""

    blocks: Stack
    coolings: Stack | None
    interval: int = eqx.field(static=True)

    def __init__(self, config: CrossFormerConfig, stage: int, *, key: PRNGKeyArray) -> None:
        blocks_key, coolings_key = jax.random.split(key)
        depth, coolings = config.depths[stage], config.coolings_of_stages[stage]
        self.blocks = Stack.build(functools.partial(_block, config, stage), depth, key=blocks_key)
        make = functools.partial(_cooling, config.dim[stage])
        self.coolings = Stack.build(make, coolings, key=coolings_key) if coolings else None
        self.interval = per_stage(config.global_window_size, config.stages)[stage]

    def __call__(
        self,
        x: Float[Array, "rows columns dim"],
        drop_scales: Float[Array, " depth"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "rows columns dim"]:
        cycles_key, rest_key = split_or_none(key)
        depth = len(self.blocks)
        # Six blocks hold two cooling layers; the last block of a stage has none, and so is in no cycle.
        length, count = (2, depth // 2) if self.coolings is None else (6, (depth - 1) // 6)
        repeated_scales, rest_scales = jnp.split(drop_scales, (count * length,))
        repeated_blocks, rest_blocks = _cut(self.blocks, count, length)
        repeated_coolings, rest_coolings = _cut(self.coolings, count, 2)
        if repeated_blocks is not None:
            cycle = Cycle(repeated_blocks, repeated_coolings, self.interval)
            cycles = Stack(cycle, count, self.blocks.unroll, self.blocks.remat)
            x = cycles(x, scanned=(repeated_scales.reshape(count, length),), key=cycles_key)
        if rest_blocks is not None:
            x = Cycle(rest_blocks, rest_coolings, self.interval)(x, rest_scales, key=rest_key)
        return x


class Merge(eqx.Module):
    """Between two stages: a norm, then a cross-scale embedding of the map on half as many rows and columns."""

    norm: LayerNorm
    embedding: CrossScaleEmbedding

    def __init__(self, config: CrossFormerConfig, stage: int, *, key: PRNGKeyArray) -> None:
        dim, new_dim = config.dim[stage : stage + 2]
        kernels, stride = config.kernels_of_stages[stage + 1], config.strides_of_stages[stage + 1]
        self.norm = LayerNorm(dim, _EPS)
        self.embedding = CrossScaleEmbedding(dim, new_dim, kernels, stride, key=key)

    def __call__(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "new_rows new_columns new_dim"]:
        return self.embedding(self.norm(x))


class CrossFormer(eqx.Module):
    """CrossFormer: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    embedding: CrossScaleEmbedding
    embedding_norm: LayerNorm
    embedding_dropout: Dropout
    stages: tuple[Stage, ...]
    merges: tuple[Merge, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: CrossFormerConfig = eqx.field(static=True)

    def __init__(self, config: CrossFormerConfig, *, key: PRNGKeyArray) -> None:
        embedding_key, stages_key, merges_key, head_key = jax.random.split(key, 4)
        first, last = config.dim[0], config.dim[-1]
        kernels, stride = config.kernels_of_stages[0], config.strides_of_stages[0]
        self.embedding = CrossScaleEmbedding(config.channels, first, kernels, stride, key=embedding_key)
        self.embedding_norm = LayerNorm(first, _EPS)
        self.embedding_dropout = Dropout(config.dropout)
        self.stages = tuple(
            Stage(config, stage, key=key) for stage, key in enumerate(jax.random.split(stages_key, config.stages))
        )
        self.merges = tuple(
            Merge(config, stage, key=key) for stage, key in enumerate(jax.random.split(merges_key, config.stages - 1))
        )
        self.norm = LayerNorm(last, _EPS)
        self.head = Linear(last, config.num_classes, key=head_key) if config.num_classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        """The map of the last stage, after the final norm."""
        embedding_key, *keys = split_or_none(key, 1 + self.config.stages)
        depths = self.config.depths
        scales = jnp.split(ramp(sum(depths)), list(itertools.accumulate(depths))[:-1])
        x = self.embedding_dropout(self.embedding_norm(self.embedding(image)), key=embedding_key)
        for index, stage in enumerate(self.stages):
            x = stage(x, scales[index], key=keys[index])
            x = self.merges[index](x) if index < len(self.merges) else x
        return self.norm(x)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits of the mean over the map."""
        return self.head(jnp.mean(self.features(image, key=key), axis=(0, 1)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[CrossFormerConfig, dict[str, Array]]:
        """The config as it is and no array: the position bias is computed for whatever map comes."""
        return self.config, {}


def to_groups(x: Float[Array, "rows columns dim"], side: int, interval: int) -> Float[Array, "groups members dim"]:
    """The map, padded with zeros at the bottom and right, as groups of `side` x `side` tokens `interval` apart."""
    unit = side * interval
    padded = jnp.pad(x, ((0, -x.shape[0] % unit), (0, -x.shape[1] % unit), (0, 0)))
    pattern = "(a g i) (b h j) dim -> (a i b j) (g h) dim"
    return rearrange(padded, pattern, g=side, i=interval, h=side, j=interval)


def from_groups(
    groups: Float[Array, "groups members dim"], side: int, interval: int, size: tuple[int, int]
) -> Float[Array, "rows columns dim"]:
    """The inverse of `to_groups`, for a map of (rows, columns) `size`."""
    blocks = -(-size[0] // (side * interval))
    pattern = "(a i b j) (g h) dim -> (a g i) (b h j) dim"
    return rearrange(groups, pattern, a=blocks, i=interval, j=interval, g=side)[: size[0], : size[1]]


def real_members(size: tuple[int, int], side: int, interval: int) -> Bool[Array, "groups members"] | None:
    """Which members of the groups of a map are no padding; None where there is none."""
    if size[0] % (side * interval) == 0 and size[1] % (side * interval) == 0:
        return None
    return to_groups(jnp.ones((*size, 1)), side, interval)[..., 0] > 0


def _attend(
    heads: int,
    bias: Float[Array, "heads members members"],
    dropout: Dropout,
    fused: Float[Array, "members channels"],
    mask: Bool[Array, " members"] | None,
    key: PRNGKeyArray | None,
) -> Float[Array, "members dim"]:
    """Attention in one group; where `mask` is False a member is not attended to."""
    query, keys, value = split_heads(fused, 3, heads)
    allowed = None if mask is None else jnp.broadcast_to(mask, (1, *bias.shape[1:]))
    return merge_heads(attend(query, keys, value, bias=bias, mask=allowed, dropout=dropout, dropout_key=key))


def _cut(stack: Stack | None, count: int, length: int) -> tuple[Stack | None, Stack | None]:
    """A stack as `count` stacks of `length`, themselves stacked, and the stack of what is left: None where empty."""
    if stack is None:
        return None, None
    whole = count * length
    rest = stack[whole:] if whole < len(stack) else None
    if count == 0:
        return None, rest
    repeated = jax.tree.map(
        lambda leaf: leaf.reshape(count, length, *leaf.shape[1:]) if eqx.is_array(leaf) else leaf, stack[:whole].block
    )
    return Stack(repeated, length), rest


def _block(config: CrossFormerConfig, stage: int, key: PRNGKeyArray) -> Block:
    return Block(config, stage, key=key)


def _cooling(dim: int, key: PRNGKeyArray) -> Cooling:
    return Cooling(dim, key=key)


def _preset(dim: int, depth: tuple[int, ...], drop_path: float) -> CrossFormerConfig:
    return CrossFormerConfig(dim=(dim, 2 * dim, 4 * dim, 8 * dim), depth=depth, drop_path=drop_path)


def _plus(dim: int, depth: tuple[int, ...], drop_path: float) -> CrossFormerConfig:
    config = _preset(dim, depth, drop_path)
    return replace(config, local_window_size=(4, 4, 14, 7), global_window_size=(4, 2, 1, 1), cooling=True)


PRESETS: dict[str, CrossFormerConfig] = {
    "crossformer_tiny_patch4_group7_224": _preset(64, (1, 1, 8, 6), 0.1),  # 27,776,794
    "crossformer_small_patch4_group7_224": _preset(96, (2, 2, 6, 2), 0.2),  # 30,657,394
    "crossformer_base_patch4_group7_224": _preset(96, (2, 2, 18, 2), 0.3),  # 51,971,554
    "crossformer_large_patch4_group7_224": _preset(128, (2, 2, 18, 2), 0.5),  # 91,971,184
    "crossformer_pp_small_patch4_group_const_224": _plus(64, (2, 2, 18, 2), 0.2),  # 23,325,340
    "crossformer_pp_base_patch4_group_const_224": _plus(96, (2, 2, 18, 2), 0.3),  # 51,994,594
    "crossformer_pp_large_patch4_group_const_224": _plus(128, (2, 2, 18, 2), 0.5),  # 92,001,904
    "crossformer_pp_huge_patch4_group_const_224": _plus(128, (6, 6, 18, 2), 0.5),  # 95,962,944
}


def _source(drive_id: str, file: str) -> Source:
    url = f"https://drive.google.com/file/d/{drive_id}/view"
    return Source(hub=url, layout="official", file=file, crop=0.875, license="mit")


WEIGHTS: dict[str, Source] = {
    "crossformer_tiny_patch4_group7_224": _source("1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq", "crossformer-t.pth"),
    "crossformer_small_patch4_group7_224": _source("1RAkigsgr33va0RZ85S2Shs2BhXYcS6U8", "crossformer-s.pth"),
    "crossformer_base_patch4_group7_224": _source("1bK8biVCi17nz_nkt7rBfio_kywUpllSU", "crossformer-b.pth"),
}
