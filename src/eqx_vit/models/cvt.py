"""CvT, the Convolutional vision Transformer (arXiv 2103.15808).

The idea: convolutions where a transformer has linear maps of patches. A strided convolution embeds the tokens of each
stage, and a depthwise convolution with BatchNorm comes before each of the q, k and v projections, with a stride for k
and v. The convolutions tell the positions, so that no stage has a position table.

Axes: rows, columns = the map of a stage; tokens = class token (prefix) + rows * columns; dim = width of a stage. No
departure from the official code (microsoft/CvT); `quick_gelu=False` selects the exact GELU of transformers' port.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    BatchNorm,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    OutputProjection,
    Stack,
    attend,
    drop_path_schedule,
    gelu,
    make_head,
    merge_heads,
    pool_tokens,
    quick_gelu,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import check, no_type_check
from eqx_vit.layers.init import fan_in_uniform, truncated_normal
from eqx_vit.model import ImageModelConfig, StatefulImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint

STAGES = (1, 2, 3)
STAGE_FIELDS = ("emb_dim", "emb_kernel", "emb_stride", "proj_kernel", "kv_proj_stride", "heads", "depth", "mlp_mult")
NORM_EPS = 1e-5


class StageSizes(NamedTuple):
    """The numbers of one stage."""

    dim: int
    kernel: int
    stride: int
    projection_kernel: int
    key_value_stride: int
    heads: int
    depth: int
    mlp_mult: int | float
    drop_path: float
    class_token: bool

    @property
    def padding(self) -> int:
        """Of the token embedding: the official 2 for kernel 7 and stride 4, 1 for kernel 3 and stride 2."""
        return max(math.ceil((self.kernel - self.stride) / 2), 0)

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """The map that the token embedding makes of one of (rows, columns)."""
        new_rows, new_columns = (
            (length + 2 * self.padding - self.kernel) // self.stride + 1 for length in (rows, columns)
        )
        return new_rows, new_columns


@no_type_check
@dataclass(frozen=True, kw_only=True)
class CvTConfig(ImageModelConfig["CvT"]):
    """Everything that defines a CvT. The defaults are those of `cvt-13`, without its drop-path."""

    num_classes: int = 1000
    s1_emb_dim: int = 64  # stage 1: width
    s1_emb_kernel: int = 7  # of the token embedding; its padding is half of kernel - stride, rounded up
    s1_emb_stride: int = 4
    s1_proj_kernel: int = 3  # of the depthwise convolutions before q, k and v
    s1_kv_proj_stride: int = 2  # of those before k and v
    s1_heads: int = 1
    s1_depth: int = 1
    s1_mlp_mult: int | float = 4  # MLP width, in multiples of the stage's
    s2_emb_dim: int = 192  # stage 2, as stage 1
    s2_emb_kernel: int = 3
    s2_emb_stride: int = 2
    s2_proj_kernel: int = 3
    s2_kv_proj_stride: int = 2
    s2_heads: int = 3
    s2_depth: int = 2
    s2_mlp_mult: int | float = 4
    s3_emb_dim: int = 384  # stage 3, as stage 1
    s3_emb_kernel: int = 3
    s3_emb_stride: int = 2
    s3_proj_kernel: int = 3
    s3_kv_proj_stride: int = 2
    s3_heads: int = 6
    s3_depth: int = 10
    s3_mlp_mult: int | float = 4
    dropout: float = 0.0  # after the token embedding and the attention, inside and after the MLP
    attention_dropout: float = 0.0  # attention weights
    s1_drop_path: float = 0.0  # stochastic depth, from 0 to the rate over the blocks of the stage
    s2_drop_path: float = 0.0
    s3_drop_path: float = 0.0
    class_token: bool = True  # in the last stage; False: the mean of the map is read
    qkv_bias: bool = True
    quick_gelu: bool = True  # x * sigmoid(1.702 x); False: exact GELU, as transformers computes

    def check(self) -> None:
        for stage, sizes in zip(STAGES, self.stages, strict=True):
            check(
                sizes.dim % sizes.heads == 0,
                f"s{stage}_emb_dim {sizes.dim} is not a multiple of s{stage}_heads {sizes.heads}: change one",
            )
            check(
                sizes.projection_kernel % 2 == 1,
                f"s{stage}_proj_kernel must be odd, so that the map keeps its size; given {sizes.projection_kernel}",
            )

    def check_image_size(self, height: int, width: int) -> None:
        """Raise `ValueError` for an image that is too small."""
        rows, columns = height, width
        for stage, sizes in zip(STAGES, self.stages, strict=True):
            rows, columns = sizes.grid(rows, columns)
            check(
                min(rows, columns) > 0,
                f"an image of {(height, width)} is too small for the token embedding of stage {stage}: enlarge the "
                f"image, or build the model with a smaller s{stage}_emb_kernel",
            )

    @property
    def stages(self) -> tuple[StageSizes, ...]:
        return tuple(self._stage(stage) for stage in STAGES)

    def _stage(self, stage: int) -> StageSizes:
        values = [getattr(self, f"s{stage}_{name}") for name in (*STAGE_FIELDS, "drop_path")]
        return StageSizes._make([*values, self.class_token and stage == STAGES[-1]])


class ConvProjection(eqx.nn.StatefulLayer):
    """A depthwise convolution of the map, BatchNorm, then a linear map; the class token takes the last alone."""

    conv: Conv
    norm: BatchNorm
    linear: Linear

    def __init__(self, config: CvTConfig, sizes: StageSizes, stride: int, *, key: PRNGKeyArray) -> None:
        conv_key, linear_key = jax.random.split(key)
        self.conv = Conv(
            sizes.dim,
            sizes.dim,
            sizes.projection_kernel,
            stride=stride,
            padding=sizes.projection_kernel // 2,
            groups=sizes.dim,
            use_bias=False,
            key=conv_key,
        )
        self.norm = BatchNorm(sizes.dim)
        self.linear = Linear(sizes.dim, sizes.dim, use_bias=config.qkv_bias, key=linear_key)

    def __call__(
        self,
        prefix: Float[Array, "prefix dim"],
        x: Float[Array, "rows columns dim"],
        state: State,
    ) -> tuple[Float[Array, "tokens dim"], State]:
        x, state = self.norm(self.conv(x), state)
        return self.linear(jnp.concatenate([prefix, x.reshape(-1, x.shape[-1])])), state


class Attention(eqx.nn.StatefulLayer):
    """Attention with convolutional projections (section 3.2); a stride leaves fewer keys than queries."""

    query_projection: ConvProjection
    key_projection: ConvProjection
    value_projection: ConvProjection
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: CvTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        query_key, key_key, value_key, projection_key = jax.random.split(key, 4)
        self.query_projection = ConvProjection(config, sizes, 1, key=query_key)
        self.key_projection = ConvProjection(config, sizes, sizes.key_value_stride, key=key_key)
        self.value_projection = ConvProjection(config, sizes, sizes.key_value_stride, key=value_key)
        self.projection = OutputProjection(sizes.dim, sizes.dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.heads = sizes.heads

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        state: State,
        grid: tuple[int, int],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], State]:
        attention_key, projection_key = split_or_none(key)
        prefix, x = _prefix_and_map(tokens, grid)
        query, state = self.query_projection(prefix, x, state)
        keys, state = self.key_projection(prefix, x, state)
        value, state = self.value_projection(prefix, x, state)
        (query,), (keys,), (value,) = (split_heads(part, 1, self.heads) for part in (query, keys, value))
        attended = attend(
            query,
            keys,
            value,
            scale=tokens.shape[1] ** -0.5,  # of the whole width, not of one head: as the official code has it
            dropout=self.attention_dropout,
            dropout_key=attention_key,
        )
        return self.projection(merge_heads(attended), key=projection_key), state


class Block(eqx.nn.StatefulLayer):
    """Attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: CvTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(sizes.dim, NORM_EPS)
        self.attention = Attention(config, sizes, key=attention_key)
        self.norm2 = LayerNorm(sizes.dim, NORM_EPS)
        self.mlp = MLP(
            sizes.dim,
            int(sizes.dim * sizes.mlp_mult),
            activation=quick_gelu if config.quick_gelu else gelu,
            dropout=config.dropout,
            key=mlp_key,
        )
        self.drop_path = DropPath(sizes.drop_path)

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        state: State,
        grid: tuple[int, int],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], State]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch, state = self.attention(self.norm1(tokens), state, grid, key=attention_key)
        tokens = tokens + self.drop_path(branch, drop_scale, key=path1_key)
        branch = self.mlp(self.norm2(tokens), key=mlp_key)
        return tokens + self.drop_path(branch, drop_scale, key=path2_key), state


