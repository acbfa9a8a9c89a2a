"""LeViT (arXiv 2104.01136): a vision transformer in a convolutional network's clothing, for fast inference.

The idea: a convolutional stem, then a pyramid of attention stages on shrinking maps; BatchNorm instead of LayerNorm, so
that every norm can be folded into its linear map; a learned bias per relative position instead of positions.

    image                      height width channels
    stem, 4 convolutions       rows columns dim[0]          rows = height / 16, columns = width / 16
    stage i: depth[i] x block  tokens dim[i]                tokens = rows * columns; attention and MLP, residual
    shrink i                   new_tokens dim[i + 1]        rows -> (rows + 1) // 2; attention from every second token
    mean over tokens           dim[-1]
    head                       num_classes                  BatchNorm, then linear; with distillation the mean of two

Axes: tokens = positions of the map, row-major; heads; key_dim and value_dim = width of one head's keys and values.
No departure from the official code (facebookresearch/LeViT).
"""

import functools
import typing
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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
    image_door,
    merge_heads,
    split_or_none,
)
from eqx_vit.layers.config import (
    check,
    check_fields,
    check_multiple,
    check_positive,
    check_rates,
    pair,
    per_stage,
)
from eqx_vit.layers.init import fan_in_uniform
from eqx_vit.layers.window import grid_coordinates
from eqx_vit.models.source import Source


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class LeViTConfig:
    """Everything that defines a LeViT. One value for `dim`, `depth`, `heads`, ... stands for all stages."""

    image_size: int | tuple[int, int] = 224  # a multiple of 16
    num_classes: int = 1000  # 0: no head, the pooled features come out
    stages: int = 3
    dim: int | tuple[int, ...] = (256, 384, 512)
    depth: int | tuple[int, ...] = 4
    heads: int | tuple[int, ...] = (4, 6, 8)
    mlp_mult: int | float | tuple[int | float, ...] = 2  # MLP width, in multiples of dim
    dim_key: int | tuple[int, ...] = 32  # per head
    dim_value: int | tuple[int, ...] = 64  # per head
    num_distill_classes: int | None = None  # a second head for distillation; must equal num_classes
    channels: int = 3
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP; the paper has none
    drop_path: float = 0.0  # stochastic depth, the same for every residual
    shrink_heads: tuple[int, ...] | None = None  # None: dim // dim_key
    shrink_dim_value: int | tuple[int, ...] | None = None  # None: 4 * dim_key

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "stages", "dim", "depth", "heads", "mlp_mult", "dim_key", "dim_value")
        check_positive(self, "channels", "shrink_heads", "shrink_dim_value")
        check_rates(self, "dropout", "drop_path")
        check_multiple("image_size", self.image_size, 16)
        check(self.num_classes >= 0, f"LeViTConfig.num_classes must not be negative, given {self.num_classes}")
        for name in ("dim", "depth", "heads", "mlp_mult", "dim_key", "dim_value"):
            count = len(per_stage(getattr(self, name), 1))
            check(count <= self.stages, f"LeViTConfig.{name} has {count} values for stages={self.stages}")
        check(
            self.shrink_heads is None or len(self.shrink_heads) == self.stages - 1,
            f"LeViTConfig.shrink_heads needs stages - 1 = {self.stages - 1} values, given {self.shrink_heads}",
        )
        check(self.dims[0] % 8 == 0, f"the first dim must be a multiple of 8, for the stem; given {self.dims[0]}")
        check(
            min((1, *self.heads_of_shrinks)) > 0,
            f"dim {self.dim} is smaller than dim_key {self.dim_key}: give shrink_heads, or a smaller dim_key",
        )
        check(
            self.num_distill_classes in (None, self.num_classes),
            f"num_distill_classes {self.num_distill_classes} must be None or num_classes ({self.num_classes}), since "
            "the answer is the mean of both heads",
        )

    @property
    def dims(self):
        return per_stage(self.dim, self.stages)

    @property
    def grids(self):
        """(rows, columns) of each stage's map."""
        height, width = pair(self.image_size)
        grids = [(height // 16, width // 16)]
        while len(grids) < self.stages:
            rows, columns = grids[-1]
            grids.append(((rows + 1) // 2, (columns + 1) // 2))
        return tuple(grids)

    @property
    def heads_of_shrinks(self):
        keys = per_stage(self.dim_key, self.stages)
        return self.shrink_heads or tuple(dim // key for dim, key in zip(self.dims[:-1], keys, strict=False))

    @property
    def values_of_shrinks(self):
        values = self.shrink_dim_value or tuple(4 * key for key in per_stage(self.dim_key, self.stages))
        return per_stage(values, self.stages)

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this LeViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or build "
            f"the model with image_size=({height}, {width})",
        )


class ConvNorm(eqx.nn.StatefulLayer):
    """A 3x3 convolution of stride 2, then BatchNorm."""

    conv: Conv
    norm: BatchNorm

    def __init__(self, in_channels: int, out_channels: int, *, key: PRNGKeyArray) -> None:
        self.conv = Conv(in_channels, out_channels, 3, stride=2, padding=1, use_bias=False, key=key)
        self.norm = BatchNorm(out_channels)

    def __call__(
        self, x: Float[Array, "height width in"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_height new_width out"], eqx.nn.State]:
        return self.norm(self.conv(x), state)


class LinearNorm(eqx.nn.StatefulLayer):
    """A linear map without bias, then BatchNorm over all tokens of the batch."""

    linear: Linear
    norm: BatchNorm

    def __init__(self, in_features: int, out_features: int, *, initial_weight: float = 1.0, key: PRNGKeyArray) -> None:
        weight_init = fan_in_uniform(in_features)
        self.linear = Linear(in_features, out_features, use_bias=False, weight_init=weight_init, key=key)
        self.norm = BatchNorm(out_features, initial_weight=initial_weight)

    def __call__(
        self, x: Float[Array, "tokens in"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens out"], eqx.nn.State]:
        return self.norm(self.linear(x), state)


class NormLinear(eqx.nn.StatefulLayer):
    """The head: BatchNorm, then a linear map with bias."""

    norm: BatchNorm
    linear: Linear

    def __init__(self, dim: int, classes: int, *, key: PRNGKeyArray) -> None:
        self.norm = BatchNorm(dim)
        self.linear = Linear(dim, classes, key=key)

    def __call__(
        self, x: Float[Array, " dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " classes"], eqx.nn.State]:
        x, state = self.norm(x, state)
        return self.linear(x), state


class Attention(eqx.nn.StatefulLayer):
    """Attention with a learned bias per head and distance (section 4.3), and Hardswish before the projection."""

    qkv: LinearNorm  # rows: q of all heads, k of all heads, v of all heads
    position_bias: Float[Array, "heads distances"]
    projection: LinearNorm
    attention_dropout: Dropout
    projection_dropout: Dropout
    key_dim: int = eqx.field(static=True)
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(self, config: LeViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        qkv_key, projection_key = jax.random.split(key)
        dim, heads = config.dims[stage], per_stage(config.heads, config.stages)[stage]
        value_dim = per_stage(config.dim_value, config.stages)[stage]
        self.key_dim = per_stage(config.dim_key, config.stages)[stage]
        self.grid = config.grids[stage]
        self.qkv = LinearNorm(dim, heads * (2 * self.key_dim + value_dim), key=qkv_key)
        self.position_bias = jnp.zeros((heads, self.grid[0] * self.grid[1]))
        self.projection = LinearNorm(heads * value_dim, dim, initial_weight=0.0, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.projection_dropout = Dropout(config.dropout)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        attention_key, projection_key = split_or_none(key)
        fused, state = self.qkv(tokens, state)
        inner = self.position_bias.shape[0] * self.key_dim
        query, keys, value = (_heads(part, self) for part in jnp.split(fused, (inner, 2 * inner), axis=1))
        bias = self.position_bias[:, distances(self.grid, 1)]
        mixed = attend(query, keys, value, bias=bias, dropout=self.attention_dropout, dropout_key=attention_key)
        out, state = self.projection(hard_swish(merge_heads(mixed)), state)
        return self.projection_dropout(out, key=projection_key), state


class ShrinkAttention(eqx.nn.StatefulLayer):
    """Attention that halves the map (section 4.4): only every second row and column of tokens asks."""

    query: LinearNorm
    key_value: LinearNorm  # rows: k of all heads, v of all heads
    position_bias: Float[Array, "heads distances"]
    projection: LinearNorm
    attention_dropout: Dropout
    key_dim: int = eqx.field(static=True)
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(self, config: LeViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        dim, new_dim = config.dims[stage : stage + 2]
        heads, value_dim = config.heads_of_shrinks[stage], config.values_of_shrinks[stage]
        self.key_dim = per_stage(config.dim_key, config.stages)[stage]
        self.grid = config.grids[stage]
        self.query = LinearNorm(dim, heads * self.key_dim, key=query_key)
        self.key_value = LinearNorm(dim, heads * (self.key_dim + value_dim), key=key_value_key)
        self.position_bias = jnp.zeros((heads, self.grid[0] * self.grid[1]))
        self.projection = LinearNorm(heads * value_dim, new_dim, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens new_dim"], eqx.nn.State]:
        asking = tokens.reshape(*self.grid, -1)[::2, ::2].reshape(-1, tokens.shape[1])
        query, state = self.query(asking, state)
        fused, state = self.key_value(tokens, state)
        keys, value = jnp.split(fused, (self.position_bias.shape[0] * self.key_dim,), axis=1)
        bias = self.position_bias[:, distances(self.grid, 2)]
        mixed = attend(
            _heads(query, self),
            _heads(keys, self),
            _heads(value, self),
            bias=bias,
            dropout=self.attention_dropout,
            dropout_key=key,
        )
        return self.projection(hard_swish(merge_heads(mixed)), state)


class MLP(eqx.nn.StatefulLayer):
    """Two linear maps with BatchNorm, Hardswish between them."""

    expand: LinearNorm
    contract: LinearNorm
    expand_dropout: Dropout
    contract_dropout: Dropout

    def __init__(self, dim: int, hidden_dim: int, dropout: float, *, key: PRNGKeyArray) -> None:
        expand_key, contract_key = jax.random.split(key)
        self.expand = LinearNorm(dim, hidden_dim, key=expand_key)
        self.contract = LinearNorm(hidden_dim, dim, initial_weight=0.0, key=contract_key)
        self.expand_dropout = Dropout(dropout)
        self.contract_dropout = Dropout(dropout)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        expand_key, contract_key = split_or_none(key)
        hidden, state = self.expand(tokens, state)
        hidden = self.expand_dropout(hard_swish(hidden), key=expand_key)
        out, state = self.contract(hidden, state)
        return self.contract_dropout(out, key=contract_key), state


class Block(eqx.nn.StatefulLayer):
    """Attention and MLP, each a residual; both branches start at zero (BatchNorm weight 0)."""

    attention: Attention
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: LeViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.attention = Attention(config, stage, key=attention_key)
        self.mlp = MLP(config.dims[stage], _hidden(config, stage, stage), config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch, state = self.attention(tokens, state, key=attention_key)
        tokens = tokens + self.drop_path(branch, key=path1_key)
        branch, state = self.mlp(tokens, state, key=mlp_key)
        return tokens + self.drop_path(branch, key=path2_key), state


class Shrink(eqx.nn.StatefulLayer):
    """Between two stages: shrinking attention, without a residual, then an MLP with one."""

    attention: ShrinkAttention
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: LeViTConfig, stage: int, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.attention = ShrinkAttention(config, stage, key=attention_key)
        self.mlp = MLP(config.dims[stage + 1], _hidden(config, stage + 1, stage), config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens new_dim"], eqx.nn.State]:
        attention_key, mlp_key, path_key = split_or_none(key, 3)
        tokens, state = self.attention(tokens, state, key=attention_key)
        branch, state = self.mlp(tokens, state, key=mlp_key)
        return tokens + self.drop_path(branch, key=path_key), state


class LeViT(eqx.nn.StatefulLayer):
    """LeViT: one image and the BatchNorm state to logits and state. See the module's text for the shapes.

    Made by `eqx_vit.create`, called through `eqx_vit.forward` in training, since BatchNorm needs the batch.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    stem: tuple[ConvNorm, ...]
    stages: tuple[Stack, ...]
    shrinks: tuple[Shrink, ...]
    head: NormLinear | None
    head_dist: NormLinear | None
    config: LeViTConfig = eqx.field(static=True)

    def __init__(self, config: LeViTConfig, *, key: PRNGKeyArray) -> None:
        stem_key, stages_key, shrinks_key, head_key, head_dist_key = jax.random.split(key, 5)
        first, last = config.dims[0], config.dims[-1]
        widths = (config.channels, first // 8, first // 4, first // 2, first)
        self.stem = tuple(
            ConvNorm(before, after, key=key)
            for before, after, key in zip(widths, widths[1:], jax.random.split(stem_key, 4), strict=False)
        )
        depths = per_stage(config.depth, config.stages)
        self.stages = tuple(
            Stack.build(functools.partial(_block, config, stage), depth, key=key)
            for stage, (depth, key) in enumerate(zip(depths, jax.random.split(stages_key, config.stages), strict=True))
        )
        self.shrinks = tuple(
            Shrink(config, stage, key=key) for stage, key in enumerate(jax.random.split(shrinks_key, config.stages - 1))
        )
        classes = config.num_classes
        self.head = NormLinear(last, classes, key=head_key) if classes else None
        self.head_dist = NormLinear(last, classes, key=head_dist_key) if config.num_distill_classes else None
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        """The tokens of the last stage; there is no final norm."""
        keys = split_or_none(key, 2 * self.config.stages)
        x, state = self.stem[0](image, state)
        for layer in self.stem[1:]:
            x, state = layer(hard_swish(x), state)
        tokens = x.reshape(-1, x.shape[-1])
        for stage, blocks in enumerate(self.stages):
            tokens, state = blocks.with_state(tokens, state, key=keys[2 * stage])
            if stage < len(self.shrinks):
                tokens, state = self.shrinks[stage](tokens, state, key=keys[2 * stage + 1])
        return tokens, state

    def heads(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[tuple[Float[Array, " classes"], Float[Array, " classes"]], eqx.nn.State]:
        """((class logits, distillation logits), state), for a distillation loss.

        **Raises:** `ValueError` unless the config gives `num_distill_classes`.
        """
        if self.head is None or self.head_dist is None:
            raise ValueError("this LeViT has one head: a pair needs a config with num_distill_classes=num_classes")
        tokens, state = self.features(image, state, key=key)
        pooled = jnp.mean(tokens, axis=0)
        logits, state = self.head(pooled, state)
        distilled, state = self.head_dist(pooled, state)
        return (logits, distilled), state

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " classes"], eqx.nn.State]:
        """Logits and state; with distillation the mean of both heads."""
        if self.head_dist is not None:
            (logits, distilled), state = self.heads(image, state, key=key)
            return (logits + distilled) / 2, state
        tokens, state = self.features(image, state, key=key)
        pooled = jnp.mean(tokens, axis=0)
        return (pooled, state) if self.head is None else self.head(pooled, state)

    def resized(self, image_size: int | tuple[int, int]) -> tuple[LeViTConfig, dict[str, Array]]:
        """**Raises:** `ValueError`: the bias tables belong to one map size, and no official rule resizes them."""
        raise ValueError(
            f"LeViT cannot be resized to {image_size}: its attention biases belong to maps of {self.config.grids[0]}; "
            "build one with image_size=... and train it"
        )


def distances(grid: tuple[int, int], stride: int) -> Int[np.ndarray, "queries keys"]:
    """Index of |row distance|, |column distance| into a row-major table, from every `stride`-th position to all."""
    keys = grid_coordinates(*grid)
    queries = keys.reshape(*grid, 2)[::stride, ::stride].reshape(-1, 2)
    offset = np.abs(queries[:, None] - keys[None])
    return offset[..., 0] * grid[1] + offset[..., 1]


def _block(config: LeViTConfig, stage: int, key: PRNGKeyArray) -> Block:
    return Block(config, stage, key=key)


def _heads(x: Float[Array, "tokens channels"], module: Attention | ShrinkAttention) -> Float[Array, "tokens heads d"]:
    return x.reshape(x.shape[0], module.position_bias.shape[0], -1)


def _hidden(config: LeViTConfig, stage: int, ratio_stage: int) -> int:
    return int(config.dims[stage] * per_stage(config.mlp_mult, config.stages)[ratio_stage])


def _preset(
    dim: tuple[int, ...], key_dim: int, heads: tuple[int, ...], depth: int | tuple[int, ...], drop_path: float = 0.0
) -> LeViTConfig:
    return LeViTConfig(
        dim=dim,
        dim_key=key_dim,
        dim_value=2 * key_dim,
        heads=heads,
        depth=depth,
        drop_path=drop_path,
        num_distill_classes=1000,
    )


PRESETS: dict[str, LeViTConfig] = {
    "levit_128s": _preset((128, 256, 384), 16, (4, 6, 8), (2, 3, 4)),  # 7,777,058
    "levit_128": _preset((128, 256, 384), 16, (4, 8, 12), 4),  # 9,213,936
    "levit_192": _preset((192, 288, 384), 32, (3, 5, 6), 4),  # 10,947,069
    "levit_256": _preset((256, 384, 512), 32, (4, 6, 8), 4),  # 18,893,876
    "levit_384": _preset((384, 512, 768), 32, (6, 9, 12), 4, drop_path=0.1),  # 39,128,836
}

WEIGHTS: dict[str, Source] = {name: Source(hub=f"timm/{name}.fb_dist_in1k") for name in PRESETS}
