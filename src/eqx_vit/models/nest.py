"""Nested hierarchical transformer, NesT (arXiv 2105.12723).

The idea: plain transformers inside non-overlapping blocks of the map, never across; between the levels of a hierarchy a
convolution and a max pool over the whole map let neighbouring blocks speak, and halve it: a quarter of the blocks is
left, each as large as before. At the top there is one.

    image                    height width channels
    patch embedding          rows columns dim[0]             rows = height / patch height, columns = width / patch width
    level i:
      aggregation            rows columns dim[i]             halves the map; not in the first level
      positions              windows positions dim[i]        windows = 4 ** (levels - 1 - i), the blocks of the paper
      block_repeats[i] x block   windows positions dim[i]    attention inside each window, and MLP; pre-norm, residual
    norm                     rows columns dim[-1]            one window
    pool, head               num_classes                     the mean over the map

Axes: windows = blocks of the map, row-major; positions = places inside one, row-major; dim = width of a token.
No departure from the official code (google-research/nested-transformer); beyond it, images need not be square.
timm runs the released weights with the exact GELU (`approximate_gelu=False`), which moves the logits by about 1e-4, and
its untrained variants pad the max pool on all sides (`pool_padding="symmetric"`).
"""

import functools
import typing
from dataclasses import dataclass, replace
from typing import Literal

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
    PatchEmbedding,
    Stack,
    attend,
    from_windows,
    gelu,
    gelu_tanh,
    image_door,
    is_live,
    lean,
    max_pool,
    merge_heads,
    ramp,
    split_heads,
    split_or_none,
    to_windows,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair, per_stage
from eqx_vit.layers.init import constant, truncated_normal
from eqx_vit.models.source import Source

_INIT = truncated_normal(0.02, sigmas=2.0)  # of every kernel and table, as Flax cuts it


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class NesTConfig:
    """Everything that defines a NesT. Levels count from the finest up: many windows first, one window last."""

    image_size: int | tuple[int, int]  # a multiple of patch_size * 2 ** (num_hierarchies - 1)
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int | tuple[int, ...]  # one number: of the first level, times scale_dims from level to level
    heads: int | tuple[int, ...]  # likewise
    num_hierarchies: int  # levels
    block_repeats: int | tuple[int, ...]  # transformer blocks of each level
    mlp_mult: float = 4.0  # MLP width, in multiples of dim
    dropout: float = 0.0  # attention output, inside and after the MLP
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    scale_dims: int = 2  # 1: the same dim and heads in all levels (the official CIFAR models)
    multi_query: bool = False  # one key and value head for all query heads (the official CIFAR models)
    qkv_bias: bool = True
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, rising over all blocks from 0 to the rate
    pool_padding: Literal["same", "symmetric"] = "same"  # of the max pool: after the map alone, or on all sides
    approximate_gelu: bool = True  # the tanh form of the official code
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "heads", "num_hierarchies", "block_repeats", "channels")
        check_positive(self, "dim_head", "scale_dims")
        check_rates(self, "dropout", "attention_dropout", "drop_path")
        check(self.num_classes >= 0, f"NesTConfig.num_classes must not be negative, given {self.num_classes}")
        for name in ("dim", "heads", "block_repeats"):
            count = len(per_stage(getattr(self, name), 1))
            check(
                count <= self.num_hierarchies,
                f"NesTConfig.{name} has {count} values for num_hierarchies={self.num_hierarchies}",
            )
        for dim, heads in zip(self.dims, self.heads_of_levels, strict=True):
            check(int(dim * self.mlp_mult) > 0, f"NesTConfig.mlp_mult leaves no MLP, given {self.mlp_mult}")
            check(
                self.dim_head is not None or dim % heads == 0,
                f"dim {dim} is not a multiple of heads {heads}: change one, or give dim_head",
            )
        windows = 2 ** (self.num_hierarchies - 1)
        step = tuple(size * windows for size in pair(self.patch_size))
        check_multiple("image_size", self.image_size, step[0] if isinstance(self.patch_size, int) else step)

    @property
    def dims(self):
        return self._per_level(self.dim)

    @property
    def heads_of_levels(self):
        return self._per_level(self.heads)

    @property
    def depths(self):
        return per_stage(self.block_repeats, self.num_hierarchies)

    @property
    def window(self):
        """(height, width) of a window in tokens, the same in all levels: the last level's whole map."""
        windows = 2 ** (self.num_hierarchies - 1)
        sizes = zip(pair(self.image_size), pair(self.patch_size), strict=True)
        return tuple(length // patch // windows for length, patch in sizes)

    def windows(self, level):
        """How many windows the map of `level` has."""
        return 4 ** (self.num_hierarchies - 1 - level)

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this NesT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or build "
            f"the model with image_size=({height}, {width})",
        )

    def _per_level(self, value):
        if isinstance(value, int):
            return tuple(value * self.scale_dims**level for level in range(self.num_hierarchies))
        return per_stage(value, self.num_hierarchies)


