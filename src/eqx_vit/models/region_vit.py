"""RegionViT (arXiv 2106.02689): regional-to-local attention.

The idea: two maps of tokens, a coarse one of regions and a fine one of local tokens, so that each region owns a window
of local tokens. Regions attend to each other over the whole image, then each to its own window and the window to it:
local attention with global sight, in a pyramid of four stages.

    image                      height width channels
    local stem                 rows columns dim[0]               rows = height / 4, columns = width / 4, rounded up
    region stem                regions dim[0]                    one patch of 4 * window_size pixels a region
    downsample, before i > 0   both maps, dim[i]                 half the rows and columns of each, rounded up
    stage i: depth[i] x block  windows 1 + window_size^2 dim[i]  the region and its window; one window a region
    norm                       region_rows region_columns dim[-1]
    mean over the regions      dim[-1]
    head                       num_classes

Axes: windows = regions, row-major; tokens = the region and then the local tokens of its window, row-major. Local maps
that the windows do not fill are padded at the bottom and right, once a stage: the padding then lives through the
blocks as tokens do, and masks keep it from the others (see `window_masks`). No departure from the official code
(IBM/RegionViT), of whose options a learned region token and norms for detection are left out.
"""

import functools
import itertools
import math
import typing
from dataclasses import dataclass, replace

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
    PatchEmbedding,
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
from eqx_vit.layers.config import check, check_fields, check_positive, check_rates, per_stage
from eqx_vit.layers.init import truncated_normal
from eqx_vit.layers.window import grid_coordinates
from eqx_vit.models.source import Source

