"""Pooling-based Vision Transformer, PiT (arXiv 2103.16302).

The idea: as in convolutional networks, the map shrinks and the channels grow with depth; between the stages of a plain
ViT a strided depthwise convolution pools the patches, and a linear map widens the class token.

    image                  height width channels
    patch embedding        rows columns dim[0]        overlapping: rows = (height - patch height) // stride + 1, ...
    stage i: depth[i] x block  tokens dim[i]          attention and MLP, pre-norm, residual
    pool i                 new_tokens dim[i + 1]      rows -> (rows + 1) // 2; not after the last stage
    norm                   tokens dim[-1]
    head                   num_classes                of the class token; with distillation the mean of two heads

Axes: tokens = class token, distillation token (if any), then rows * columns patches, row-major.
No departure from the official code (naver-ai/pit). It has no rule for other image sizes: `resized` resamples the
position map as timm does for ViT.
"""

import functools
import typing
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    Stack,
    image_door,
    resize_grid,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_positive, check_rates, pair, per_stage
from eqx_vit.layers.init import truncated_normal
from eqx_vit.models.source import Source


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class PiTConfig:
    """Everything that defines a PiT. One value for `heads`, `mlp_dim`, ... stands for all stages."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the normalised class token comes out
    dim: int | tuple[int, ...]  # one number: of the first stage, doubled from stage to stage
    depth: tuple[int, ...]  # blocks per stage
    heads: int | tuple[int, ...]
    mlp_dim: int | tuple[int, ...] | None = None  # None: mlp_ratio * dim
    dim_head: int | tuple[int, ...] | None = None  # None: dim // heads
    dropout: float = 0.0  # attention output, inside and after the MLP
    emb_dropout: float = 0.0  # on the patches after their positions are added, not on the class token
    channels: int = 3
    stride: int | tuple[int, int] | None = None  # of the patches; None: half of patch_size
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, rising over all blocks from 0 to just under the rate
    distillation: bool = False  # a second token and head
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "dim_head", "channels")
        check_positive(self, "stride")
        check_rates(self, "dropout", "emb_dropout", "attention_dropout", "drop_path")
        check(self.num_classes >= 0, f"PiTConfig.num_classes must not be negative, given {self.num_classes}")
        for name in ("dim", "heads", "mlp_dim", "dim_head"):
            count = len(per_stage(getattr(self, name), 1))
            check(count <= self.stages, f"PiTConfig.{name} has {count} values for {self.stages} stages (depth)")
        check(min(self.hidden_dims) > 0, f"PiTConfig.mlp_ratio leaves no MLP, given {self.mlp_ratio}")
        for before, after in zip(self.dims, self.dims[1:], strict=False):
            check(
                after % before == 0,
                f"dim {self.dim}: each stage's must be a multiple of the one before, for the depthwise pool; {after} "
                f"after {before} is not: use {max(after // before, 1) * before} or {(after // before + 1) * before}",
            )
        for dim, heads, size in zip(self.dims, self.heads_of_stages, self.head_dims, strict=True):
            check(
                size is not None or dim % heads == 0,
                f"dim {dim} is not a multiple of heads {heads}: change one, or give dim_head",
            )
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        check(
            height >= patch_height and width >= patch_width,
            f"image_size {self.image_size} is smaller than patch_size {self.patch_size}: use at least that",
        )

    @property
    def stages(self):
        return len(self.depth)

    @property
    def dims(self):
        if isinstance(self.dim, int):
            return tuple(self.dim * 2**stage for stage in range(self.stages))
        return per_stage(self.dim, self.stages)

    @property
    def heads_of_stages(self):
        return per_stage(self.heads, self.stages)

    @property
    def head_dims(self):
        return per_stage(self.dim_head, self.stages)

    @property
    def hidden_dims(self):
        if self.mlp_dim is None:
            return tuple(int(dim * self.mlp_ratio) for dim in self.dims)
        return per_stage(self.mlp_dim, self.stages)

    @property
    def strides(self):
        """(down, across) from patch to patch."""
        return tuple(max(size // 2, 1) for size in pair(self.patch_size)) if self.stride is None else pair(self.stride)

    @property
    def grids(self):
        """(rows, columns) of each stage's map; pixels that make no whole patch are left out."""
        sizes = zip(pair(self.image_size), pair(self.patch_size), self.strides, strict=True)
        grids = [tuple((length - patch) // stride + 1 for length, patch, stride in sizes)]
        while len(grids) < self.stages:
            rows, columns = grids[-1]
            grids.append(((rows + 1) // 2, (columns + 1) // 2))
        return tuple(grids)

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this PiT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or the "
            f"model with eqx_vit.resize(model, ({height}, {width}))",
        )


class Block(eqx.Module):
    """Attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: PiTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        dim = config.dims[stage]
        self.norm1 = LayerNorm(dim, config.norm_eps)
        self.attention = Attention(
            dim,
            config.heads_of_stages[stage],
            head_dim=config.head_dims[stage],
            qkv_bias=config.qkv_bias,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            qkv_init=None,
            projection_init=None,
            bias_init=None,
            key=attention_key,
        )
        self.norm2 = LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(
            dim, config.hidden_dims[stage], dropout=config.dropout, weight_init=None, bias_init=None, key=mlp_key
        )
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.attention(self.norm1(tokens), key=attention_key)
        tokens = tokens + self.drop_path(branch, drop_scale, key=path1_key)
        branch = self.mlp(self.norm2(tokens), key=mlp_key)
        return tokens + self.drop_path(branch, drop_scale, key=path2_key)


class Pool(eqx.Module):
    """Between two stages (section 3.2): a strided depthwise convolution of the patches, a linear map of the tokens
    before them."""

    conv: Conv
    linear: Linear
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(self, dim: int, new_dim: int, grid: tuple[int, int], *, key: PRNGKeyArray) -> None:
        conv_key, linear_key = jax.random.split(key)
        self.conv = Conv(dim, new_dim, 3, stride=2, padding=1, groups=dim, key=conv_key)
        self.linear = Linear(dim, new_dim, weight_init=None, bias_init=None, key=linear_key)
        self.grid = grid

    def __call__(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, "new_tokens new_dim"]:
        prefix = tokens.shape[0] - self.grid[0] * self.grid[1]
        patches = self.conv(tokens[prefix:].reshape(*self.grid, -1))
        return jnp.concatenate([self.linear(tokens[:prefix]), patches.reshape(-1, patches.shape[-1])])


class PiT(eqx.Module):
    """Pooling-based Vision Transformer: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: Conv
    class_token: Float[Array, "prefix dim"]  # with distillation two: class, distillation
    position_embedding: Float[Array, "rows columns dim"]
    embedding_dropout: Dropout
    stages: tuple[Stack, ...]
    pools: tuple[Pool, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    head_dist: Linear | eqx.nn.Identity | None
    config: PiTConfig = eqx.field(static=True)

    def __init__(self, config: PiTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, token_key, position_key, stages_key, pools_key, head_key, head_dist_key = jax.random.split(key, 7)
        dims, patch_size = config.dims, pair(config.patch_size)
        self.patch_embedding = Conv(config.channels, dims[0], patch_size, stride=config.strides, key=patch_key)
        self.class_token = truncated_normal(0.02)(token_key, (1 + config.distillation, dims[0]))
        self.position_embedding = truncated_normal(0.02)(position_key, (*config.grids[0], dims[0]))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.stages = tuple(
            Stack.build(functools.partial(_block, config, stage), depth, key=key)
            for stage, (depth, key) in enumerate(
                zip(config.depth, jax.random.split(stages_key, config.stages), strict=True)
            )
        )
        self.pools = tuple(
            Pool(dims[stage], dims[stage + 1], config.grids[stage], key=key)
            for stage, key in enumerate(jax.random.split(pools_key, config.stages - 1))
        )
        self.norm = LayerNorm(dims[-1], config.norm_eps)
        self.head = _head(config, key=head_key)
        self.head_dist = _head(config, key=head_dist_key) if config.distillation else None
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens of the last stage, class token first, after the final norm."""
        embedding_key, *stage_keys = split_or_none(key, 1 + self.config.stages)
        patches = self.embedding_dropout(self.patch_embedding(image) + self.position_embedding, key=embedding_key)
        tokens = jnp.concatenate([self.class_token, patches.reshape(-1, patches.shape[-1])])
        # The official ramp never reaches the rate: block j of L drops with rate * j / L.
        scales = jnp.linspace(0.0, 1.0, sum(self.config.depth), endpoint=False)
        start = 0
        for stage, blocks in enumerate(self.stages):
            tokens = blocks(tokens, scanned=(scales[start : start + len(blocks)],), key=stage_keys[stage])
            start += len(blocks)
            if stage < len(self.pools):
                tokens = self.pools[stage](tokens)
        return self.norm(tokens)

    def heads(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " classes"], Float[Array, " classes"]]:
        """(class logits, distillation logits), for a distillation loss.

        **Raises:** `ValueError` unless the config says `distillation=True`.
        """
        if self.head_dist is None:
            raise ValueError("this PiT has one head: a pair needs a config with distillation=True")
        tokens = self.features(image, key=key)
        return self.head(tokens[0]), self.head_dist(tokens[1])

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits: of the one head, or the mean of the pair with a distillation token."""
        if self.head_dist is not None:
            logits, distilled = self.heads(image, key=key)
            return (logits + distilled) / 2
        return self.head(self.features(image, key=key)[0])

    def resized(self, image_size: int | tuple[int, int]) -> tuple[PiTConfig, dict[str, Array]]:
        """The config for another image size, and the arrays that change: the position map, resampled."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_grid(self.position_embedding, config.grids[0])}


def _block(config: PiTConfig, stage: int, key: PRNGKeyArray) -> Block:
    return Block(config, stage, key=key)


def _head(config: PiTConfig, *, key: PRNGKeyArray) -> Linear | eqx.nn.Identity:
    if config.num_classes == 0:
        return eqx.nn.Identity()
    return Linear(config.dims[-1], config.num_classes, weight_init=None, bias_init=None, key=key)


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
