"""Twins-SVT and Twins-PCPVT (arXiv 2104.13840): attention in windows and attention to a summary of the map, in turn.

The idea: locally-grouped attention (LSA) inside windows is cheap but never leaves them; global sub-sampled attention
(GSA), in which every token attends to a strided summary of the whole map, joins the windows. Positions come from a
depthwise convolution (PEG) after the first block of each stage. PCPVT is the same network with global attention alone.

Axes: rows, columns = the map of a stage; dim = its width. No departure from the official code (Meituan-AutoML/Twins),
but that there are always four stages, as in all of its models, and that a map which is not a multiple of the window,
which that code refuses, is padded with zeros as in timm.
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
    PEG,
    Attention,
    Dropout,
    LayerNorm,
    Linear,
    OutputProjection,
    PatchEmbedding,
    PeriodicStack,
    PreNormBlock,
    attend,
    drop_path_schedule,
    from_windows,
    make_head,
    merge_heads,
    split_heads,
    split_or_none,
    stack_or_none,
    to_windows,
)
from eqx_vit.layers.config import check, no_type_check
from eqx_vit.layers.init import constant, fan_out_normal, normal
from eqx_vit.model import ImageModelConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import FeaturePoint

STAGES = (1, 2, 3, 4)
STAGE_FIELDS = ("emb_dim", "patch_size", "local_patch_size", "global_k", "depth", "heads", "mlp_mult")
NORM_EPS = 1e-6  # of the blocks' norms and the last one
REDUCED_NORM_EPS = 1e-5  # after a strided convolution, for which the official code names none


class StageSizes(NamedTuple):
    """The numbers of one stage."""

    dim: int
    patch_size: int
    window: int  # 1: global attention in all blocks
    reduction: int
    depth: int
    heads: int
    hidden_dim: int


@no_type_check
@dataclass(frozen=True, kw_only=True)
class TwinsSVTConfig(ImageModelConfig["TwinsSVT"]):
    """Everything that defines a Twins-SVT or Twins-PCPVT. The defaults are those of `twins_svt_small`."""

    num_classes: int = 1000
    s1_emb_dim: int = 64  # stage 1: width
    s1_patch_size: int = 4  # kernel and stride of the patch embedding
    s1_local_patch_size: int = 7  # window of the local attention; 1: global attention in its place
    s1_global_k: int = 8  # each k x k of the map is one key of the global attention
    s1_depth: int = 1  # pairs of blocks, local and global; without local attention, or with pairs=False, blocks
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
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over all blocks
    local_attention: bool = True  # False: Twins-PCPVT, global attention in every block
    pairs: bool = True  # False: s1_depth to s3_depth count blocks, as s4_depth does, and may thus be odd
    qkv_bias: bool = True

    def check(self) -> None:
        check(
            self.peg_kernel_size % 2 == 1,
            f"peg_kernel_size must be odd, so that the map keeps its size; given {self.peg_kernel_size}",
        )
        for stage, sizes in zip(STAGES, self.stages, strict=True):
            check(
                sizes.dim % sizes.heads == 0,
                f"s{stage}_emb_dim {sizes.dim} is not a multiple of its heads {sizes.heads}: change one",
            )

    @property
    def stages(self) -> tuple[StageSizes, ...]:
        return tuple(self._stage(stage) for stage in STAGES)

    def _stage(self, stage: int) -> StageSizes:
        values = (getattr(self, f"s{stage}_{name}") for name in STAGE_FIELDS)
        dim, patch, window, reduction, depth, heads, mult = values
        blocks = 2 * depth if self.local_attention and self.pairs and stage < 4 else depth
        window = window if self.local_attention else 1
        return StageSizes(dim, patch, window, reduction, blocks, heads or max(dim // 32, 1), int(mult * dim))

    @property
    def smallest_image(self) -> int:
        """The least height and width: each map must hold one token, and one patch of its global attention."""
        least, stride = 1, 1
        for sizes in self.stages:
            stride *= sizes.patch_size
            has_global = sizes.depth > 1 or sizes.window == 1
            least = max(least, stride * (sizes.reduction if has_global else 1))
        return least

    def check_image_size(self, height: int, width: int) -> None:
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
        keys = stack_or_none(key, len(windows))
        attended = jax.vmap(lambda tokens, key: self.attention(tokens, key=key))(windows, keys)
        return from_windows(attended, window, (rows + more_rows, columns + more_columns))[:rows, :columns]


class GlobalAttention(eqx.Module):
    """Attention from every token to a summary of the map (GSA, section 3.2): a strided convolution, then a norm."""

    query: Linear
    reduction: PatchEmbedding | None
    norm: LayerNorm | None
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: TwinsSVTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        query_key, reduction_key, key_value_key, projection_key = jax.random.split(key, 4)
        dim, reduces = sizes.dim, sizes.reduction > 1
        self.query = Linear(dim, dim, use_bias=config.qkv_bias, key=query_key)
        self.reduction = _make_strided_conv(dim, dim, sizes.reduction, key=reduction_key) if reduces else None
        self.norm = LayerNorm(dim, REDUCED_NORM_EPS) if reduces else None
        self.key_value = Linear(dim, 2 * dim, use_bias=config.qkv_bias, key=key_value_key)
        self.projection = OutputProjection(dim, dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.heads = sizes.heads

    def __call__(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "rows columns dim"]:
        attention_key, projection_key = split_or_none(key)
        dim = x.shape[-1]
        summary = x
        if self.reduction is not None and self.norm is not None:
            summary = self.norm(_embed_whole_patches(self.reduction, x))
        (query,) = split_heads(self.query(x).reshape(-1, dim), 1, self.heads)
        keys, value = split_heads(self.key_value(summary).reshape(-1, 2 * dim), 2, self.heads)
        attended = attend(query, keys, value, dropout=self.attention_dropout, dropout_key=attention_key)
        return self.projection(merge_heads(attended).reshape(x.shape), key=projection_key)


Block = PreNormBlock[LocalAttention | GlobalAttention]


class Stage(eqx.Module):
    """Patch embedding and the blocks on one map; the positions come after the first of them."""

    patch_embedding: PatchEmbedding
    norm: LayerNorm
    embedding_dropout: Dropout
    first_block: Block
    position_encoding: PEG
    blocks: PeriodicStack[Block]  # global and local in turn

    def __init__(self, config: TwinsSVTConfig, channels: int, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        patch_key, first_key, position_key, blocks_key = jax.random.split(key, 4)
        self.patch_embedding = _make_strided_conv(channels, sizes.dim, sizes.patch_size, key=patch_key)
        self.norm = LayerNorm(sizes.dim, REDUCED_NORM_EPS)
        self.embedding_dropout = Dropout(config.dropout)
        make_block = functools.partial(_make_block, config, sizes)
        self.first_block = make_block(1, key=first_key)
        self.position_encoding = PEG(
            sizes.dim,
            config.peg_kernel_size,
            weight_init=fan_out_normal(groups=sizes.dim),
            bias_init=constant(0.0),
            key=position_key,
        )
        self.blocks = PeriodicStack.build(make_block, sizes.depth - 1, 2, key=blocks_key)

    def embed(
        self, x: Float[Array, "rows columns channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "new_rows new_columns dim"]:
        """The map that the blocks take, of an image or of the map before."""
        return self.embedding_dropout(self.norm(_embed_whole_patches(self.patch_embedding, x)), key=key)

    def __call__(
        self, x: Float[Array, "rows columns dim"], drop_scales: Float[Array, " depth"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "rows columns dim"]:
        first_key, blocks_key = split_or_none(key)
        x = self.position_encoding(self.first_block(x, drop_scales[0], key=first_key))
        return self.blocks(x, xs=(drop_scales[1:],), key=blocks_key)


class TwinsSVT(StatelessImageModel[TwinsSVTConfig]):
    """Twins-SVT and Twins-PCPVT: one image of any size to logits.

        step                            shape                  twins_svt_small
        image                           height width channels  224 224 3
        stage i: patch embedding, norm  rows columns dim[i]    56 56 64, then 28 28 128, 14 14 256, 7 7 512
          local block                   rows columns dim[i]    56 56 64, ...
          PEG                           rows columns dim[i]    56 56 64, ...
          global, local, ... block      rows columns dim[i]    56 56 64, ...
        norm                            rows columns dim[3]    7 7 512
        mean over the map               dim[3]                 512
        head                            num_classes            1000

    rows and columns are divided by the patch size (4, then 2), the rest is left out. A block is attention and MLP,
    pre-norm, residual; of PCPVT all are global.
    """

    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity

    def __init__(self, config: TwinsSVTConfig, *, key: PRNGKeyArray) -> None:
        *stage_keys, head_key = jax.random.split(key, len(STAGES) + 1)
        self.config = config
        widths = (config.channels, *(sizes.dim for sizes in config.stages))
        self.stages = tuple(
            Stage(config, channels, sizes, key=stage_key)
            for channels, sizes, stage_key in zip(widths, config.stages, stage_keys, strict=False)
        )
        self.norm = LayerNorm(widths[-1], NORM_EPS)
        self.head = make_head(widths[-1], config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "rows columns dim"]:
        """The map of the first stage."""
        return self.stages[0].embed(image, key=key)

    def encode(
        self, x: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "new_rows new_columns new_dim"]:
        """The map of the last stage, after the final norm."""
        schedules = drop_path_schedule([sizes.depth for sizes in self.config.stages])
        keys = split_or_none(key, len(STAGES))
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
        points, reduction = list[FeaturePoint](), 1
        for stage, sizes in enumerate(self.config.stages):
            reduction *= sizes.patch_size
            norm = self.norm if stage == len(STAGES) - 1 else None
            points.append(FeaturePoint(f"stages.{stage}", sizes.dim, reduction, norm=norm))
        return points


def _make_block(config: TwinsSVTConfig, sizes: StageSizes, index: int, *, key: PRNGKeyArray) -> Block:
    """A block with local attention where `index` is odd and there are windows."""
    attention_key, mlp_key = jax.random.split(key)
    kind = LocalAttention if index % 2 and sizes.window > 1 else GlobalAttention
    attention = kind(config, sizes, key=attention_key)
    mlp = MLP(sizes.dim, sizes.hidden_dim, dropout=config.dropout, key=mlp_key)
    return PreNormBlock(attention, mlp, sizes.dim, norm_eps=NORM_EPS, drop_path=config.drop_path)


def _make_strided_conv(channels: int, dim: int, size: int, *, key: PRNGKeyArray) -> PatchEmbedding:
    """A convolution whose kernel is its stride, initialised by its fan-out as the official code does."""
    weight_init = normal(math.sqrt(2 / (size * size * dim)))
    return PatchEmbedding((size, size), channels, dim, weight_init=weight_init, bias_init=constant(0.0), key=key)


def _embed_whole_patches(
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
