"""Twins-SVT and Twins-PCPVT (arXiv 2104.13840): attention in windows and attention to a summary of the map, in turn.

The idea: locally-grouped attention (LSA) inside windows is cheap but never leaves them; global sub-sampled attention
(GSA), in which every token asks a strided summary of the whole map, joins the windows. Positions come from a depthwise
convolution (PEG) after the first block of each stage. PCPVT is the same network with global attention alone.

    image                            height width channels
    stage i: patch embedding, norm   rows columns dim[i]    rows -> rows // patch size (4, then 2); the rest is left out
      first block                    rows columns dim[i]    attention and MLP, pre-norm, residual
      PEG                            rows columns dim[i]
      pairs x 2 blocks, a last one   rows columns dim[i]    global and local in turn; the last one where depth is even
    norm                             rows columns dim[3]
    mean over the map                dim[3]
    head                             num_classes

Axes: rows, columns = the map of a stage; dim = its width. No departure from the official code (Meituan-AutoML/Twins);
where a map is no multiple of the window, which that code refuses, it is padded with zeros as in timm.
"""

import math
import typing
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    PEG,
    Attention,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Stack,
    attend,
    from_windows,
    image_door,
    merge_heads,
    ramp,
    split_heads,
    split_or_none,
    to_windows,
)
from eqx_vit.layers.config import check, check_fields, check_positive, check_rates
from eqx_vit.layers.init import constant, normal
from eqx_vit.models.source import Source

STAGES = (1, 2, 3, 4)
STAGE_FIELDS = ("emb_dim", "patch_size", "local_patch_size", "global_k", "depth", "heads", "mlp_mult")


