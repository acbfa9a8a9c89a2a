"""CrossFormer (arXiv 2108.00154) and CrossFormer++ (2303.06908): attention across scales.

The idea: every token is embedded from patches of several sizes at once, and blocks attend in turn to the neighbourhood
(short distance) and to tokens spaced evenly over the map (long distance). The position bias is computed by a small
network from the offsets themselves, so that any size of map will do.

Axes: groups = sets of tokens that attend to each other; tokens = positions in one group, row-major, G x G, where G is
the group size. Each side of a map is ((block * G) + token) * interval + offset; short-distance attention is interval 1.
Maps that do not divide are padded at the bottom and right, and nothing attends to the padding; on maps of no more than
G tokens a side all blocks are short-distance, with G that side. No departure from the official code
(cheerss/CrossFormer), of whose options absolute positions, group sizes that grow by block, and padding on both sides or
without a mask are left out.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, PRNGKeyArray

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
    make_head,
    merge_heads,
    relative_position_index,
    split_heads,
    split_or_none,
    stack_or_none,
)
from eqx_vit.layers.config import check, check_at_least, check_heads, check_stages, no_type_check, per_stage
from eqx_vit.layers.window import grid_coordinates
from eqx_vit.model import ImageModelConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import FeaturePoint

NORM_EPS = 1e-5


class StageSizes(NamedTuple):
    """The numbers of one stage. Kernels and stride are those of the embedding, or of the patch merging before it."""

    dim: int
    depth: int
    heads: int
    group_size: int
    interval: int
    mlp_ratio: float
    kernels: tuple[int, ...]
    stride: int
    cooling: bool

    @property
    def period(self) -> int:
        """After how many blocks the same follow: distances alternate, and every third block may be cooled."""
        return 6 if self.cooling else 2

    @property
    def periods(self) -> int:
        """How many whole periods there are; the last block of a stage is never cooled, and so in none then."""
        return (self.depth - self.cooling) // self.period


@no_type_check
@dataclass(frozen=True, kw_only=True)
class CrossFormerConfig(ImageModelConfig["CrossFormer"]):
    """Everything that defines a CrossFormer. `dim` counts the stages; one value of another field stands for all."""

    num_classes: int = 1000
    dim: tuple[int, ...] = (64, 128, 256, 512)
    # Blocks of each stage: the first, third ... attend at short distance, the others long.
    depth: int | tuple[int, ...] = (2, 2, 8, 2)
    global_window_size: int | tuple[int, ...] = (8, 4, 2, 1)  # spacing of the tokens of one long-distance group
    local_window_size: int | tuple[int, ...] = 7  # side of a group, short- and long-distance alike
    heads: int | tuple[int, ...] | None = None  # None: dim // 32
    mlp_ratio: float | tuple[float, ...] = 4.0  # MLP width, in multiples of dim
    # Of the embedding, then of the patch mergings.
    cross_embed_kernel_sizes: tuple[tuple[int, ...], ...] = ((4, 8, 16, 32), (2, 4))
    cross_embed_strides: int | tuple[int, ...] = (4, 2)
    dropout: float = 0.0  # after the embedding, attention output, inside and after the MLP
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over all blocks
    qkv_bias: bool = True
    cooling: bool = False  # CrossFormer++: an activation cooling layer after every third block of a stage but the last

    def check(self) -> None:
        check_at_least(self, 1, "mlp_ratio")
        counted = ("depth", "global_window_size", "local_window_size", "heads", "mlp_ratio")
        check_stages(self, len(self.dim), "dim", *counted, "cross_embed_kernel_sizes", "cross_embed_strides")
        for sizes in self.stages:
            dim, kernels, stride = sizes.dim, sizes.kernels, sizes.stride
            check(dim >= 32 or self.heads is not None, f"dim {dim} is below 32, the width of a head: give heads")
            check_heads(dim, sizes.heads, dim_head=None)
            check(dim >= 16, f"dim {dim} is below 16: the position bias has width dim // 16")
            check(
                all(kernel >= stride and (kernel - stride) % 2 == 0 for kernel in kernels),
                f"cross_embed_kernel_sizes {kernels} must each be stride {stride} plus an even number",
            )
            unit = 2 ** (len(kernels) - 1)
            check(dim % unit == 0, f"dim {dim} is not a multiple of {unit}, to share among {len(kernels)} kernels")

    @property
    def stages(self) -> tuple[StageSizes, ...]:
        heads = tuple(max(dim // 32, 1) for dim in self.dim) if self.heads is None else self.heads
        windows = (self.local_window_size, self.global_window_size)
        embeddings = (self.cross_embed_kernel_sizes, self.cross_embed_strides)
        each = (self.dim, self.depth, heads, *windows, self.mlp_ratio, *embeddings, self.cooling)
        columns = (per_stage(values, len(self.dim)) for values in each)
        return tuple(StageSizes(*values) for values in zip(*columns, strict=True))

    def check_image_size(self, height: int, width: int) -> None:
        first, *mergings = (sizes.stride for sizes in self.stages)
        even = math.prod(mergings)
        step = first * even
        for side in (height, width):
            below = side // step * step
            ways = f"use {below} or {below + step}" if below else f"use {step}"
            check(
                side // first % even == 0 and side >= step,
                f"this CrossFormer's maps are halved {len(mergings)} times: an image of {(height, width)} does not "
                f"divide by {step} (a rest below {first} is cut off): {ways} instead of {side}",
            )


class CrossScaleEmbedding(eqx.Module):
    """Convolutions of several kernel sizes and one stride, side by side (section 3.1): the larger, the narrower."""

    convs: tuple[Conv, ...]

    def __init__(self, in_channels: int, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        kernels, stride = sizes.kernels, sizes.stride
        widths = [sizes.dim // 2 ** (index + 1) for index in range(len(kernels) - 1)]
        widths.append(sizes.dim - sum(widths))
        keys = jax.random.split(key, len(kernels))
        self.convs = tuple(
            Conv(in_channels, width, kernel, stride=stride, padding=(kernel - stride) // 2, key=conv_key)
            for width, kernel, conv_key in zip(widths, kernels, keys, strict=True)
        )

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "rows columns dim"]:
        return jnp.concatenate([conv(x) for conv in self.convs], axis=-1)


class DynamicPositionBias(eqx.Module):
    """A bias per head for each offset of two tokens of a group, by a small network of the offset (section 3.3)."""

    embedding: Linear
    norms: tuple[LayerNorm, ...]
    linears: tuple[Linear, ...]

    def __init__(self, dim: int, heads: int, *, key: PRNGKeyArray) -> None:
        width = dim // 16
        embedding_key, *keys = jax.random.split(key, 4)
        self.embedding = Linear(2, width, key=embedding_key)
        self.norms = tuple(LayerNorm(width, NORM_EPS) for _ in keys)
        outputs = (width, width, heads)
        self.linears = tuple(Linear(width, size, key=own_key) for size, own_key in zip(outputs, keys, strict=True))

    def __call__(self, group_size: int) -> Float[Array, "heads tokens tokens"]:
        """For groups of `group_size` x `group_size` tokens. Offsets are query minus key, as raw numbers."""
        offsets = grid_coordinates(2 * group_size - 1, 2 * group_size - 1) - (group_size - 1)
        table = self.embedding(jnp.asarray(offsets, dtype=self.embedding.weight.dtype))
        for norm, linear in zip(self.norms, self.linears, strict=True):
            table = linear(jax.nn.relu(norm(table)))
        return table.T[:, relative_position_index(group_size, group_size)]


class GroupAttention(eqx.Module):
    """Self-attention within the groups of a map, with a dynamic position bias (section 3.2)."""

    qkv: Linear  # rows: q of all heads, k of all heads, v of all heads
    position_bias: DynamicPositionBias
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)
    group_size: int = eqx.field(static=True)
    interval: int = eqx.field(static=True)

    def __init__(self, config: CrossFormerConfig, sizes: StageSizes, interval: int, *, key: PRNGKeyArray) -> None:
        qkv_key, bias_key, projection_key = jax.random.split(key, 3)
        dim = sizes.dim
        self.qkv = Linear(dim, 3 * dim, use_bias=config.qkv_bias, key=qkv_key)
        self.position_bias = DynamicPositionBias(dim, sizes.heads, key=bias_key)
        self.projection = OutputProjection(dim, dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.heads = sizes.heads
        self.group_size = sizes.group_size
        self.interval = interval

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        rows, columns = x.shape[:2]
        small = min(rows, columns) <= self.group_size
        group_size, interval = (min(rows, columns), 1) if small else (self.group_size, self.interval)
        # The padding is put after the projection: what it holds is never seen, masked as key and cut off as query.
        groups = to_groups(self.qkv(x), group_size, interval)
        mask = padding_mask((rows, columns), group_size, interval)
        keys = stack_or_none(attention_key, len(groups))
        attend_in_group = functools.partial(self.attend_in_group, self.position_bias(group_size))
        attended = jax.vmap(attend_in_group)(groups, mask, keys)
        attended = from_groups(attended, group_size, interval, (rows, columns))
        return self.projection(attended, key=projection_key)

    def attend_in_group(
        self,
        bias: Float[Array, "heads tokens tokens"],
        fused: Float[Array, "tokens channels"],
        mask: Bool[Array, " tokens"] | None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "tokens dim"]:
        """Where `mask` is False, a token is not attended to."""
        query, keys, value = split_heads(fused, 3, self.heads)
        allowed = None if mask is None else jnp.broadcast_to(mask, (1, *bias.shape[1:]))
        dropout = self.attention_dropout
        return merge_heads(attend(query, keys, value, bias=bias, mask=allowed, dropout=dropout, dropout_key=key))


class ActivationCooling(eqx.Module):
    """CrossFormer++'s activation cooling layer: a depthwise convolution and a norm, without a residual."""

    conv: Conv
    norm: LayerNorm

    def __init__(self, dim: int, *, key: PRNGKeyArray) -> None:
        self.conv = Conv(dim, dim, 3, padding=1, groups=dim, key=key)
        self.norm = LayerNorm(dim, NORM_EPS)

    def __call__(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "rows columns dim"]:
        return self.norm(self.conv(x))


