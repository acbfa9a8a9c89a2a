"""RegionViT (arXiv 2106.02689): regional-to-local attention.

The idea: two maps of tokens, a coarse one of regions and a fine one of local tokens, so that each region owns a window
of local tokens. Regions attend to each other over the whole image, then each to its own window and the window to it:
local attention with global sight, in a pyramid of four stages.

Axes: windows = regions, row-major; tokens = the region and then the local tokens of its window, row-major. Local maps
that the windows do not fill are padded at the bottom and right, once a stage: the padding then lives through the
blocks as tokens do, and masks keep it from the others (see `window_masks`). No departure from the official code
(IBM/RegionViT), of whose options a learned region token and norms for detection are left out.
"""

import functools
import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    OutputProjection,
    PatchEmbedding,
    Stack,
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
from eqx_vit.layers.config import check, check_heads, check_stages, no_type_check, per_stage
from eqx_vit.layers.init import truncated_normal
from eqx_vit.layers.window import grid_coordinates
from eqx_vit.model import ImageModelConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import FeaturePoint

MAP_NORM_EPS = 1e-5  # of the norms in the stem and the downsampling
NORM_EPS = 1e-6  # of all others

Maps = tuple[Float[Array, "region_rows region_columns dim"], Float[Array, "rows columns dim"]]  # regions, local tokens


