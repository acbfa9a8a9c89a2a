"""T2T-ViT (arXiv 2101.11986): tokens-to-token, a vision transformer that structures the image before it reads it.

The idea: overlapping soft splits instead of one hard cut into patches: neighbouring tokens are unfolded into one, pass
a narrow performer or transformer layer, are laid out as a map, and split again. A deep-narrow ViT reads the result.

Axes: pixels = kernel height * kernel width * channels of what is unfolded; tokens = 1 + rows * columns of the last
split; dim = width of a token. No departure from the official code (yitu-opensource/T2T-ViT).
"""

import functools
import math
from collections.abc import Mapping
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
    LayerNorm,
    Linear,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    OutputProjection,
    PreNormBlock,
    Stack,
    TokenLayer,
    attend,
    drop_path_schedule,
    make_head,
    merge_heads,
    pool_tokens,
    resize_table,
    split_heads,
    split_or_none,
    unfold,
)
from eqx_vit.layers.config import Size, check, check_heads, no_type_check, pair
from eqx_vit.layers.init import truncated_normal
from eqx_vit.layers.patch import unfolded_size
from eqx_vit.layers.upcast import upcast
from eqx_vit.model import FixedSizeConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint, points_of_blocks


@no_type_check
@dataclass(frozen=True, kw_only=True)
class T2TViTConfig(FixedSizeConfig["T2TViT"]):
    """Everything that defines a T2T-ViT."""

    MAY_BE_ZERO = ("t2t_layers",)  # a padding

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    # (kernel, stride) or (kernel, stride, padding) of each split
    t2t_layers: tuple[tuple[int, ...], ...] = ((7, 4), (3, 2), (3, 2))
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches
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

    def check(self) -> None:
        for layer in self.t2t_layers:
            check(
                len(layer) in (2, 3) and min(layer[:2]) > 0,
                f"each of t2t_layers is (kernel, stride) or (kernel, stride, padding), given {layer}",
            )
        if self.dim_head is None:
            check_heads(self.dim, self.heads)
        check(
            self.tokens_type == "transformer" or self.num_random_features > 0,
            f"token_dim {self.token_dim} leaves no random features: use 2 or more, or give random_features",
        )
        check(
            min(pair(self.image_size)) >= self.smallest_side,
            f"image_size {self.image_size} is too small for t2t_layers {self.t2t_layers}: use {self.smallest_side} or "
            "more",
        )

    @property
    def splits(self) -> tuple[tuple[int, int, int], ...]:
        """(kernel, stride, padding) of each soft split."""
        return tuple((layer[0], layer[1], layer[2] if len(layer) == 3 else layer[1] // 2) for layer in self.t2t_layers)

    @property
    def split_widths(self) -> tuple[int, ...]:
        """The width of a token after each soft split."""
        widths = (self.channels, *[self.token_dim] * (len(self.splits) - 1))
        return tuple(kernel**2 * width for (kernel, _, _), width in zip(self.splits, widths, strict=True))

    @property
    def smallest_side(self) -> int:
        """The smallest image side that leaves a token after the last split."""
        side = 1
        for kernel, stride, padding in reversed(self.splits):
            side = max((side - 1) * stride + kernel - 2 * padding, 1)
        return side

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) after the last split."""
        return functools.reduce(lambda size, split: unfolded_size(size, *split), self.splits, pair(self.image_size))

    @property
    def num_random_features(self) -> int:
        return self.token_dim // 2 if self.random_features is None else self.random_features


class TokenTransformer(eqx.Module):
    """A token layer by attention with one head: the skip comes from the values, since the width changes."""

    norm1: Norm
    qkv: Linear
    projection: OutputProjection
    norm2: Norm
    mlp: MLP
    scale: float = eqx.field(static=True)

    def __init__(self, config: T2TViTConfig, pixels: int, norm: MakeNorm, *, key: PRNGKeyArray) -> None:
        qkv_key, projection_key, mlp_key = jax.random.split(key, 3)
        dim = config.token_dim
        self.norm1 = norm(pixels, config.norm_eps)
        self.qkv = Linear(pixels, 3 * dim, use_bias=False, key=qkv_key)
        self.projection = OutputProjection(dim, dim, key=projection_key)
        self.norm2 = norm(dim, config.norm_eps)
        self.mlp = MLP(dim, dim, key=mlp_key)
        self.scale = pixels**-0.5  # by the width before the projection, as the official code has it

    def __call__(
        self, tokens: Float[Array, "tokens pixels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """`key` is not used: the official layer drops nothing."""
        query, keys, value = split_heads(self.qkv(self.norm1(tokens)), 3, 1)
        attended = merge_heads(attend(query, keys, value, scale=self.scale))
        tokens = merge_heads(value) + self.projection(attended)
        return tokens + self.mlp(self.norm2(tokens))


class TokenPerformer(eqx.Module):
    """A token layer by linear attention over random features (Performer, arXiv 2009.14794), one head.

    exp(q.k) is the expectation over w of exp(w.q - |q|^2 / 2) * exp(w.k - |k|^2 / 2); `features` holds the w.
    """

    norm1: Norm
    qkv: Linear
    features: Buffer  # (features, dim)
    projection: OutputProjection
    norm2: Norm
    mlp: MLP
    mlp_dropout: Dropout

    def __init__(self, config: T2TViTConfig, pixels: int, norm: MakeNorm, *, key: PRNGKeyArray) -> None:
        qkv_key, features_key, projection_key, mlp_key = jax.random.split(key, 4)
        dim, features = config.token_dim, config.num_random_features
        self.norm1 = norm(pixels, config.norm_eps)
        self.qkv = Linear(pixels, 3 * dim, key=qkv_key)
        orthogonal = jax.nn.initializers.orthogonal(scale=math.sqrt(features))
        self.features = Buffer(orthogonal(features_key, (features, dim)))
        self.projection = OutputProjection(dim, dim, dropout=config.token_dropout, key=projection_key)
        self.norm2 = norm(dim, config.norm_eps)
        self.mlp = MLP(dim, dim, key=mlp_key)
        self.mlp_dropout = Dropout(config.token_dropout)

    def __call__(
        self, tokens: Float[Array, "tokens pixels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        projection_key, mlp_key = split_or_none(key)
        query, keys, value = jnp.split(self.qkv(self.norm1(tokens)), 3, axis=1)
        attended = linear_attention(self._features(query), self._features(keys), value)
        tokens = value + self.projection(attended, key=projection_key)
        return tokens + self.mlp_dropout(self.mlp(self.norm2(tokens)), key=mlp_key)

    def _features(self, x: Float[Array, "tokens dim"]) -> Float[Array, "tokens features"]:
        """No maximum is subtracted: the small constant in the attention's denominator counts against these numbers."""
        matrix = self.features.value
        wide = upcast(x)
        half_square = jnp.sum(jnp.square(wide), axis=1, keepdims=True) / 2
        return jnp.exp(wide @ matrix.astype(wide.dtype).T - half_square) / math.sqrt(matrix.shape[0])


def make_attention(config: T2TViTConfig, *, key: PRNGKeyArray) -> Attention:
    """Multi-head self-attention."""
    return Attention(
        config.dim,
        config.heads,
        head_dim=config.dim_head,
        qkv_bias=config.qkv_bias,
        scale=config.attention_scale,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        key=key,
    )


def make_mlp(config: T2TViTConfig, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a block."""
    return MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=key)


class T2TViT(StatelessImageModel[T2TViTConfig]):
    """T2T-ViT: one image to logits.

        step                   shape                         t2t_vit_14
        image                  height width channels         224 224 3
        soft split 0           rows[0] columns[0] pixels[0]  56 56 147
        token layer 0          rows[0] columns[0] token_dim  56 56 64
        soft split 1           rows[1] columns[1] pixels[1]  28 28 576
        token layer 1          rows[1] columns[1] token_dim  28 28 64
        soft split 2           rows[2] columns[2] pixels[2]  14 14 576
        projection             rows[2] columns[2] dim        14 14 384
        class token + patches  tokens dim                    197 384
        depth x block          tokens dim                    197 384
        norm                   tokens dim                    197 384
        pool                   dim                           384
        head                   num_classes                   1000

    The splits unfold with kernels of 7, 3, 3, strides of 4, 2, 2 and paddings of 2, 1, 1. The positions are a fixed
    sinusoid table. A block is attention and MLP, pre-norm, residual. The pool is the class token, or the mean of the
    patches.
    """

    token_layers: tuple[TokenPerformer | TokenTransformer, ...]
    projection: Linear
    class_token: Float[Array, "1 dim"]
    position_embedding: Buffer  # (tokens, dim)
    embedding_dropout: Dropout
    blocks: Stack[PreNormBlock[Attention | TokenLayer]]
    norm: Norm
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: T2TViTConfig,
        *,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `attention`, `mlp`: make these parts, as `attention(config, key=key)`, one for each block of
        the backbone; `norm`: makes each norm, of the token layers too, as `norm(dim, eps)`.
        """
        layers_key, projection_key, token_key, blocks_key, head_key = jax.random.split(key, 5)
        make = TokenPerformer if config.tokens_type == "performer" else TokenTransformer
        *layer_widths, last_width = config.split_widths
        layer_keys = jax.random.split(layers_key, len(layer_widths))
        self.config = config
        self.token_layers = tuple(
            make(config, width, norm, key=layer_key) for width, layer_key in zip(layer_widths, layer_keys, strict=True)
        )
        self.projection = Linear(last_width, config.dim, key=projection_key)
        self.class_token = truncated_normal()(token_key, (1, config.dim))
        self.position_embedding = Buffer(jnp.asarray(sinusoid(1 + math.prod(config.grid), config.dim), dtype=float))
        self.embedding_dropout = Dropout(config.emb_dropout)

        def make_block(*, key: PRNGKeyArray) -> PreNormBlock[Attention | TokenLayer]:
            attention_key, mlp_key = jax.random.split(key)
            return PreNormBlock(
                attention(config, key=attention_key),
                mlp(config, key=mlp_key),
                config.dim,
                norm=norm,
                norm_eps=config.norm_eps,
                drop_path=config.drop_path,
            )

        self.blocks = Stack.build(make_block, config.depth, key=blocks_key)
        self.norm = norm(config.dim, config.norm_eps)
        self.head = make_head(config.dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """Class token and the tokens after the last split, with their positions."""
        dropout_key, *layer_keys = split_or_none(key, 1 + len(self.token_layers))
        *first, last = self.config.splits
        x = image
        for split, layer, layer_key in zip(first, self.token_layers, layer_keys, strict=True):
            unfolded = unfold(x, *split)
            tokens = layer(unfolded.reshape(-1, unfolded.shape[-1]), key=layer_key)
            x = tokens.reshape(*unfolded.shape[:2], -1)
        patches = self.projection(unfold(x, *last)).reshape(-1, self.config.dim)
        tokens = jnp.concatenate([self.class_token, patches]) + self.position_embedding.value
        return self.embedding_dropout(tokens, key=dropout_key)

    def encode(self, x: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm."""
        return self.norm(self.blocks(x, xs=drop_path_schedule([self.config.depth]), key=key))

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits."""
        return self.head(pool_tokens(features, self.config.pool, prefix=1))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        config = self.config
        reduction = math.prod(stride for _, stride, _ in config.splits)
        return points_of_blocks("blocks", config.depth, config.dim, reduction, config.grid, prefix=1, norm=self.norm)

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head may read the class token alone."""
        return self.feature_points(height, width)[-1]._replace(module="blocks.norm1")

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block."""
        return [AttentionPoint("blocks.attention", self.config.grid, 1)]

    def resize_spec(self, image_size: Size) -> tuple[T2TViTConfig, Mapping[str, Array]]:
        """The config for another image size, and the table resampled as the official code does it on loading."""
        config = replace(self.config, image_size=image_size)
        table = resize_table(self.position_embedding.array, self.config.grid, config.grid, antialias=False)
        return config, {"position_embedding.array": table}


def linear_attention(
    query: Float[Array, "tokens features"], key: Float[Array, "tokens features"], value: Float[Array, "tokens dim"]
) -> Float[Array, "tokens dim"]:
    """`query @ (key.T @ value)`, normalised, in the dtype of the features and returned in that of the values."""
    context = key.T @ value.astype(key.dtype)
    total = query @ jnp.sum(key, axis=0)
    return (query @ context / (total[:, None] + 1e-8)).astype(value.dtype)


def sinusoid(positions: int, dim: int) -> Float[np.ndarray, "positions dim"]:
    """The table of Vaswani et al. (arXiv 1706.03762), sine and cosine interleaved; in float64, as the official code."""
    angle = np.arange(positions)[:, None] / np.power(10_000, 2 * (np.arange(dim) // 2) / dim)
    return np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle))


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


def _official(file: str) -> Source:
    return Source(
        hub=f"https://github.com/yitu-opensource/T2T-ViT/releases/download/main/{file}.pth.tar",
        layout="official",
        file=f"{file}.pth.tar",
        license="bsd-3-clause-clear",
    )


# The files are named by their accuracy.
WEIGHTS: dict[str, Source] = {
    "t2t_vit_7": _official("71.7_T2T_ViT_7"),
    "t2t_vit_10": _official("75.2_T2T_ViT_10"),
    "t2t_vit_12": _official("76.5_T2T_ViT_12"),
    "t2t_vit_14": _official("81.5_T2T_ViT_14"),
    "t2t_vit_14_384": _official("83.3_T2T_ViT_14"),
    "t2t_vit_19": _official("81.9_T2T_ViT_19"),
    "t2t_vit_24": _official("82.3_T2T_ViT_24"),
    "t2t_vit_t_14": _official("81.7_T2T_ViTt_14"),
    "t2t_vit_t_19": _official("82.4_T2T_ViTt_19"),
    "t2t_vit_t_24": _official("82.6_T2T_ViTt_24"),
}