class CooledBlock(eqx.Module):
    """A block with a cooling layer at its end."""

    block: PreNormBlock[GroupAttention]
    cooling: ActivationCooling

    def __call__(
        self, x: Float[Array, "rows columns dim"], drop_scale: Float[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        return self.cooling(self.block(x, drop_scale, key=key))


Block: TypeAlias = PreNormBlock[GroupAttention] | CooledBlock


class PatchMerging(eqx.Module):
    """Between two stages: a norm, then a cross-scale embedding of the map on half as many rows and columns."""

    norm: LayerNorm
    embedding: CrossScaleEmbedding

    def __init__(self, dim: int, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        self.norm = LayerNorm(dim, NORM_EPS)
        self.embedding = CrossScaleEmbedding(dim, sizes, key=key)

    def __call__(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "new_rows new_columns new_dim"]:
        return self.embedding(self.norm(x))


class CrossFormer(StatelessImageModel[CrossFormerConfig]):
    """CrossFormer: one image to logits.

        step                       shape                    crossformer_small_patch4_group7_224
        image                      height width channels    224 224 3
        embedding, norm            rows columns dim[0]      56 56 96
        stage i: depth[i] x block  rows columns dim[i]      56 56 96, then 28 28 192, 14 14 384, 7 7 768
          patch merging            rows columns dim[i + 1]  28 28 192, ...
        norm                       rows columns dim[-1]     7 7 768
        mean over the map          dim[-1]                  768
        head                       num_classes              1000

    The embedding has kernels 4 to 32 and stride 4, a patch merging kernels 2 and 4 and stride 2. A block is attention,
    of short and long distance in turn, and MLP, pre-norm, residual; CrossFormer++ cools every third.
    """

    embedding: CrossScaleEmbedding
    embedding_norm: LayerNorm
    embedding_dropout: Dropout
    stages: tuple[PeriodicStack[Block], ...]
    mergings: tuple[PatchMerging, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity

    def __init__(self, config: CrossFormerConfig, *, key: PRNGKeyArray) -> None:
        embedding_key, stages_key, mergings_key, head_key = jax.random.split(key, 4)
        self.config = config
        stages = config.stages
        self.embedding = CrossScaleEmbedding(config.channels, stages[0], key=embedding_key)
        self.embedding_norm = LayerNorm(stages[0].dim, NORM_EPS)
        self.embedding_dropout = Dropout(config.dropout)
        stage_keys = jax.random.split(stages_key, len(stages))
        self.stages = tuple(map(functools.partial(_make_stage, config), stages, stage_keys))
        merging_keys = jax.random.split(mergings_key, len(stages) - 1)
        self.mergings = tuple(
            PatchMerging(before.dim, after, key=merging_key)
            for before, after, merging_key in zip(stages[:-1], stages[1:], merging_keys, strict=True)
        )
        self.norm = LayerNorm(stages[-1].dim, NORM_EPS)
        self.head = make_head(stages[-1].dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "rows columns dim"]:
        """The map of the first stage."""
        return self.embedding_dropout(self.embedding_norm(self.embedding(image)), key=key)

    def encode(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "new_rows new_columns new_dim"]:
        """The map of the last stage, after the final norm."""
        schedules = drop_path_schedule([sizes.depth for sizes in self.config.stages])
        keys = split_or_none(key, len(self.stages))
        for index, (blocks, schedule, stage_key) in enumerate(zip(self.stages, schedules, keys, strict=True)):
            x = self.mergings[index - 1](x) if index else x
            x = blocks(x, xs=(schedule,), key=stage_key)
        return self.norm(x)

    def classify(self, features: Float[Array, "rows columns dim"]) -> Float[Array, " classes"]:
        """Logits of the mean over the map."""
        return self.head(jnp.mean(features, axis=(0, 1)))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each stage."""
        points, reduction = list[FeaturePoint](), 1
        for stage, sizes in enumerate(self.config.stages):
            reduction *= sizes.stride
            norm = self.norm if stage == len(self.stages) - 1 else None
            points.append(FeaturePoint(f"stages.{stage}", sizes.dim, reduction, norm=norm))
        return points


def to_groups(x: Float[Array, "rows columns dim"], group_size: int, interval: int) -> Float[Array, "groups tokens dim"]:
    """The map, padded with zeros at the bottom and right, as groups of `group_size`² tokens `interval` apart."""
    unit = group_size * interval
    padded = jnp.pad(x, ((0, -x.shape[0] % unit), (0, -x.shape[1] % unit), (0, 0)))
    pattern = "(a g i) (b h j) dim -> (a i b j) (g h) dim"
    return rearrange(padded, pattern, g=group_size, i=interval, h=group_size, j=interval)


def from_groups(
    groups: Float[Array, "groups tokens dim"], group_size: int, interval: int, size: tuple[int, int]
) -> Float[Array, "rows columns dim"]:
    """The inverse of `to_groups`, for a map of (rows, columns) `size`."""
    blocks = math.ceil(size[0] / (group_size * interval))
    pattern = "(a i b j) (g h) dim -> (a g i) (b h j) dim"
    return rearrange(groups, pattern, a=blocks, i=interval, j=interval, g=group_size)[: size[0], : size[1]]


def padding_mask(size: tuple[int, int], group_size: int, interval: int) -> Bool[Array, "groups tokens"] | None:
    """False for the tokens of the groups of a map that are padding; None where there is none."""
    if size[0] % (group_size * interval) == 0 and size[1] % (group_size * interval) == 0:
        return None
    return to_groups(jnp.ones((*size, 1)), group_size, interval)[..., 0] > 0


def _make_stage(config: CrossFormerConfig, sizes: StageSizes, key: PRNGKeyArray) -> PeriodicStack[Block]:
    make_block = functools.partial(_make_block, config, sizes)
    return PeriodicStack.build(make_block, sizes.depth, sizes.period, count=sizes.periods, key=key)


def _make_block(config: CrossFormerConfig, sizes: StageSizes, index: int, *, key: PRNGKeyArray) -> Block:
    attention_key, mlp_key, cooling_key = jax.random.split(key, 3)
    attention = GroupAttention(config, sizes, sizes.interval if index % 2 else 1, key=attention_key)
    mlp = MLP(sizes.dim, int(sizes.dim * sizes.mlp_ratio), dropout=config.dropout, key=mlp_key)
    block = PreNormBlock(attention, mlp, sizes.dim, norm_eps=NORM_EPS, drop_path=config.drop_path)
    cooled = sizes.cooling and index % 3 == 2 and index + 1 < sizes.depth
    return CooledBlock(block, ActivationCooling(sizes.dim, key=cooling_key)) if cooled else block


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
