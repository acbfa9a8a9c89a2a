"""LeViT (arXiv 2104.01136): a vision transformer in a convolutional network's clothing, for fast inference.

The idea: a convolutional stem, then a pyramid of attention stages on shrinking maps; BatchNorm instead of LayerNorm, so
that every norm can be folded into its linear map; a learned bias per relative position instead of positions.

Axes: tokens = positions of the map, row-major; heads; key_dim and value_dim = width of one head's keys and values.
No departure from the official models (facebookresearch/LeViT). Their code can also leave the MLPs out, downsample by
other strides than 2, and take other activations than Hardswish: none of them does, and no `LeViTConfig` can.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqx_vit.layers import (
    BatchNorm,
    Conv,
    Dropout,
    DropPath,
    Linear,
    Stack,
    attend,
    hard_swish,
    merge_heads,
    save_for_backward,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import Size, check, check_multiple, check_stages, no_type_check, pair, per_stage
from eqx_vit.layers.init import fan_in_uniform
from eqx_vit.layers.window import grid_coordinates
from eqx_vit.model import FixedSizeConfig, LogitsPair, StatefulImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import FeaturePoint


class StageSizes(NamedTuple):
    """The numbers of one stage; those of the downsampling after it count in all stages but the last."""

    dim: int
    depth: int
    heads: int
    key_dim: int  # per head
    value_dim: int
    mlp_mult: int | float
    downsample_heads: int
    downsample_key_dim: int
    downsample_value_dim: int
    downsample_mlp_mult: int | float
    grid: tuple[int, int]


@no_type_check
@dataclass(frozen=True, kw_only=True)
class LeViTConfig(FixedSizeConfig["LeViT"]):
    """Everything that defines a LeViT. One value for `dim`, `depth`, `heads`, ... stands for all stages."""

    RESIZABLE = False
    COUNTS = ("stages",)

    image_size: Size = 224  # a multiple of 16
    num_classes: int = 1000
    stages: int = 3
    dim: int | tuple[int, ...] = (256, 384, 512)
    depth: int | tuple[int, ...] = 4
    heads: int | tuple[int, ...] = (4, 6, 8)
    mlp_mult: int | float | tuple[int | float, ...] = 2  # MLP width, in multiples of dim
    dim_key: int | tuple[int, ...] = 32  # per head
    dim_value: int | tuple[int, ...] = 64  # per head
    num_distill_classes: int | None = None  # a second head for distillation; must equal num_classes
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP; the paper has none
    drop_path: float = 0.0  # stochastic depth, the same for every residual
    downsample_heads: tuple[int, ...] | None = None  # None: dim // downsample_dim_key
    downsample_dim_key: int | tuple[int, ...] | None = None  # None: dim_key
    downsample_dim_value: int | tuple[int, ...] | None = None  # None: 4 * downsample_dim_key
    downsample_mlp_mult: int | float | tuple[int | float, ...] | None = None  # None: mlp_mult

    def check(self) -> None:
        check_multiple("image_size", self.image_size, 16)
        names = ("dim", "depth", "heads", "mlp_mult", "dim_key", "dim_value")
        downsampling = ("downsample_dim_key", "downsample_dim_value", "downsample_mlp_mult")
        check_stages(self, self.stages, "stages", *names, *downsampling)
        check(
            self.downsample_heads is None or len(self.downsample_heads) == self.stages - 1,
            f"LeViTConfig.downsample_heads needs stages - 1 = {self.stages - 1} values, given {self.downsample_heads}",
        )
        sizes = self.stage_sizes
        check(sizes[0].dim % 8 == 0, f"the first dim must be a multiple of 8, for the stem; given {sizes[0].dim}")
        check(
            all(stage.downsample_heads > 0 for stage in sizes[:-1]),
            f"dim {self.dim} is smaller than dim_key {self.downsample_dim_key or self.dim_key}: give downsample_heads, "
            "or a smaller dim_key",
        )
        check(
            self.num_distill_classes in (None, self.num_classes),
            f"num_distill_classes {self.num_distill_classes} must be None or num_classes ({self.num_classes}), since "
            "the prediction is the mean of both heads",
        )

    @property
    def stage_sizes(self) -> tuple[StageSizes, ...]:
        rows, columns = (length // 16 for length in pair(self.image_size))
        dims = per_stage(self.dim, self.stages)
        key_dims = per_stage(self.downsample_dim_key or self.dim_key, self.stages)
        values = (
            dims,
            self.depth,
            self.heads,
            self.dim_key,
            self.dim_value,
            self.mlp_mult,
            self.downsample_heads or tuple(dim // key_dim for dim, key_dim in zip(dims, key_dims, strict=True)),
            key_dims,
            self.downsample_dim_value or tuple(4 * key_dim for key_dim in key_dims),
            self.downsample_mlp_mult or self.mlp_mult,
            tuple((math.ceil(rows / 2**stage), math.ceil(columns / 2**stage)) for stage in range(self.stages)),
        )
        return tuple(map(StageSizes._make, zip(*(per_stage(value, self.stages) for value in values), strict=True)))


class ConvNorm(eqx.nn.StatefulLayer):
    """A 3x3 convolution of stride 2, then BatchNorm."""

    conv: Conv
    norm: BatchNorm

    def __init__(self, in_channels: int, out_channels: int, *, key: PRNGKeyArray) -> None:
        self.conv = Conv(in_channels, out_channels, 3, stride=2, padding=1, use_bias=False, key=key)
        self.norm = BatchNorm(out_channels)

    def __call__(
        self, x: Float[Array, "height width in"], state: State
    ) -> tuple[Float[Array, "new_height new_width out"], State]:
        return self.norm(self.conv(x), state)


class LinearNorm(eqx.nn.StatefulLayer):
    """A linear map without bias, then BatchNorm over all tokens of the batch."""

    linear: Linear
    norm: BatchNorm

    def __init__(self, in_features: int, out_features: int, *, initial_weight: float = 1.0, key: PRNGKeyArray) -> None:
        weight_init = fan_in_uniform(in_features)
        self.linear = Linear(in_features, out_features, use_bias=False, weight_init=weight_init, key=key)
        self.norm = BatchNorm(out_features, initial_weight=initial_weight)

    def __call__(self, x: Float[Array, "tokens in"], state: State) -> tuple[Float[Array, "tokens out"], State]:
        return self.norm(self.linear(x), state)


class NormLinear(eqx.nn.StatefulLayer):
    """The head: BatchNorm, then a linear map with bias."""

    norm: BatchNorm
    linear: Linear

    def __init__(self, dim: int, classes: int, *, key: PRNGKeyArray) -> None:
        self.norm = BatchNorm(dim)
        self.linear = Linear(dim, classes, key=key)

    def __call__(self, x: Float[Array, " dim"], state: State) -> tuple[Float[Array, " classes"], State]:
        x, state = self.norm(x, state)
        return self.linear(x), state


class Attention(eqx.nn.StatefulLayer):
    """Attention with a learned bias per head and distance (section 4.3), and Hardswish before the projection."""

    qkv: LinearNorm  # rows: q of all heads, k of all heads, v of all heads
    position_bias: Float[Array, "heads distances"]
    projection: LinearNorm
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(self, sizes: StageSizes, dropout: float, *, key: PRNGKeyArray) -> None:
        qkv_key, projection_key = jax.random.split(key)
        heads, key_dim, value_dim = sizes.heads, sizes.key_dim, sizes.value_dim
        self.qkv = LinearNorm(sizes.dim, heads * (2 * key_dim + value_dim), key=qkv_key)
        self.position_bias = jnp.zeros((heads, math.prod(sizes.grid)))
        self.projection = LinearNorm(heads * value_dim, sizes.dim, initial_weight=0.0, key=projection_key)
        self.attention_dropout = Dropout(dropout)
        self.projection_dropout = Dropout(dropout)
        self.heads, self.key_dim, self.grid = heads, key_dim, sizes.grid

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        attention_key, projection_key = split_or_none(key)
        qkv, state = self.qkv(tokens, state)
        query_key, value = jnp.split(qkv, [2 * self.heads * self.key_dim], axis=1)
        query, keys = split_heads(query_key, 2, self.heads)
        (value,) = split_heads(value, 1, self.heads)
        bias = self.position_bias[:, distances(self.grid, 1)]
        attended = attend(query, keys, value, bias=bias, dropout=self.attention_dropout, dropout_key=attention_key)
        out, state = self.projection(hard_swish(save_for_backward(merge_heads(attended))), state)
        return self.projection_dropout(out, key=projection_key), state


class AttentionDownsample(eqx.nn.StatefulLayer):
    """Attention that halves the map (section 4.4): the queries are those of every second row and column."""

    query: LinearNorm
    key_value: LinearNorm  # rows: k of all heads, v of all heads
    position_bias: Float[Array, "heads distances"]
    projection: LinearNorm
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(self, sizes: StageSizes, new_dim: int, dropout: float, *, key: PRNGKeyArray) -> None:
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        heads, key_dim, value_dim = sizes.downsample_heads, sizes.downsample_key_dim, sizes.downsample_value_dim
        self.query = LinearNorm(sizes.dim, heads * key_dim, key=query_key)
        self.key_value = LinearNorm(sizes.dim, heads * (key_dim + value_dim), key=key_value_key)
        self.position_bias = jnp.zeros((heads, math.prod(sizes.grid)))
        self.projection = LinearNorm(heads * value_dim, new_dim, key=projection_key)
        self.attention_dropout = Dropout(dropout)
        self.heads, self.key_dim, self.grid = heads, key_dim, sizes.grid

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens new_dim"], State]:
        subsampled = tokens.reshape(*self.grid, -1)[::2, ::2].reshape(-1, tokens.shape[1])
        query, state = self.query(subsampled, state)
        key_value, state = self.key_value(tokens, state)
        keys, value = jnp.split(key_value, [self.heads * self.key_dim], axis=1)
        (query,), (keys,), (value,) = (split_heads(part, 1, self.heads) for part in (query, keys, value))
        bias = self.position_bias[:, distances(self.grid, 2)]
        attended = attend(query, keys, value, bias=bias, dropout=self.attention_dropout, dropout_key=key)
        return self.projection(hard_swish(save_for_backward(merge_heads(attended))), state)


class MLP(eqx.nn.StatefulLayer):
    """Two linear maps with BatchNorm, Hardswish between them."""

    fc1: LinearNorm
    fc2: LinearNorm
    fc1_dropout: Dropout
    fc2_dropout: Dropout

    def __init__(self, dim: int, hidden_dim: int, dropout: float, *, key: PRNGKeyArray) -> None:
        fc1_key, fc2_key = jax.random.split(key)
        self.fc1 = LinearNorm(dim, hidden_dim, key=fc1_key)
        self.fc2 = LinearNorm(hidden_dim, dim, initial_weight=0.0, key=fc2_key)
        self.fc1_dropout = Dropout(dropout)
        self.fc2_dropout = Dropout(dropout)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        fc1_key, fc2_key = split_or_none(key)
        hidden, state = self.fc1(tokens, state)
        hidden = self.fc1_dropout(hard_swish(hidden), key=fc1_key)
        out, state = self.fc2(hidden, state)
        return self.fc2_dropout(out, key=fc2_key), state


class Block(eqx.nn.StatefulLayer):
    """Attention and MLP, each a residual; both branches start at zero (BatchNorm weight 0)."""

    attention: Attention
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: LeViTConfig, sizes: StageSizes, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.attention = Attention(sizes, config.dropout, key=attention_key)
        self.mlp = MLP(sizes.dim, int(sizes.dim * sizes.mlp_mult), config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch, state = self.attention(tokens, state, key=attention_key)
        tokens = tokens + self.drop_path(branch, key=path1_key)
        branch, state = self.mlp(tokens, state, key=mlp_key)
        return tokens + self.drop_path(branch, key=path2_key), state


class Downsample(eqx.nn.StatefulLayer):
    """Between two stages: attention that halves the map, without a residual, then an MLP with one."""

    attention: AttentionDownsample
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: LeViTConfig, sizes: StageSizes, new_dim: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.attention = AttentionDownsample(sizes, new_dim, config.dropout, key=attention_key)
        self.mlp = MLP(new_dim, int(new_dim * sizes.downsample_mlp_mult), config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens new_dim"], State]:
        attention_key, mlp_key, path_key = split_or_none(key, 3)
        tokens, state = self.attention(tokens, state, key=attention_key)
        branch, state = self.mlp(tokens, state, key=mlp_key)
        return tokens + self.drop_path(branch, key=path_key), state


class LeViT(StatefulImageModel[LeViTConfig]):
    """LeViT: one image and the BatchNorm state to logits and state.

        step                        shape                  levit_256
        image                       height width channels  224 224 3
        stem                        tokens dim[0]          196 256
        stage i: depth[i] x block   tokens dim[i]          196 256, 49 384, 16 512
        downsample i                new_tokens dim[i + 1]  49 384, 16 512
        features                    tokens dim[-1]         16 512
        mean                        dim[-1]                512
        head                        num_classes            1000

    tokens = rows * columns of the stage's map: at first height / 16 and width / 16, then half, rounded up. The stem is
    four convolutions. A block is attention and MLP, residual. The head is BatchNorm and a linear map; with distillation
    there are two, and the logits are their mean.
    """

    stem: tuple[ConvNorm, ...]
    stages: tuple[Stack[Block], ...]
    downsamples: tuple[Downsample, ...]
    head: NormLinear | eqx.nn.Identity
    head_dist: NormLinear | None

    def __init__(self, config: LeViTConfig, *, key: PRNGKeyArray) -> None:
        stem_key, stages_key, downsamples_key, head_key, head_dist_key = jax.random.split(key, 5)
        self.config = config
        stages = config.stage_sizes
        first, last = stages[0].dim, stages[-1].dim
        widths = (config.channels, first // 8, first // 4, first // 2, first)
        self.stem = tuple(
            ConvNorm(before, after, key=layer_key)
            for before, after, layer_key in zip(widths, widths[1:], jax.random.split(stem_key, 4), strict=False)
        )
        self.stages = tuple(
            Stack.build(functools.partial(Block, config, sizes), sizes.depth, key=stage_key)
            for sizes, stage_key in zip(stages, jax.random.split(stages_key, config.stages), strict=True)
        )
        downsample_keys = jax.random.split(downsamples_key, config.stages - 1)
        self.downsamples = tuple(
            Downsample(config, before, after.dim, key=downsample_key)
            for before, after, downsample_key in zip(stages, stages[1:], downsample_keys, strict=False)
        )
        classes = config.num_classes
        self.head = NormLinear(last, classes, key=head_key) if classes else eqx.nn.Identity()
        self.head_dist = NormLinear(last, classes, key=head_dist_key) if config.num_distill_classes else None

    def embed(
        self, image: Float[Array, "height width channels"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens dim"], State]:
        """The map that the stem makes, as tokens."""
        x, state = self.stem[0](image, state)
        for layer in self.stem[1:]:
            x, state = layer(hard_swish(x), state)
        return x.reshape(-1, x.shape[-1]), state

    def encode(
        self, x: Float[Array, "tokens dim"], state: State, *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "new_tokens new_dim"], State]:
        """The tokens of the last stage; there is no final norm."""
        first_key, *later_keys = split_or_none(key, self.config.stages)
        tokens, state = self.stages[0].with_state(x, state, key=first_key)
        for downsample, blocks, stage_key in zip(self.downsamples, self.stages[1:], later_keys, strict=True):
            downsample_key, blocks_key = split_or_none(stage_key)
            tokens, state = downsample(tokens, state, key=downsample_key)
            tokens, state = blocks.with_state(tokens, state, key=blocks_key)
        return tokens, state

    def classify(self, features: Float[Array, "tokens dim"], state: State) -> tuple[Float[Array, " classes"], State]:
        """Logits from the mean of the tokens: of the one head, or the mean of the pair with distillation."""
        if self.head_dist is not None:
            (logits, distilled), state = self.classify_pair(features, state)
            return (logits + distilled) / 2, state
        pooled = jnp.mean(features, axis=0)
        return self.head(pooled, state) if isinstance(self.head, NormLinear) else (self.head(pooled), state)

    def classify_pair(self, features: Float[Array, "tokens dim"], state: State) -> tuple[LogitsPair, State]:
        """(class logits, distillation logits), each of its head."""
        if self.head_dist is None or not isinstance(self.head, NormLinear):
            raise ValueError("this LeViT has one head: a pair needs a config with num_distill_classes=num_classes")
        pooled = jnp.mean(features, axis=0)
        logits, state = self.head(pooled, state)
        distilled, state = self.head_dist(pooled, state)
        return (logits, distilled), state

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each stage's last block."""
        return [
            FeaturePoint(f"stages.{stage}", sizes.dim, 2 ** (len(self.stem) + stage), (-1,), grid=sizes.grid)
            for stage, sizes in enumerate(self.config.stage_sizes)
        ]

    def resize_spec(self, image_size: Size) -> tuple[LeViTConfig, Mapping[str, Array]]:
        """**Raises:** `ValueError`: the bias tables belong to one map size, and no official rule resizes them."""
        raise ValueError(
            f"LeViT cannot be resized to {image_size}: its attention biases belong to maps of "
            f"{self.config.stage_sizes[0].grid}; build one with image_size=... and train it"
        )


