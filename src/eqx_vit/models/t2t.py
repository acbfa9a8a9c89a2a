"""T2T-ViT (arXiv 2101.11986): tokens-to-token, a vision transformer that structures the image before it reads it.

The idea: overlapping soft splits instead of one hard cut into patches: neighbouring tokens are unfolded into one, mixed
by a narrow performer or transformer layer, laid out as a map, and split again. A deep-narrow ViT reads the result.

    image                     height width channels
    soft split 0              rows_0 columns_0 pixels    unfold: kernel 7, stride 4, padding 2
    token layer 0             rows_0 columns_0 token_dim
    soft split 1              rows_1 columns_1 pixels    kernel 3, stride 2, padding 1
    token layer 1             rows_1 columns_1 token_dim
    soft split 2              rows_2 columns_2 pixels    kernel 3, stride 2, padding 1: a sixteenth of the image's sides
    projection                rows_2 columns_2 dim
    class token + patches     tokens dim                 plus a fixed sinusoid table
    depth x block             tokens dim                 attention and MLP, pre-norm, residual
    norm                      tokens dim
    pool                      dim                        the class token, or the mean of the patches
    head                      num_classes

Axes: pixels = kernel height * kernel width * channels of what is unfolded; tokens = 1 + rows_2 * columns_2.
No departure from the official code (yitu-opensource/T2T-ViT).
"""