class MultiQueryAttention(eqx.Module):
    """Attention whose heads ask with queries of their own, but share one head of keys and values."""

    query: Linear
    key_value: Linear  # rows: k, v
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: NesTConfig, level: int, *, key: PRNGKeyArray) -> None:
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        dim, self.heads = config.dims[level], config.heads_of_levels[level]
        size, bias = config.dim_head or dim // self.heads, config.qkv_bias
        self.query = Linear(dim, self.heads * size, use_bias=bias, weight_init=_INIT, key=query_key)
        self.key_value = Linear(dim, 2 * size, use_bias=bias, weight_init=_INIT, key=key_value_key)
        self.projection = Linear(self.heads * size, dim, weight_init=_INIT, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.projection_dropout = Dropout(config.dropout)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        (query,) = split_heads(self.query(tokens), 1, self.heads)
        keys, value = (jnp.broadcast_to(shared, query.shape) for shared in split_heads(self.key_value(tokens), 2, 1))
        mixed = attend(query, keys, value, dropout=self.attention_dropout, dropout_key=attention_key)
        return self.projection_dropout(self.projection(merge_heads(mixed)), key=projection_key)


class Block(eqx.Module):
    """Attention inside each window, and an MLP, each normalised before and added after (equation 1)."""

    norm1: LayerNorm
    attention: Attention | MultiQueryAttention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: NesTConfig, level: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        dim = config.dims[level]
        self.norm1 = LayerNorm(dim, config.norm_eps)
        self.attention = (
            MultiQueryAttention(config, level, key=attention_key)
            if config.multi_query
            else Attention(
                dim,
                config.heads_of_levels[level],
                head_dim=config.dim_head,
                qkv_bias=config.qkv_bias,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                qkv_init=_INIT,
                projection_init=_INIT,
                key=attention_key,
            )
        )
        self.norm2 = LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(
            dim,
            int(dim * config.mlp_mult),
            activation=gelu_tanh if config.approximate_gelu else gelu,
            dropout=config.dropout,
            weight_init=_INIT,
            key=mlp_key,
        )
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        windows: Float[Array, "windows positions dim"],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "windows positions dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        # A key for each window costs time, also where only the drop-path is live.
        keys = None
        if attention_key is not None and is_live(self.attention):
            keys = jax.random.split(attention_key, windows.shape[0])
        # Two windows at a time: what attention makes of more leaves the processor's cache.
        attention = lean(lambda window: self.attention(window[0], key=window[1]))
        branch = jax.lax.map(attention, (self.norm1(windows), keys), batch_size=min(2, windows.shape[0]))
        windows = windows + self.drop_path(branch, drop_scale, key=path1_key)
        branch = self.mlp(self.norm2(windows), key=mlp_key)
        return windows + self.drop_path(branch, drop_scale, key=path2_key)


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


class Level(eqx.Module):
    """One level of the hierarchy, from map to map."""

    aggregation: Aggregation | None
    position_embedding: Float[Array, "windows positions dim"]
    blocks: Stack
    window: tuple[int, int] = eqx.field(static=True)

    def __init__(self, config: NesTConfig, level: int, *, key: PRNGKeyArray) -> None:
        aggregation_key, position_key, blocks_key = jax.random.split(key, 3)
        dim, self.window = config.dims[level], config.window
        before = config.dims[level - 1]
        self.aggregation = Aggregation(before, dim, config, key=aggregation_key) if level else None
        shape = (config.windows(level), self.window[0] * self.window[1], dim)
        self.position_embedding = _INIT(position_key, shape)
        self.blocks = Stack.build(functools.partial(_block, config, level), config.depths[level], key=blocks_key)

    def __call__(
        self,
        x: Float[Array, "rows columns dim"],
        drop_scales: Float[Array, " depth"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "new_rows new_columns new_dim"]:
        x = x if self.aggregation is None else self.aggregation(x)
        windows = to_windows(x, self.window) + self.position_embedding
        windows = self.blocks(windows, scanned=(drop_scales,), key=key)
        return from_windows(windows, self.window, (x.shape[0], x.shape[1]))


class NesT(eqx.Module):
    """Nested hierarchical transformer: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: PatchEmbedding
    levels: tuple[Level, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: NesTConfig = eqx.field(static=True)

    def __init__(self, config: NesTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, levels_key, head_key = jax.random.split(key, 3)
        self.patch_embedding = PatchEmbedding(
            pair(config.patch_size),
            config.channels,
            config.dims[0],
            weight_init=_INIT,
            bias_init=constant(0.0),
            key=patch_key,
        )
        self.levels = tuple(
            Level(config, level, key=key)
            for level, key in enumerate(jax.random.split(levels_key, config.num_hierarchies))
        )
        self.norm = LayerNorm(config.dims[-1], config.norm_eps)
        classes = config.num_classes
        self.head = Linear(config.dims[-1], classes, weight_init=_INIT, key=head_key) if classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        """The map of the last level, one window, after the final norm."""
        keys = split_or_none(key, self.config.num_hierarchies)
        scales = ramp(sum(self.config.depths))
        x, start = self.patch_embedding(image), 0
        for level, depth, key in zip(self.levels, self.config.depths, keys, strict=True):
            x = level(x, scales[start : start + depth], key=key)
            start += depth
        return self.norm(x)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits."""
        return self.head(jnp.mean(self.features(image, key=key), axis=(0, 1)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[NesTConfig, dict[str, Array]]:
        """**Raises:** `ValueError`: the tables belong to windows of one size, and no official rule resizes them."""
        raise ValueError(
            f"NesT cannot be resized to {image_size}: its position tables belong to windows of {self.config.window}; "
            "build one with image_size=... and train it"
        )


def _block(config: NesTConfig, level: int, key: PRNGKeyArray) -> Block:
    return Block(config, level, key=key)


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