class StageSizes(NamedTuple):
    """The numbers of one stage."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int


@no_type_check
@dataclass(frozen=True, kw_only=True)
class RegionViTConfig(ImageModelConfig["RegionViT"]):
    """Everything that defines a RegionViT. `dim` counts the stages; one value of another field stands for all."""

    num_classes: int = 1000
    dim: tuple[int, ...] = (64, 128, 256, 512)  # each a multiple of the one before
    depth: int | tuple[int, ...] = (2, 2, 8, 2)
    window_size: int = 7  # side of a region's window, in local tokens
    tokenize_local_3_conv: bool = False  # three convolutions in the local stem instead of one
    use_peg: bool = False  # positions by depthwise convolution, after the first block of each stage
    local_patch_size: int = 4  # pixels a local token, per side
    heads: int | tuple[int, ...] | None = None  # None: dim // 32
    mlp_ratio: float | tuple[float, ...] = 4.0  # MLP width, in multiples of dim
    dropout: float = 0.0  # after the local stem, attention output, inside and after the MLP
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over all blocks; per window where windows attend
    qkv_bias: bool = True

    def check(self) -> None:
        check_stages(self, len(self.dim), "dim", "depth", "heads", "mlp_ratio")
        for dim, _, heads, mlp_dim in self.stages:
            check(dim >= 32 or self.heads is not None, f"dim {dim} is below 32, the width of a head: give heads")
            check_heads(dim, heads, dim_head=None)
            check(mlp_dim > 0, f"RegionViTConfig.mlp_ratio leaves no MLP, given {self.mlp_ratio}")
        for dim, new_dim in itertools.pairwise(self.dim):
            check(
                new_dim % dim == 0, f"dim {new_dim} is not a multiple of {dim}, the one before: downsampling needs it"
            )
        three = self.tokenize_local_3_conv
        check(
            self.local_patch_size >= 2 and (not three or self.local_patch_size == 4),
            f"local_patch_size must be at least 2, and 4 with tokenize_local_3_conv; given {self.local_patch_size}",
        )
        check(not three or self.dim[0] % 4 == 0, f"dim {self.dim[0]} is not a multiple of 4, for the local stem")

    @property
    def stages(self) -> tuple[StageSizes, ...]:
        count = len(self.dim)
        heads = per_stage(self.heads, count)
        ratios = per_stage(self.mlp_ratio, count)
        return tuple(
            StageSizes(dim, depth, heads or max(dim // 32, 1), int(dim * ratio))
            for dim, depth, heads, ratio in zip(self.dim, per_stage(self.depth, count), heads, ratios, strict=True)
        )

    @property
    def region_patch_size(self) -> int:
        return self.local_patch_size * self.window_size

    def check_image_size(self, height: int, width: int) -> None:
        least = 1 if self.tokenize_local_3_conv else 2
        check(
            min(height, width) >= least,
            f"this RegionViT takes images of at least {(least, least)}, given {(height, width)}: enlarge the image",
        )


class LocalStem(eqx.Module):
    """The image to the local map: one overlapping convolution, or three with norms and GELU between them."""

    convs: tuple[Conv, ...]
    norms: tuple[LayerNorm, ...]

    def __init__(self, config: RegionViTConfig, *, key: PRNGKeyArray) -> None:
        dim, patch = config.dim[0], config.local_patch_size
        if config.tokenize_local_3_conv:
            widths, conv_keys = (config.channels, dim // 4, dim // 2, dim), jax.random.split(key, 3)
            self.convs = tuple(
                Conv(before, after, 3, stride=stride, padding=1, key=conv_key)
                for before, after, stride, conv_key in zip(widths, widths[1:], (2, 2, 1), conv_keys, strict=False)
            )
        else:
            self.convs = (Conv(config.channels, dim, 2 * patch, stride=patch, padding=patch - 1, key=key),)
        self.norms = tuple(LayerNorm(conv.weight.shape[0], MAP_NORM_EPS) for conv in self.convs[:-1])

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "rows columns dim"]:
        x = self.convs[0](image)
        for norm, conv in zip(self.norms, self.convs[1:], strict=True):
            x = conv(gelu(norm(x)))
        return x


class Downsample(eqx.Module):
    """Norm, GELU and a depthwise convolution of stride 2: one for both maps. Each channel makes several."""

    norm: LayerNorm
    conv: Conv

    def __init__(self, dim: int, new_dim: int, *, key: PRNGKeyArray) -> None:
        self.norm = LayerNorm(dim, MAP_NORM_EPS)
        self.conv = Conv(dim, new_dim, 3, stride=2, padding=1, groups=dim, key=key)

    def __call__(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "new_rows new_columns new_dim"]:
        return self.conv(gelu(self.norm(x)))


class Attention(eqx.Module):
    """Self-attention of several sequences alike, the regions or the windows, by one set of weights (section 3.1)."""

    qkv: Linear  # rows: q of all heads, k of all heads, v of all heads
    position_bias: Float[Array, "heads offsets"]
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)
    window: int = eqx.field(static=True)

    def __init__(self, config: RegionViTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        qkv_key, bias_key, projection_key = jax.random.split(key, 3)
        dim, self.heads, self.window = sizes.dim, sizes.heads, config.window_size
        self.qkv = Linear(dim, 3 * dim, use_bias=config.qkv_bias, key=qkv_key)
        self.position_bias = truncated_normal()(bias_key, (self.heads, (2 * self.window - 1) ** 2))
        self.projection = OutputProjection(dim, dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)

    def __call__(
        self,
        sequences: Float[Array, "sequences tokens dim"],
        bias: Float[Array, "heads tokens tokens"] | None = None,
        masks: Bool[Array, "sequences tokens tokens"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "sequences tokens dim"]:
        attention_key, projection_key = split_or_none(key)

        def attend_one(fused: Array, mask: Array | None, key: PRNGKeyArray | None) -> Array:
            query, keys, value = split_heads(fused, 3, self.heads)
            allowed = None if mask is None else mask[None]
            dropout = self.attention_dropout
            return merge_heads(attend(query, keys, value, bias=bias, mask=allowed, dropout=dropout, dropout_key=key))

        keys = stack_or_none(attention_key, len(sequences))
        attended = jax.vmap(attend_one)(self.qkv(sequences), masks, keys)
        return self.projection(attended, key=projection_key)

    def window_bias(self) -> Float[Array, "heads tokens tokens"]:
        """The bias of a window: from offsets among its local tokens, 0 from and to the region."""
        return jnp.pad(self.position_bias[:, wrapped_offsets(self.window)], ((0, 0), (1, 0), (1, 0)))


class Block(eqx.Module):
    """Regions attend to each other, then each window and its region; then the MLP (equations 2 to 4)."""

    norm0: LayerNorm
    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: RegionViTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm0 = LayerNorm(sizes.dim, NORM_EPS)
        self.norm1 = LayerNorm(sizes.dim, NORM_EPS)
        self.attention = Attention(config, sizes, key=attention_key)
        self.norm2 = LayerNorm(sizes.dim, NORM_EPS)
        self.mlp = MLP(sizes.dim, sizes.mlp_dim, dropout=config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        tokens: Float[Array, "windows tokens dim"],
        masks: Bool[Array, "windows tokens tokens"] | None = None,
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "windows tokens dim"]:
        region_key, path0_key, window_key, path1_key, mlp_key, path2_key = split_or_none(key, 6)
        regions = tokens[:, 0]
        branch = self.attention(self.norm0(regions)[None], key=region_key)[0]
        regions = regions + self.drop_path(branch, drop_scale, key=path0_key)
        tokens = jnp.concatenate([regions[:, None], tokens[:, 1:]], axis=1)
        branch = self.attention(self.norm1(tokens), self.attention.window_bias(), masks, key=window_key)
        tokens = tokens + self._drop_windows(branch, drop_scale, path1_key)
        branch = self.mlp(self.norm2(tokens), key=mlp_key)
        return tokens + self._drop_windows(branch, drop_scale, path2_key)

    def _drop_windows(
        self,
        branch: Float[Array, "windows tokens dim"],
        drop_scale: float | Float[Array, ""],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "windows tokens dim"]:
        drop = jax.vmap(lambda window, key: self.drop_path(window, drop_scale, key=key))
        return drop(branch, stack_or_none(key, len(branch)))


class Stage(eqx.Module):
    """The downsampling of both maps, which the first stage does not have, and the blocks on their windows."""

    downsample: Downsample | eqx.nn.Identity
    blocks: Stack[Block]
    peg: Conv | None  # not a `PEG`: here the official code decays the weight
    window: int = eqx.field(static=True)

    def __init__(self, config: RegionViTConfig, dim: int | None, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        """`dim`: of the stage before; None for the first stage."""
        downsample_key, blocks_key, peg_key = jax.random.split(key, 3)
        new_dim, make_block = sizes.dim, functools.partial(Block, config, sizes)
        self.downsample = eqx.nn.Identity() if dim is None else Downsample(dim, new_dim, key=downsample_key)
        self.blocks = Stack.build(make_block, sizes.depth, key=blocks_key)
        peg = functools.partial(Conv, kernel_size=3, padding=1, groups=new_dim, use_bias=False, key=peg_key)
        self.peg = peg(new_dim, new_dim) if config.use_peg else None
        self.window = config.window_size

    def __call__(
        self,
        regions: Float[Array, "region_rows region_columns dim"],
        local: Float[Array, "rows columns dim"],
        drop_scales: Float[Array, " depth"],
        *,
        key: PRNGKeyArray | None,
    ) -> Maps:
        grid, size = (regions.shape[0], regions.shape[1]), (local.shape[0], local.shape[1])
        masks = window_masks(grid, size, self.window)
        tokens = to_tokens(regions, local, self.window)
        if self.peg is None:
            return from_tokens(self.blocks(tokens, masks, xs=(drop_scales,), key=key), grid, size, self.window)
        first_key, rest_key = split_or_none(key)
        tokens = self.blocks[0](tokens, masks, drop_scales[0], key=first_key)
        regions, local = (x + self.peg(x) for x in from_tokens(tokens, grid, size, self.window))
        tokens = to_tokens(regions, local, self.window)  # the padding is zero again
        if len(self.blocks) > 1:
            tokens = self.blocks[1:](tokens, masks, xs=(drop_scales,), key=rest_key)
        return from_tokens(tokens, grid, size, self.window)


class RegionViT(StatelessImageModel[RegionViTConfig]):
    """RegionViT: one image of any size to logits.

        step                    shape                               regionvit_tiny_224
        image                   height width channels               224 224 3
        local stem              rows columns dim[0]                 56 56 64
        region stem             region_rows region_columns dim[0]   8 8 64
        stage i: downsample     both maps, dim[i]                   from the second on: 28 28 128 and 4 4 128, ...
          depth[i] x block      windows tokens dim[i]               64 50 64, then 16 50 128, 4 50 256, 1 50 512
        norm                    region_rows region_columns dim[-1]  1 1 512
        mean over the regions   dim[-1]                             512
        head                    num_classes                         1000

    rows and columns are those of the image divided by 4, regions of 4 * window_size pixels each; downsampling halves
    both. All are rounded up. A window is a region and its window_size ** 2 local tokens. A block is attention of the
    regions, attention of the windows, and MLP, pre-norm, residual.
    """

    local_stem: LocalStem
    local_dropout: Dropout
    region_stem: PatchEmbedding
    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity

    def __init__(self, config: RegionViTConfig, *, key: PRNGKeyArray) -> None:
        local_key, region_key, stages_key, head_key = jax.random.split(key, 4)
        patch, last = config.region_patch_size, config.dim[-1]
        stage_keys = jax.random.split(stages_key, len(config.stages))
        self.config = config
        self.local_stem = LocalStem(config, key=local_key)
        self.local_dropout = Dropout(config.dropout)
        self.region_stem = PatchEmbedding((patch, patch), config.channels, config.dim[0], key=region_key)
        self.stages = tuple(
            Stage(config, dim, sizes, key=stage_key)
            for dim, sizes, stage_key in zip((None, *config.dim), config.stages, stage_keys, strict=False)
        )
        self.norm = LayerNorm(last, NORM_EPS)
        self.head = make_head(last, config.num_classes, key=head_key)

    def embed(self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None) -> Maps:
        """The two maps of the first stage."""
        local = self.local_dropout(self.local_stem(image), key=key)
        return self.region_stem(pad_for_regions(image, self.config.region_patch_size)), local

    def encode(
        self, x: Maps, *, key: PRNGKeyArray | None
    ) -> Float[Array, "new_region_rows new_region_columns new_dim"]:
        """The regions of the last stage, after the final norm; the local tokens end there."""
        regions, local = x
        schedules = drop_path_schedule([sizes.depth for sizes in self.config.stages])
        keys = split_or_none(key, len(self.stages))
        for stage, schedule, stage_key in zip(self.stages, schedules, keys, strict=True):
            regions, local = stage(stage.downsample(regions), stage.downsample(local), schedule, key=stage_key)
        return self.norm(regions)

    def classify(self, features: Float[Array, "region_rows region_columns dim"]) -> Float[Array, " classes"]:
        """Logits of the mean over the regions."""
        return self.head(jnp.mean(features, axis=(0, 1)))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The local tokens after each stage."""
        return [
            FeaturePoint(f"stages.{stage}", dim, self.config.local_patch_size * 2**stage, part=1)
            for stage, dim in enumerate(self.config.dim)
        ]

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """The local tokens before the last stage, after which the head reads the regions alone."""
        config, points = self.config, self.feature_points(height, width)
        return points[-2] if len(points) > 1 else FeaturePoint("local_stem", config.dim[0], config.local_patch_size)