import math
import typing
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Buffer,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    Stack,
    attend,
    image_door,
    merge_heads,
    ramp,
    resize_table,
    split_heads,
    split_or_none,
    unfold,
)
from eqx_vit.layers.config import check, check_fields, check_positive, check_rates, pair
from eqx_vit.layers.init import truncated_normal
from eqx_vit.layers.patch import unfolded_size
from eqx_vit.layers.precision import widened
from eqx_vit.models.source import Source


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class T2TViTConfig:
    """Everything that defines a T2T-ViT. `image_size` is in pixels, one number or (height, width)."""

    image_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    t2t_layers: tuple[tuple[int, ...], ...] = (
        (7, 4),
        (3, 2),
        (3, 2),
    )  # (kernel, stride) or (..., padding) of each split
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # attention output, inside and after the MLP, of the backbone
    emb_dropout: float = 0.0  # after the positions are added
    tokens_type: Literal["performer", "transformer"] = "performer"
    token_dim: int = 64  # width between the splits
    token_dropout: float = 0.1  # in the performer's layers; the official code has this number hard-wired
    random_features: int | None = None  # of the performer; None: token_dim // 2
    attention_dropout: float = 0.0  # attention weights of the backbone
    attention_scale: float | None = None  # None: dim_head ** -0.5
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over depth; the paper trains with 0.1
    qkv_bias: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "dim", "depth", "heads", "mlp_dim", "channels", "dim_head", "token_dim")
        check_positive(self, "random_features")
        check_rates(self, "dropout", "emb_dropout", "token_dropout", "attention_dropout", "drop_path")
        check(self.num_classes >= 0, f"T2TViTConfig.num_classes must not be negative, given {self.num_classes}")
        for layer in self.t2t_layers:
            check(
                len(layer) in (2, 3) and min(layer[:2]) > 0 and min(layer) >= 0,
                f"each of t2t_layers is (kernel, stride) or (kernel, stride, padding), given {layer}",
            )
        check(
            self.dim_head is not None or self.dim % self.heads == 0,
            f"dim {self.dim} is not a multiple of heads {self.heads}: change one, or give dim_head",
        )
        check(
            self.tokens_type == "transformer" or self.features_of_performer > 0,
            f"token_dim {self.token_dim} leaves no random features: use 2 or more, or give random_features",
        )
        check(
            min(pair(self.image_size)) >= self.smallest_side,
            f"image_size {self.image_size} is too small for t2t_layers {self.t2t_layers}: use {self.smallest_side} or "
            "more",
        )

    @property
    def splits(self):
        """(kernel, stride, padding) of each soft split."""
        return tuple(layer if len(layer) == 3 else (*layer, layer[1] // 2) for layer in self.t2t_layers)

    @property
    def smallest_side(self):
        """The smallest image side that leaves a token after the last split."""
        side = 1
        for kernel, stride, padding in reversed(self.splits):
            side = max((side - 1) * stride + kernel - 2 * padding, 1)
        return side

    @property
    def grid(self):
        """(rows, columns) after the last split."""
        size = pair(self.image_size)
        for split in self.splits:
            size = unfolded_size(size, *split)
        return size

    @property
    def features_of_performer(self):
        return self.token_dim // 2 if self.random_features is None else self.random_features

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this T2TViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or the "
            f"model with eqx_vit.resize(model, ({height}, {width}))",
        )


class TokenTransformer(eqx.Module):
    """A token layer by attention with one head: the skip comes from the values, since the width changes."""

    norm1: LayerNorm
    qkv: Linear
    projection: Linear
    norm2: LayerNorm
    mlp: MLP
    scale: float = eqx.field(static=True)

    def __init__(self, config: T2TViTConfig, pixels: int, *, key: PRNGKeyArray) -> None:
        qkv_key, projection_key, mlp_key = jax.random.split(key, 3)
        dim = config.token_dim
        self.norm1 = LayerNorm(pixels, config.norm_eps)
        self.qkv = Linear(pixels, 3 * dim, use_bias=False, key=qkv_key)
        self.projection = Linear(dim, dim, key=projection_key)
        self.norm2 = LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(dim, dim, key=mlp_key)
        self.scale = pixels**-0.5  # by the width before the projection, as the official code has it

    def __call__(
        self, tokens: Float[Array, "tokens pixels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """`key` is not used: the official layer drops nothing."""
        query, keys, value = split_heads(self.qkv(self.norm1(tokens)), 3, 1)
        mixed = merge_heads(attend(query, keys, value, scale=self.scale))
        tokens = merge_heads(value) + self.projection(mixed)
        return tokens + self.mlp(self.norm2(tokens))


class TokenPerformer(eqx.Module):
    """A token layer by linear attention over random features (Performer, arXiv 2009.14794), one head.

    exp(q.k) is the expectation over w of exp(w.q - |q|^2 / 2) * exp(w.k - |k|^2 / 2); `features` holds the w.
    """

    norm1: LayerNorm
    qkv: Linear
    features: Buffer  # (features, dim)
    projection: Linear
    projection_dropout: Dropout
    norm2: LayerNorm
    mlp: MLP
    mlp_dropout: Dropout

    def __init__(self, config: T2TViTConfig, pixels: int, *, key: PRNGKeyArray) -> None:
        qkv_key, features_key, projection_key, mlp_key = jax.random.split(key, 4)
        dim, features = config.token_dim, config.features_of_performer
        self.norm1 = LayerNorm(pixels, config.norm_eps)
        self.qkv = Linear(pixels, 3 * dim, key=qkv_key)
        orthogonal = jax.nn.initializers.orthogonal(scale=math.sqrt(features))
        self.features = Buffer(orthogonal(features_key, (features, dim)))
        self.projection = Linear(dim, dim, key=projection_key)
        self.projection_dropout = Dropout(config.token_dropout)
        self.norm2 = LayerNorm(dim, config.norm_eps)
        self.mlp = MLP(dim, dim, key=mlp_key)
        self.mlp_dropout = Dropout(config.token_dropout)

    def __call__(
        self, tokens: Float[Array, "tokens pixels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        projection_key, mlp_key = split_or_none(key)
        query, keys, value = jnp.split(self.qkv(self.norm1(tokens)), 3, axis=1)
        mixed = linear_attention(self._features(query), self._features(keys), value)
        tokens = value + self.projection_dropout(self.projection(mixed), key=projection_key)
        return tokens + self.mlp_dropout(self.mlp(self.norm2(tokens)), key=mlp_key)

    def _features(self, x: Float[Array, "tokens dim"]) -> Float[Array, "tokens features"]:
        """No maximum is subtracted: the small constant in the attention's denominator counts against these numbers."""
        matrix = self.features.value
        wide = widened(x)
        half_square = jnp.sum(jnp.square(wide), axis=1, keepdims=True) / 2
        return jnp.exp(wide @ matrix.astype(wide.dtype).T - half_square) / math.sqrt(matrix.shape[0])


class Block(eqx.Module):
    """A block of the backbone: attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: T2TViTConfig, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(
            config.dim,
            config.heads,
            head_dim=config.dim_head,
            qkv_bias=config.qkv_bias,
            scale=config.attention_scale,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            key=attention_key,
        )
        self.norm2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], drop_scale: Float[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.attention(self.norm1(tokens), key=attention_key)
        tokens = tokens + self.drop_path(branch, drop_scale, key=path1_key)
        branch = self.mlp(self.norm2(tokens), key=mlp_key)
        return tokens + self.drop_path(branch, drop_scale, key=path2_key)


class T2TViT(eqx.Module):
    """T2T-ViT: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    token_layers: tuple[TokenPerformer | TokenTransformer, ...]
    projection: Linear
    class_token: Float[Array, "1 dim"]
    position_embedding: Buffer  # (tokens, dim)
    embedding_dropout: Dropout
    blocks: Stack
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: T2TViTConfig = eqx.field(static=True)

    def __init__(self, config: T2TViTConfig, *, key: PRNGKeyArray) -> None:
        layers_key, projection_key, token_key, blocks_key, head_key = jax.random.split(key, 5)
        make = TokenPerformer if config.tokens_type == "performer" else TokenTransformer
        *layer_pixels, last_pixels = unfolded_widths(config)
        self.token_layers = tuple(
            make(config, pixels, key=key)
            for pixels, key in zip(layer_pixels, jax.random.split(layers_key, len(layer_pixels)), strict=True)
        )
        self.projection = Linear(last_pixels, config.dim, key=projection_key)
        self.class_token = truncated_normal()(token_key, (1, config.dim))
        self.position_embedding = Buffer(jnp.asarray(sinusoid(1 + math.prod(config.grid), config.dim), dtype=float))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.blocks = Stack.build(lambda key: Block(config, key=key), config.depth, key=blocks_key)
        self.norm = LayerNorm(config.dim, config.norm_eps)
        classes = config.num_classes
        self.head = Linear(config.dim, classes, key=head_key) if classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm."""
        embedding_key, blocks_key, *layer_keys = split_or_none(key, 2 + len(self.token_layers))
        *first, last = self.config.splits
        feature_map = image
        for split, layer, layer_key in zip(first, self.token_layers, layer_keys, strict=True):
            unfolded = unfold(feature_map, *split)
            tokens = layer(unfolded.reshape(-1, unfolded.shape[-1]), key=layer_key)
            feature_map = tokens.reshape(*unfolded.shape[:2], -1)
        patches = self.projection(unfold(feature_map, *last)).reshape(-1, self.config.dim)
        tokens = jnp.concatenate([self.class_token, patches]) + self.position_embedding.value
        tokens = self.embedding_dropout(tokens, key=embedding_key)
        tokens = self.blocks(tokens, scanned=(ramp(self.config.depth),), key=blocks_key)
        return self.norm(tokens)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits."""
        tokens = self.features(image, key=key)
        return self.head(tokens[0] if self.config.pool == "cls" else jnp.mean(tokens[1:], axis=0))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[T2TViTConfig, dict[str, Array]]:
        """The config for another image size, and the table resampled as the official code does it on loading."""
        config = replace(self.config, image_size=image_size)
        table = resize_table(self.position_embedding.array, self.config.grid, config.grid, antialias=False)
        return config, {"position_embedding.array": table}


def linear_attention(
    query: Float[Array, "tokens features"], key: Float[Array, "tokens features"], value: Float[Array, "tokens dim"]
) -> Float[Array, "tokens dim"]:
    """`query @ (key.T @ value)`, normalised, in the dtype of the features and returned in that of the values."""
    summed = key.T @ value.astype(key.dtype)
    total = query @ jnp.sum(key, axis=0)
    return (query @ summed / (total[:, None] + 1e-8)).astype(value.dtype)


def sinusoid(positions: int, dim: int) -> Float[np.ndarray, "positions dim"]:
    """The table of Vaswani et al. (arXiv 1706.03762), sine and cosine interleaved; in float64, as the official code."""
    angle = np.arange(positions)[:, None] / np.power(10_000, 2 * (np.arange(dim) // 2) / dim)
    return np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle))


def unfolded_widths(config: T2TViTConfig) -> tuple[int, ...]:
    """The width of a token after each soft split."""
    channels = (config.channels, *[config.token_dim] * (len(config.splits) - 1))
    return tuple(kernel**2 * width for (kernel, *_), width in zip(config.splits, channels, strict=True))


def _preset(
    dim: int, depth: int, heads: int, mlp_ratio: int, tokens_type: Literal["performer", "transformer"] = "performer"
) -> T2TViTConfig:
    return T2TViTConfig(
        image_size=224,
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_ratio * dim,
        tokens_type=tokens_type,
    )


# Parameter counts are of what is trained: the position table and the performers' random matrices come on top.
PRESETS: dict[str, T2TViTConfig] = {
    "t2t_vit_7": _preset(256, 7, 4, 2),  # 4,255,694
    "t2t_vit_10": _preset(256, 10, 4, 2),  # 5,834,702
    "t2t_vit_12": _preset(256, 12, 4, 2),  # 6,887,374
    "t2t_vit_14": _preset(384, 14, 6, 3),  # 21,465,806
    "t2t_vit_14_384": replace(_preset(384, 14, 6, 3), image_size=384),  # 21,465,806
    "t2t_vit_19": _preset(448, 19, 7, 3),  # 39,085,070
    "t2t_vit_24": _preset(512, 24, 8, 3),  # 64,000,974
    "t2t_vit_t_14": _preset(384, 14, 6, 3, "transformer"),  # 21,465,422
    "t2t_vit_t_19": _preset(448, 19, 7, 3, "transformer"),  # 39,084,686
    "t2t_vit_t_24": _preset(512, 24, 8, 3, "transformer"),  # 64,000,590
    "t2t_vit_14_resnext": _preset(384, 14, 32, 3),  # 21,465,806
    "t2t_vit_14_wide": _preset(768, 4, 12, 3),  # 25,000,910
}

_FILES = {  # the official releases, named by their accuracy
    "t2t_vit_7": "71.7_T2T_ViT_7",
    "t2t_vit_10": "75.2_T2T_ViT_10",
    "t2t_vit_12": "76.5_T2T_ViT_12",
    "t2t_vit_14": "81.5_T2T_ViT_14",
    "t2t_vit_14_384": "83.3_T2T_ViT_14",
    "t2t_vit_19": "81.9_T2T_ViT_19",
    "t2t_vit_24": "82.3_T2T_ViT_24",
    "t2t_vit_t_14": "81.7_T2T_ViTt_14",
    "t2t_vit_t_19": "82.4_T2T_ViTt_19",
    "t2t_vit_t_24": "82.6_T2T_ViTt_24",
}

WEIGHTS: dict[str, Source] = {
    name: Source(
        hub=f"https://github.com/yitu-opensource/T2T-ViT/releases/download/main/{file}.pth.tar",
        layout="official",
        file=f"{file}.pth.tar",
        license="bsd-3-clause-clear",
    )
    for name, file in _FILES.items()
}