def distances(grid: tuple[int, int], stride: int) -> Int[np.ndarray, "queries keys"]:
    """Index of |row distance|, |column distance| into a row-major table, from every `stride`-th position to all."""
    keys = grid_coordinates(*grid)
    queries = keys.reshape(*grid, 2)[::stride, ::stride].reshape(-1, 2)
    offset = np.abs(queries[:, None] - keys[None])
    return offset[..., 0] * grid[1] + offset[..., 1]


def _preset(dim: tuple[int, ...], key_dim: int, heads: tuple[int, ...], depth: int | tuple[int, ...]) -> LeViTConfig:
    return LeViTConfig(
        dim=dim, depth=depth, heads=heads, dim_key=key_dim, dim_value=2 * key_dim, num_distill_classes=1000
    )


PRESETS: dict[str, LeViTConfig] = {
    "levit_128s": _preset((128, 256, 384), 16, (4, 6, 8), (2, 3, 4)),  # 7,777,058
    "levit_128": _preset((128, 256, 384), 16, (4, 8, 12), 4),  # 9,213,936
    "levit_192": _preset((192, 288, 384), 32, (3, 5, 6), 4),  # 10,947,069
    "levit_256": _preset((256, 384, 512), 32, (4, 6, 8), 4),  # 18,893,876
    "levit_384": replace(_preset((384, 512, 768), 32, (6, 9, 12), 4), drop_path=0.1),  # 39,128,836
}

WEIGHTS: dict[str, Source] = {name: Source(hub=f"timm/{name}.fb_dist_in1k") for name in PRESETS}