def pad_for_regions(
    image: Float[Array, "height width channels"], patch_size: int
) -> Float[Array, "new_height new_width channels"]:
    """The image with zeros around it, to whole patches. The official rule: where one side does not divide, the other
    gets padding too, a whole patch if it does divide."""
    missing = [patch_size - side % patch_size for side in image.shape[:2]]
    if all(length == patch_size for length in missing):
        return image
    top, left = (length // 2 for length in missing)
    return jnp.pad(image, ((top, missing[0] - top), (left, missing[1] - left), (0, 0)))


def to_tokens(
    regions: Float[Array, "region_rows region_columns dim"], local: Float[Array, "rows columns dim"], window: int
) -> Float[Array, "windows tokens dim"]:
    """Each region, then its window of local tokens; the local map is padded with zeros at the bottom and right."""
    missing = [window * count - length for count, length in zip(regions.shape[:2], local.shape[:2], strict=True)]
    padded = jnp.pad(local, ((0, missing[0]), (0, missing[1]), (0, 0)))
    windows = to_windows(padded, (window, window))
    return jnp.concatenate([regions.reshape(-1, 1, regions.shape[-1]), windows], axis=1)


def from_tokens(
    tokens: Float[Array, "windows tokens dim"], grid: tuple[int, int], size: tuple[int, int], window: int
) -> Maps:
    """The inverse of `to_tokens`, for a region map of `grid` and a local map of `size`."""
    local = from_windows(tokens[:, 1:], (window, window), (window * grid[0], window * grid[1]))
    return tokens[:, 0].reshape(*grid, -1), local[: size[0], : size[1]]


def window_masks(
    grid: tuple[int, int], size: tuple[int, int], window: int
) -> Bool[Array, "windows tokens tokens"] | None:
    """Which tokens of each window may attend to which; None where the windows fill the local map.

    In the last column of windows, tokens outside the horizontal padding attend to each other; in the last row, those
    outside the vertical padding. In the corner it is enough to satisfy one of the two: the official code unites the
    masks, so that real tokens there attend to padding.
    """
    if size == (window * grid[0], window * grid[1]):
        return None
    real = grid_coordinates(window, window) < np.array(size) - window * (np.array(grid) - 1)
    real = np.concatenate([np.ones((1, 2), dtype=bool), real])  # the region is
    pairs = real[:, None] & real[None]
    masks = np.ones((*grid, len(real), len(real)), dtype=bool)
    masks[:, -1] = pairs[..., 1]
    masks[-1] = pairs[..., 0]
    masks[-1, -1] = pairs[..., 0] | pairs[..., 1]
    return jnp.asarray(masks.reshape(-1, len(real), len(real)))


def wrapped_offsets(window: int) -> Int[np.ndarray, "queries keys"]:
    """Index of (key - query) into the position table of a window, in the official order: shifted by half a window,
    negative offsets wrapped around to the end."""
    coordinates, length = grid_coordinates(window, window), 2 * window - 1
    offset = (coordinates[None] - coordinates[:, None] + window // 2) % length
    return offset[..., 0] * length + offset[..., 1]


def _preset(dim: int, depth: tuple[int, ...], three_convs: bool) -> RegionViTConfig:
    return RegionViTConfig(dim=(dim, 2 * dim, 4 * dim, 8 * dim), depth=depth, tokenize_local_3_conv=three_convs)


_SMALL = _preset(96, (2, 2, 8, 2), True)
_BASE = _preset(128, (2, 2, 14, 2), False)

PRESETS: dict[str, RegionViTConfig] = {
    "regionvit_tiny_224": _preset(64, (2, 2, 8, 2), True),  # 13,842,676
    "regionvit_small_224": _SMALL,  # 30,586,618
    "regionvit_medium_224": _preset(96, (2, 2, 14, 2), False),  # 41,215,906
    "regionvit_base_224": _BASE,  # 72,747,232
    "regionvit_small_w14_224": replace(_SMALL, window_size=14),  # 31,354,714
    "regionvit_small_w14_peg_224": replace(_SMALL, window_size=14, use_peg=True),  # 31,367,674
    "regionvit_base_w14_224": replace(_BASE, window_size=14),  # 73,825,120
    "regionvit_base_w14_peg_224": replace(_BASE, window_size=14, use_peg=True),  # 73,842,400
}


def _source(file: str) -> Source:
    url = f"https://github.com/IBM/RegionViT/releases/download/weights-v0.1/{file}"
    return Source(hub=url, layout="official", file=file, crop=0.875)


WEIGHTS: dict[str, Source] = {
    "regionvit_tiny_224": _source("RegionViT-Ti.pth"),
    "regionvit_small_224": _source("RegionViT-S.pth"),
    "regionvit_medium_224": _source("RegionViT-M.pth"),
    "regionvit_base_224": _source("RegionViT-B.pth"),
}