class StageSizes(NamedTuple):
    """The numbers of one stage."""

    dim: int
    patch_size: int
    window: int
    reduction: int
    blocks: int
    heads: int
    hidden_dim: int


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class TwinsSVTConfig:
    """Everything that defines a Twins-SVT or Twins-PCPVT. The defaults are those of `twins_svt_small`."""

    num_classes: int = 1000  # 0: no head, the pooled features come out
    s1_emb_dim: int = 64  # stage 1: width
    s1_patch_size: int = 4  # kernel and stride of the patch embedding
    s1_local_patch_size: int = 7  # window of the local attention
    s1_global_k: int = 8  # the global attention asks one token for each k x k of the map
    s1_depth: int = 1  # pairs of blocks, local and global; without local attention, blocks
    s1_heads: int | None = None  # None: s1_emb_dim // 32
    s1_mlp_mult: int | float = 4  # MLP width, in multiples of the stage's
    s2_emb_dim: int = 128  # stage 2, as stage 1
    s2_patch_size: int = 2
    s2_local_patch_size: int = 7
    s2_global_k: int = 4
    s2_depth: int = 1
    s2_heads: int | None = None
    s2_mlp_mult: int | float = 4
    s3_emb_dim: int = 256  # stage 3, as stage 1
    s3_patch_size: int = 2
    s3_local_patch_size: int = 7
    s3_global_k: int = 2
    s3_depth: int = 5
    s3_heads: int | None = None
    s3_mlp_mult: int | float = 4
    s4_emb_dim: int = 512  # stage 4, as stage 1
    s4_patch_size: int = 2
    s4_local_patch_size: int = 7
    s4_global_k: int = 1
    s4_depth: int = 4  # blocks, local and global in turn
    s4_heads: int | None = None
    s4_mlp_mult: int | float = 4
    peg_kernel_size: int = 3
    dropout: float = 0.0  # after the patch embedding, attention weights and output, inside and after the MLP
    channels: int = 3
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over all blocks
    local_attention: bool = True  # False: Twins-PCPVT, global attention in every block
    qkv_bias: bool = True

    def __post_init__(self):
        check_fields(self)
        for stage in STAGES:
            check_positive(self, *(f"s{stage}_{name}" for name in STAGE_FIELDS))
        check_positive(self, "channels")
        check_rates(self, "dropout", "drop_path")
        check(self.num_classes >= 0, f"TwinsSVTConfig.num_classes must not be negative, given {self.num_classes}")
        check(
            self.peg_kernel_size % 2 == 1 and self.peg_kernel_size > 0,
            f"peg_kernel_size must be odd, so that the map keeps its size; given {self.peg_kernel_size}",
        )
        for stage, sizes in zip(STAGES, self.stages, strict=True):
            check(
                sizes.dim % sizes.heads == 0,
                f"s{stage}_emb_dim {sizes.dim} is not a multiple of its heads {sizes.heads}: change one",
            )

    @property
    def stages(self):
        return tuple(self._stage(stage) for stage in STAGES)

    def _stage(self, stage):
        values = (getattr(self, f"s{stage}_{name}") for name in STAGE_FIELDS)
        dim, patch, window, reduction, depth, heads, mult = values
        blocks = 2 * depth if self.local_attention and stage < 4 else depth
        return StageSizes(dim, patch, window, reduction, blocks, heads or max(dim // 32, 1), int(mult * dim))

    @property
    def smallest_image(self):
        """The least height and width: each map must hold one token, and one patch of its global attention."""
        least, stride = 1, 1
        for sizes in self.stages:
            stride *= sizes.patch_size
            has_global = sizes.blocks > 1 or not self.local_attention
            least = max(least, stride * (sizes.reduction if has_global else 1))
        return least

    def check_image_size(self, height, width):
        least = self.smallest_image
        check(
            min(height, width) >= least,
            f"this TwinsSVT takes images of at least {(least, least)}, given {(height, width)}: enlarge the image, or "
            "build the model with smaller patch sizes or global_k",
        )


class LocalAttention(eqx.Module):
    """Self-attention inside windows (LSA, section 3.2). The padding of the last windows takes part, as in timm."""

    attention: Attention
    window: int = eqx.field(static=True)

    def __init__(self, config: TwinsSVTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        self.attention = Attention(sizes.dim, sizes.heads, qkv_bias=config.qkv_bias, dropout=config.dropout, key=key)
        self.window = sizes.window

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        rows, columns, _ = x.shape
        window = (self.window, self.window)
        more_rows, more_columns = -rows % self.window, -columns % self.window
        padded = jnp.pad(x, ((0, more_rows), (0, more_columns), (0, 0)))
        windows = to_windows(padded, window)
        keys = None if key is None else jax.random.split(key, windows.shape[0])
        mixed = jax.vmap(lambda tokens, key: self.attention(tokens, key=key))(windows, keys)
        return from_windows(mixed, window, (rows + more_rows, columns + more_columns))[:rows, :columns]


class GlobalAttention(eqx.Module):
    """Attention from every token to a summary of the map (GSA, section 3.2): a strided convolution, then a norm."""

    query: Linear
    reduction: PatchEmbedding | None
    norm: LayerNorm | None
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: TwinsSVTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        query_key, reduction_key, key_value_key, projection_key = jax.random.split(key, 4)
        dim, reduces = sizes.dim, sizes.reduction > 1
        self.query = Linear(dim, dim, use_bias=config.qkv_bias, key=query_key)
        self.reduction = _strided_conv(dim, dim, sizes.reduction, key=reduction_key) if reduces else None
        self.norm = LayerNorm(dim, 1e-5) if reduces else None
        self.key_value = Linear(dim, 2 * dim, use_bias=config.qkv_bias, key=key_value_key)
        self.projection = Linear(dim, dim, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.projection_dropout = Dropout(config.dropout)
        self.heads = sizes.heads

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        dim = x.shape[-1]
        summary = x
        if self.reduction is not None and self.norm is not None:
            summary = self.norm(_embedded(self.reduction, x))
        (query,) = split_heads(self.query(x).reshape(-1, dim), 1, self.heads)
        keys, value = split_heads(self.key_value(summary).reshape(-1, 2 * dim), 2, self.heads)
        mixed = attend(query, keys, value, dropout=self.attention_dropout, dropout_key=attention_key)
        out = self.projection(merge_heads(mixed)).reshape(x.shape)
        return self.projection_dropout(out, key=projection_key)


class Block(eqx.Module):
    """Attention, local or global, and an MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: LocalAttention | GlobalAttention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: TwinsSVTConfig, sizes: StageSizes, local: bool, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        kind = LocalAttention if local and config.local_attention else GlobalAttention
        self.norm1 = LayerNorm(sizes.dim, 1e-6)
        self.attention = kind(config, sizes, key=attention_key)
        self.norm2 = LayerNorm(sizes.dim, 1e-6)
        self.mlp = MLP(sizes.dim, sizes.hidden_dim, dropout=config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        x: Float[Array, "rows columns dim"],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "rows columns dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        x = x + self.drop_path(self.attention(self.norm1(x), key=attention_key), drop_scale, key=path1_key)
        return x + self.drop_path(self.mlp(self.norm2(x), key=mlp_key), drop_scale, key=path2_key)


class Pair(eqx.Module):
    """A global block, then a local one (for PCPVT a second global one): what alternates, stacked as equals."""

    global_block: Block
    local_block: Block

    def __init__(self, config: TwinsSVTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        global_key, local_key = jax.random.split(key)
        self.global_block = Block(config, sizes, False, key=global_key)
        self.local_block = Block(config, sizes, True, key=local_key)

    def __call__(
        self,
        x: Float[Array, "rows columns dim"],
        drop_scales: Float[Array, "2"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "rows columns dim"]:
        global_key, local_key = split_or_none(key)
        return self.local_block(self.global_block(x, drop_scales[0], key=global_key), drop_scales[1], key=local_key)


class Stage(eqx.Module):
    """Patch embedding and the blocks on one map; the positions come after the first of them."""

    patch_embedding: PatchEmbedding
    norm: LayerNorm
    embedding_dropout: Dropout
    first: Block
    position_encoding: PEG
    pairs: Stack | None
    last: Block | None

    def __init__(self, config: TwinsSVTConfig, channels: int, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        patch_key, first_key, position_key, pairs_key, last_key = jax.random.split(key, 5)
        self.patch_embedding = _strided_conv(channels, sizes.dim, sizes.patch_size, key=patch_key)
        self.norm = LayerNorm(sizes.dim, 1e-5)
        self.embedding_dropout = Dropout(config.dropout)
        self.first = Block(config, sizes, True, key=first_key)
        self.position_encoding = PEG(
            sizes.dim,
            config.peg_kernel_size,
            weight_init=normal(math.sqrt(2) / config.peg_kernel_size),
            bias_init=constant(0.0),
            key=position_key,
        )
        pairs, odd = divmod(sizes.blocks - 1, 2)
        self.pairs = Stack.build(lambda key: Pair(config, sizes, key=key), pairs, key=pairs_key) if pairs else None
        self.last = Block(config, sizes, False, key=last_key) if odd else None

    def __call__(
        self,
        x: Float[Array, "rows columns channels"],
        drop_scales: Float[Array, " blocks"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "new_rows new_columns dim"]:
        embedding_key, first_key, pairs_key, last_key = split_or_none(key, 4)
        x = self.embedding_dropout(self.norm(_embedded(self.patch_embedding, x)), key=embedding_key)
        x = self.position_encoding(self.first(x, drop_scales[0], key=first_key))
        if self.pairs is not None:
            scales = drop_scales[1 : 1 + 2 * len(self.pairs)].reshape(-1, 2)
            x = self.pairs(x, scanned=(scales,), key=pairs_key)
        return x if self.last is None else self.last(x, drop_scales[-1], key=last_key)


class TwinsSVT(eqx.Module):
    """Twins-SVT and Twins-PCPVT: one image of any size to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: TwinsSVTConfig = eqx.field(static=True)

    def __init__(self, config: TwinsSVTConfig, *, key: PRNGKeyArray) -> None:
        *stage_keys, head_key = jax.random.split(key, len(STAGES) + 1)
        widths = (config.channels, *(sizes.dim for sizes in config.stages))
        self.stages = tuple(
            Stage(config, channels, sizes, key=key)
            for channels, sizes, key in zip(widths, config.stages, stage_keys, strict=False)
        )
        self.norm = LayerNorm(widths[-1], 1e-6)
        self.head = Linear(widths[-1], config.num_classes, key=head_key) if config.num_classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        """The map of the last stage, after the final norm."""
        keys = split_or_none(key, len(STAGES))
        blocks = [sizes.blocks for sizes in self.config.stages]
        scales = ramp(sum(blocks))
        x = image
        for index, stage in enumerate(self.stages):
            start = sum(blocks[:index])
            x = stage(x, scales[start : start + blocks[index]], key=keys[index])
        return self.norm(x)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits from the mean over the map."""
        return self.head(jnp.mean(self.features(image, key=key), axis=(0, 1)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[TwinsSVTConfig, dict[str, Array]]:
        """The config as it is: the model takes any size."""
        return self.config, {}


def _strided_conv(channels: int, dim: int, size: int, *, key: PRNGKeyArray) -> PatchEmbedding:
    """A convolution whose kernel is its stride, initialised by its fan-out as the official code does."""
    weight_init = normal(math.sqrt(2 / (size * size * dim)))
    return PatchEmbedding((size, size), channels, dim, weight_init=weight_init, bias_init=constant(0.0), key=key)


def _embedded(
    embedding: PatchEmbedding, x: Float[Array, "rows columns channels"]
) -> Float[Array, "new_rows new_columns dim"]:
    """The embedding of the whole patches: what is left at the bottom and the right is left out."""
    height, width = embedding.patch_size
    return embedding(x[: x.shape[0] // height * height, : x.shape[1] // width * width])


_SMALL = TwinsSVTConfig()
_PCPVT_SMALL = TwinsSVTConfig(
    local_attention=False,
    s1_depth=3,
    s1_heads=1,
    s1_mlp_mult=8,
    s2_depth=4,
    s2_heads=2,
    s2_mlp_mult=8,
    s3_emb_dim=320,
    s3_depth=6,
    s3_heads=5,
    s4_depth=3,
    s4_heads=8,
)


def _wide(dim: int) -> TwinsSVTConfig:
    return replace(
        _SMALL, s1_emb_dim=dim, s2_emb_dim=2 * dim, s3_emb_dim=4 * dim, s4_emb_dim=8 * dim, s3_depth=9, s4_depth=2
    )


PRESETS: dict[str, TwinsSVTConfig] = {
    "twins_pcpvt_small": _PCPVT_SMALL,  # 24,106,216
    "twins_pcpvt_base": replace(_PCPVT_SMALL, s3_depth=18),  # 43,828,456
    "twins_pcpvt_large": replace(_PCPVT_SMALL, s2_depth=8, s3_depth=27),  # 60,989,672
    "twins_svt_small": _SMALL,  # 24,060,776
    "twins_svt_base": _wide(96),  # 56,070,952
    "twins_svt_large": _wide(128),  # 99,271,400
}

WEIGHTS: dict[str, Source] = {name: Source(hub=f"timm/{name}.in1k") for name in PRESETS}