_MAP_EPS, _TOKEN_EPS = 1e-5, 1e-6  # of the norms on maps (stem, downsampling), and of all others


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class RegionViTConfig:
    """Everything that defines a RegionViT. `dim` counts the stages; one value of another field stands for all."""

    dim: tuple[int, ...] = (64, 128, 256, 512)  # each a multiple of the one before
    depth: int | tuple[int, ...] = (2, 2, 8, 2)
    window_size: int = 7  # side of a region's window, in local tokens
    num_classes: int = 1000  # 0: no head, the pooled features come out
    tokenize_local_3_conv: bool = False  # three convolutions in the local stem instead of one
    use_peg: bool = False  # positions by depthwise convolution, after the first block of each stage
    local_patch_size: int = 4  # pixels a local token, per side
    heads: int | tuple[int, ...] | None = None  # None: dim // 32
    mlp_ratio: float | tuple[float, ...] = 4.0  # MLP width, in multiples of dim
    channels: int = 3
    dropout: float = 0.0  # after the local stem, attention output, inside and after the MLP
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over all blocks; per window where windows attend
    qkv_bias: bool = True

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "dim", "depth", "window_size", "heads", "mlp_ratio", "channels")
        check_rates(self, "dropout", "attention_dropout", "drop_path")
        check(self.num_classes >= 0, f"RegionViTConfig.num_classes must not be negative, given {self.num_classes}")
        for name in ("depth", "heads", "mlp_ratio"):
            count = len(per_stage(getattr(self, name), 1))
            check(count <= self.stages, f"RegionViTConfig.{name} has {count} values for {self.stages} stages (dim)")
        for dim, heads in zip(self.dim, self.heads_of_stages, strict=True):
            check(dim >= 32 or self.heads is not None, f"dim {dim} is below 32, the width of a head: give heads")
            check(dim % heads == 0, f"dim {dim} is not a multiple of heads {heads}: change one")
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
    def region_patch_size(self):
        return self.local_patch_size * self.window_size

    def check_image_size(self, height, width):
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
            widths, keys = (config.channels, dim // 4, dim // 2, dim), jax.random.split(key, 3)
            self.convs = tuple(
                Conv(before, after, 3, stride=stride, padding=1, key=key)
                for before, after, stride, key in zip(widths, widths[1:], (2, 2, 1), keys, strict=False)
            )
        else:
            self.convs = (Conv(config.channels, dim, 2 * patch, stride=patch, padding=patch - 1, key=key),)
        self.norms = tuple(LayerNorm(conv.weight.shape[0], _MAP_EPS) for conv in self.convs[:-1])

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
        self.norm = LayerNorm(dim, _MAP_EPS)
        self.conv = Conv(dim, new_dim, 3, stride=2, padding=1, groups=dim, key=key)

    def __call__(self, x: Float[Array, "rows columns dim"]) -> Float[Array, "new_rows new_columns new_dim"]:
        return self.conv(gelu(self.norm(x)))


class Attention(eqx.Module):
    """Self-attention of several sequences alike, the regions or the windows, by one set of weights (section 3.1)."""

    qkv: Linear  # rows: q of all heads, k of all heads, v of all heads
    position_bias: Float[Array, "heads offsets"]
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout

    def __init__(self, config: RegionViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        qkv_key, bias_key, projection_key = jax.random.split(key, 3)
        dim, heads = config.dim[stage], config.heads_of_stages[stage]
        self.qkv = Linear(dim, 3 * dim, use_bias=config.qkv_bias, key=qkv_key)
        self.position_bias = truncated_normal()(bias_key, (heads, (2 * config.window_size - 1) ** 2))
        self.projection = Linear(dim, dim, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.projection_dropout = Dropout(config.dropout)

    def __call__(
        self,
        sequences: Float[Array, "sequences tokens dim"],
        bias: Float[Array, "heads tokens tokens"] | None = None,
        masks: Bool[Array, "sequences tokens tokens"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "sequences tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        keys = None if attention_key is None else jax.random.split(attention_key, sequences.shape[0])
        run = functools.partial(_attend, self.position_bias.shape[0], bias, self.attention_dropout)
        axes = (0, None if masks is None else 0, None if keys is None else 0)
        mixed = jax.vmap(run, in_axes=axes)(self.qkv(sequences), masks, keys)
        return self.projection_dropout(self.projection(mixed), key=projection_key)

    def window_bias(self) -> Float[Array, "heads tokens tokens"]:
        """The bias of a window: from offsets among its local tokens, 0 from and to the region."""
        window = (math.isqrt(self.position_bias.shape[1]) + 1) // 2
        return jnp.pad(self.position_bias[:, wrapped_offsets(window)], ((0, 0), (1, 0), (1, 0)))


class Block(eqx.Module):
    """Regions attend to each other, then each window and its region; then the MLP (equations 2 to 4)."""

    norm0: LayerNorm
    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: RegionViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        dim = config.dim[stage]
        hidden = int(dim * per_stage(config.mlp_ratio, config.stages)[stage])
        self.norm0 = LayerNorm(dim, _TOKEN_EPS)
        self.norm1 = LayerNorm(dim, _TOKEN_EPS)
        self.attention = Attention(config, stage, key=attention_key)
        self.norm2 = LayerNorm(dim, _TOKEN_EPS)
        self.mlp = MLP(dim, hidden, dropout=config.dropout, key=mlp_key)
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
        if key is None:
            return self.drop_path(branch, drop_scale)
        drop = jax.vmap(lambda window, key: self.drop_path(window, drop_scale, key=key))
        return drop(branch, jax.random.split(key, branch.shape[0]))


class Stage(eqx.Module):
    """Downsampling of both maps (not before the first stage), then blocks on the windows."""

    downsample: Downsample | None
    blocks: Stack
    peg: Conv | None  # not a `PEG`: here the official code decays the weight
    window: int = eqx.field(static=True)

    def __init__(self, config: RegionViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        downsample_key, blocks_key, peg_key = jax.random.split(key, 3)
        dim, before = config.dim[stage], config.dim[max(stage - 1, 0)]
        self.downsample = Downsample(before, dim, key=downsample_key) if stage else None
        self.blocks = Stack.build(functools.partial(_block, config, stage), config.depths[stage], key=blocks_key)
        self.peg = Conv(dim, dim, 3, padding=1, groups=dim, use_bias=False, key=peg_key) if config.use_peg else None
        self.window = config.window_size

    def __call__(
        self,
        regions: Float[Array, "region_rows region_columns dim"],
        local: Float[Array, "rows columns dim"],
        drop_scales: Float[Array, " depth"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[
        Float[Array, "new_region_rows new_region_columns new_dim"], Float[Array, "new_rows new_columns new_dim"]
    ]:
        if self.downsample is not None:
            regions, local = self.downsample(regions), self.downsample(local)
        grid, size = (regions.shape[0], regions.shape[1]), (local.shape[0], local.shape[1])
        masks = window_masks(grid, size, self.window)
        tokens = to_tokens(regions, local, self.window)
        if self.peg is None:
            return from_tokens(self.blocks(tokens, masks, scanned=(drop_scales,), key=key), grid, size, self.window)
        first_key, rest_key = split_or_none(key)
        tokens = self.blocks[0](tokens, masks, drop_scales[0], key=first_key)
        regions, local = (x + self.peg(x) for x in from_tokens(tokens, grid, size, self.window))
        tokens = to_tokens(regions, local, self.window)  # the padding is zero again
        if len(self.blocks) > 1:
            tokens = self.blocks[1:](tokens, masks, scanned=(drop_scales[1:],), key=rest_key)
        return from_tokens(tokens, grid, size, self.window)


class RegionViT(eqx.Module):
    """RegionViT: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    local_stem: LocalStem
    local_dropout: Dropout
    region_stem: PatchEmbedding
    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: RegionViTConfig = eqx.field(static=True)

    def __init__(self, config: RegionViTConfig, *, key: PRNGKeyArray) -> None:
        local_key, region_key, stages_key, head_key = jax.random.split(key, 4)
        region_patch, last = config.region_patch_size, config.dim[-1]
        self.local_stem = LocalStem(config, key=local_key)
        self.local_dropout = Dropout(config.dropout)
        self.region_stem = PatchEmbedding((region_patch, region_patch), config.channels, config.dim[0], key=region_key)
        self.stages = tuple(
            Stage(config, stage, key=key) for stage, key in enumerate(jax.random.split(stages_key, config.stages))
        )
        self.norm = LayerNorm(last, _TOKEN_EPS)
        self.head = Linear(last, config.num_classes, key=head_key) if config.num_classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "region_rows region_columns dim"]:
        """The regions of the last stage, after the final norm; the local tokens end there."""
        local_key, *keys = split_or_none(key, 1 + self.config.stages)
        depths = self.config.depths
        scales = jnp.split(ramp(sum(depths)), list(itertools.accumulate(depths))[:-1])
        local = self.local_dropout(self.local_stem(image), key=local_key)
        regions = self.region_stem(pad_for_regions(image, self.config.region_patch_size))
        for stage, stage_scales, stage_key in zip(self.stages, scales, keys, strict=True):
            regions, local = stage(regions, local, stage_scales, key=stage_key)
        return self.norm(regions)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits of the mean over the regions."""
        return self.head(jnp.mean(self.features(image, key=key), axis=(0, 1)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[RegionViTConfig, dict[str, Array]]:
        """The config as it is and no array: all tables belong to the window, whose size stays."""
        return self.config, {}


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
) -> tuple[Float[Array, "region_rows region_columns dim"], Float[Array, "rows columns dim"]]:
    """The inverse of `to_tokens`, for a region map of `grid` and a local map of `size`."""
    local = from_windows(tokens[:, 1:], (window, window), (window * grid[0], window * grid[1]))
    return tokens[:, 0].reshape(*grid, -1), local[: size[0], : size[1]]


def window_masks(
    grid: tuple[int, int], size: tuple[int, int], window: int
) -> Bool[Array, "windows tokens tokens"] | None:
    """Which tokens of each window may attend to which; None where the windows fill the local map.

    In the last column of windows, tokens that no horizontal padding holds see each other; in the last row, those that
    no vertical padding holds. In the corner it is enough to satisfy one of the two: the official code unites the
    masks, so that real tokens there see padding.
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


def _attend(
    heads: int,
    bias: Float[Array, "heads tokens tokens"] | None,
    dropout: Dropout,
    fused: Float[Array, "tokens channels"],
    mask: Bool[Array, "tokens tokens"] | None,
    key: PRNGKeyArray | None,
) -> Float[Array, "tokens dim"]:
    query, keys, value = split_heads(fused, 3, heads)
    allowed = None if mask is None else mask[None]
    return merge_heads(attend(query, keys, value, bias=bias, mask=allowed, dropout=dropout, dropout_key=key))


def _block(config: RegionViTConfig, stage: int, key: PRNGKeyArray) -> Block:
    return Block(config, stage, key=key)


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