class Stage(eqx.nn.StatefulLayer):
    """Token embedding (section 3.1) and blocks."""

    token_embedding: Conv
    norm: LayerNorm
    class_token: Float[Array, "1 dim"] | None
    embedding_dropout: Dropout
    blocks: Stack[Block]

    def __init__(self, config: CvTConfig, channels: int, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        embedding_key, token_key, blocks_key = jax.random.split(key, 3)
        self.token_embedding = Conv(
            channels, sizes.dim, sizes.kernel, stride=sizes.stride, padding=sizes.padding, key=embedding_key
        )
        self.norm = LayerNorm(sizes.dim, NORM_EPS)
        self.class_token = truncated_normal()(token_key, (1, sizes.dim)) if sizes.class_token else None
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = Stack.build(functools.partial(Block, config, sizes), sizes.depth, key=blocks_key)

    def embed(
        self, x: Float[Array, "rows columns channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "new_rows new_columns dim"]:
        """The image, or the map of the stage before, to that of this stage."""
        return self.embedding_dropout(self.norm(self.token_embedding(x)), key=key)

    def __call__(
        self, x: Float[Array, "rows columns dim"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        """The tokens after the blocks, class token first where there is one."""
        token_key, blocks_key = split_or_none(key)
        tokens = x.reshape(-1, x.shape[-1])
        if self.class_token is not None:
            tokens = jnp.concatenate([self.embedding_dropout(self.class_token, key=token_key), tokens])
        (scales,) = drop_path_schedule([len(self.blocks)])
        return self.blocks.with_state(tokens, state, x.shape[:2], xs=(scales,), key=blocks_key)


class CvT(StatefulImageModel[CvTConfig]):
    """CvT: one image of any size and the BatchNorm state to logits and state.

        step                      shape                  cvt-13
        image                     height width channels  224 224 3
        stage i: token embedding  rows columns dim[i]    56 56 64, 28 28 192, 14 14 384
        class token + map         tokens dim[i]          3136 64, 784 192, 197 384
        depth[i] x block          tokens dim[i]          3136 64, 784 192, 197 384
        norm                      tokens dim[-1]         197 384
        pool                      dim[-1]                384
        head                      num_classes            1000

    The token embedding is a convolution of stride 4, then 2, and a norm. The class token belongs to the last stage;
    the map alone goes from stage to stage. A block is attention and MLP, pre-norm, residual. The pool is the class
    token, or the mean of the map.
    """

    stages: tuple[Stage, ...]
    norm: LayerNorm
    head: Linear | eqx.nn.Identity

    def __init__(self, config: CvTConfig, *, key: PRNGKeyArray) -> None:
        *stage_keys, head_key = jax.random.split(key, len(STAGES) + 1)
        widths = (config.channels, *(sizes.dim for sizes in config.stages))
        self.config = config
        self.stages = tuple(
            Stage(config, channels, sizes, key=stage_key)
            for channels, sizes, stage_key in zip(widths, config.stages, stage_keys, strict=False)
        )
        self.norm = LayerNorm(widths[-1], NORM_EPS)
        # The official initialisation reaches the weight alone: the bias is left at PyTorch's default.
        self.head = make_head(widths[-1], config.num_classes, bias_init=fan_in_uniform(widths[-1]), key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "rows columns dim"], State]:
        """The map of the first stage."""
        return self.stages[0].embed(image, key=key), state

    def encode(
        self, x: Float[Array, "rows columns dim"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens last_dim"], State]:
        """The tokens of the last stage, class token first, after the final norm."""
        first_key, *later_keys = split_or_none(key, len(STAGES))
        tokens, state = self.stages[0](x, state, key=first_key)
        for stage, stage_key in zip(self.stages[1:], later_keys, strict=True):
            embedding_key, blocks_key = split_or_none(stage_key)
            rows, columns, _ = x.shape
            _, x = _prefix_and_map(tokens, (rows, columns))
            x = stage.embed(x, key=embedding_key)
            tokens, state = stage(x, state, key=blocks_key)
        return self.norm(tokens), state

    def classify(self, features: Float[Array, "tokens dim"], state: State) -> tuple[Float[Array, " classes"], State]:
        """Logits from the class token, or from the mean over the map without one."""
        return self.head(pool_tokens(features, "cls" if self.config.class_token else "mean", 0)), state

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each stage."""
        points, reduction, grid = list[FeaturePoint](), 1, (height, width)
        for stage, sizes in enumerate(self.config.stages):
            reduction, grid = reduction * sizes.stride, sizes.grid(*grid)
            norm = self.norm if stage == len(STAGES) - 1 else None
            prefix = int(sizes.class_token)
            points.append(FeaturePoint(f"stages.{stage}", sizes.dim, reduction, grid=grid, prefix=prefix, norm=norm))
        return points

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head may read the class token alone."""
        point = self.feature_points(height, width)[-1]
        return point._replace(module=f"{point.module}.blocks.norm1", block=(-1,))

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block of the last stage, whose keys and values are of a map with a stride."""
        point, sizes = self.feature_points(height, width)[-1], self.config.stages[-1]
        rows, columns = (-(-length // sizes.key_value_stride) for length in point.grid or (0, 0))
        return [
            AttentionPoint(f"{point.module}.blocks.attention", (rows, columns), point.prefix, point.prefix > 0, False)
        ]


def _prefix_and_map(
    tokens: Float[Array, "tokens dim"], grid: tuple[int, int]
) -> tuple[Float[Array, "prefix dim"], Float[Array, "rows columns dim"]]:
    """The class token, if there is one (else no tokens), and the map."""
    prefix = tokens.shape[0] - grid[0] * grid[1]
    return tokens[:prefix], tokens[prefix:].reshape(*grid, tokens.shape[1])


_CVT_13 = CvTConfig(s3_drop_path=0.1)
_CVT_21 = replace(_CVT_13, s2_depth=4, s3_depth=16)
_CVT_W24 = CvTConfig(
    s1_emb_dim=192,
    s1_heads=3,
    s1_depth=2,
    s2_emb_dim=768,
    s2_heads=12,
    s2_depth=2,
    s3_emb_dim=1024,
    s3_heads=16,
    s3_depth=20,
    s3_drop_path=0.3,
)

PRESETS: dict[str, CvTConfig] = {
    "cvt-13": _CVT_13,  # 19,997,480
    "cvt-21": _CVT_21,  # 31,622,696
    "cvt-13-384": _CVT_13,  # 19,997,480
    "cvt-21-384": _CVT_21,  # 31,622,696
    "cvt-13-384-22k": _CVT_13,  # 19,997,480
    "cvt-21-384-22k": _CVT_21,  # 31,622,696
    "cvt-w24-384-22k": _CVT_W24,  # 277,196,392
}

# The weights are those of the official code, which has QuickGELU; transformers computes them with the exact GELU.
WEIGHTS: dict[str, Source] = {
    name: Source(
        hub=f"microsoft/{name}",
        layout="hf",
        image_size=384 if "384" in name else 224,
        crop=1.0 if "384" in name else 0.875,
    )
    for name in PRESETS
}
