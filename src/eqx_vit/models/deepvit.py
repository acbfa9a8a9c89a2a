"""DeepViT (arXiv 2103.11886): a vision transformer that goes deeper, by re-attention.

The idea: in deep layers the attention maps of successive blocks grow alike. Re-attention makes new ones out of the maps
of all heads: a learned map from heads to heads after the softmax, then BatchNorm, and nothing is renormalised.

    image                     height width channels
    stem (S and L)            height/2 width/2 64        two convolutions with BatchNorm and ReLU
    patch embedding           rows columns dim           rows = height / patch height, columns = width / patch width
    class token + patches     tokens dim                 positions added to all of them
    plain blocks              tokens dim                 attention and MLP, pre-norm, residual
    re-attention blocks       tokens dim                 the last `re_attention_depth` of `depth`
    norm                      tokens dim
    pool                      dim                        the class token, or the mean of the patches
    head                      num_classes

Axes: tokens = 1 + rows * columns; dim = width of a token; heads, queries, keys = the axes of the attention maps.
No departure from the official code (zhoudaquan/dvit_repo), but that re-attention sits in the last blocks, as in all of
its models, where the code takes any list of blocks.
"""

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
    BatchNorm,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Stack,
    attention_scores,
    attention_values,
    attention_weights,
    image_door,
    merge_heads,
    ramp,
    resize_table,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair
from eqx_vit.layers.init import fan_in_uniform, truncated_normal
from eqx_vit.models.source import INCEPTION_MEAN, INCEPTION_STD, Source

_STEM_WIDTH = 64


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class DeepViTConfig:
    """Everything that defines a DeepViT. `image_size`, `patch_size` are in pixels, one number or (height, width)."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int
    depth: int  # of all blocks together
    heads: int
    mlp_dim: int
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches, the class token left out
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # attention weights (before they are mixed), attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over depth
    re_attention_depth: int | None = None  # the last blocks, those that mix heads; None: all of them
    re_attention_scale: bool = False  # the mixed maps times head_dim ** -0.5
    branch_scale: float = 1.0  # each branch reads its input times this, and its output is divided by it
    convolutional_stem: bool = False  # two convolutions before the patches are cut
    qkv_bias: bool = True
    norm_eps: float = 1e-6  # of the LayerNorms

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "channels", "dim_head")
        check_rates(self, "dropout", "emb_dropout", "drop_path")
        check(self.num_classes >= 0, f"DeepViTConfig.num_classes must not be negative, given {self.num_classes}")
        check(self.branch_scale > 0, f"DeepViTConfig.branch_scale must be positive, given {self.branch_scale}")
        check_multiple("image_size", self.image_size, self.patch_size)
        check(
            self.dim_head is not None or self.dim % self.heads == 0,
            f"dim {self.dim} is not a multiple of heads {self.heads}: change one, or give dim_head",
        )
        check(
            0 <= self.mixing_depth <= self.depth,
            f"re_attention_depth {self.re_attention_depth} must be between 0 and depth {self.depth}",
        )
        if self.convolutional_stem:
            check_multiple("patch_size", self.patch_size, 2)

    @property
    def grid(self):
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def mixing_depth(self):
        return self.depth if self.re_attention_depth is None else self.re_attention_depth

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this DeepViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or the "
            f"model with eqx_vit.resize(model, ({height}, {width}))",
        )


class Stem(eqx.nn.StatefulLayer):
    """Two convolutions, each with BatchNorm and ReLU; the first halves the image."""

    conv1: Conv
    norm1: BatchNorm
    conv2: Conv
    norm2: BatchNorm

    def __init__(self, channels: int, *, key: PRNGKeyArray) -> None:
        key1, key2 = jax.random.split(key)
        self.conv1 = Conv(channels, _STEM_WIDTH, 7, stride=2, padding=3, use_bias=False, key=key1)
        self.norm1 = BatchNorm(_STEM_WIDTH)
        self.conv2 = Conv(_STEM_WIDTH, _STEM_WIDTH, 3, padding=1, use_bias=False, key=key2)
        self.norm2 = BatchNorm(_STEM_WIDTH)

    def __call__(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "half_height half_width stem"], eqx.nn.State]:
        x, state = self.norm1(self.conv1(image), state)
        x, state = self.norm2(self.conv2(jax.nn.relu(x)), state)
        return jax.nn.relu(x), state


class ReAttention(eqx.nn.StatefulLayer):
    """`Norm(Theta^T softmax(Q K^T / sqrt(d))) V`: Theta mixes the heads, Norm is a BatchNorm over them."""

    qkv: Linear
    mix: Linear  # from heads to heads
    mix_norm: BatchNorm
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)
    mix_scale: float = eqx.field(static=True)

    def __init__(self, config: DeepViTConfig, *, key: PRNGKeyArray) -> None:
        qkv_key, mix_key, projection_key = jax.random.split(key, 3)
        dim, heads = config.dim, config.heads
        size = config.dim_head or dim // heads
        self.qkv = Linear(dim, 3 * heads * size, use_bias=config.qkv_bias, key=qkv_key)
        # The official code mixes by a 1x1 convolution: it starts as convolutions do, far from the identity.
        start = fan_in_uniform(heads)
        self.mix = Linear(heads, heads, weight_init=start, bias_init=start, key=mix_key)
        self.mix_norm = BatchNorm(heads)
        self.projection = Linear(heads * size, dim, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.projection_dropout = Dropout(config.dropout)
        self.heads = heads
        self.mix_scale = size**-0.5 if config.re_attention_scale else 1.0

    def __call__(
        self, tokens: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        attention_key, projection_key = split_or_none(key)
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        weights = attention_weights(attention_scores(query, keys))
        weights = self.attention_dropout(weights, key=attention_key).astype(value.dtype)
        # Heads last, where Linear and BatchNorm work: measured faster than mixing along the first axis.
        mixed, state = self.mix_norm(self.mix(jnp.moveaxis(weights, 0, -1)), state)
        values = attention_values(jnp.moveaxis(mixed * self.mix_scale, -1, 0), value)
        return self.projection_dropout(self.projection(merge_heads(values)), key=projection_key), state


class Block(eqx.nn.StatefulLayer):
    """(Re-)attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: Attention | ReAttention
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath
    branch_scale: float = eqx.field(static=True)

    def __init__(self, config: DeepViTConfig, *, mix: bool, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.dim, config.norm_eps)
        self.attention = ReAttention(config, key=attention_key) if mix else _attention(config, key=attention_key)
        self.norm2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=mlp_key)
        self.drop_path = DropPath(config.drop_path)
        self.branch_scale = config.branch_scale

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        state: eqx.nn.State,
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        # The norm undoes the scale but for its eps; the division then doubles the branches of DeepViT-S and -L.
        normed = self.norm1(tokens * self.branch_scale)
        if isinstance(self.attention, ReAttention):
            branch, state = self.attention(normed, state, key=attention_key)
        else:
            branch = self.attention(normed, key=attention_key)
        tokens = tokens + self.drop_path(branch / self.branch_scale, drop_scale, key=path1_key)
        branch = self.mlp(self.norm2(tokens * self.branch_scale), key=mlp_key)
        return tokens + self.drop_path(branch / self.branch_scale, drop_scale, key=path2_key), state


class DeepViT(eqx.nn.StatefulLayer):
    """DeepViT: one image and the BatchNorm state to logits and state. See the module's text for the shapes.

    Made by `eqx_vit.create`, called through `eqx_vit.forward` in training, since BatchNorm needs the batch.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    stem: Stem | None
    patch_embedding: PatchEmbedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "tokens dim"]
    embedding_dropout: Dropout
    blocks: Stack | None
    re_attention_blocks: Stack | None
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: DeepViTConfig = eqx.field(static=True)

    def __init__(self, config: DeepViTConfig, *, key: PRNGKeyArray) -> None:
        stem_key, patch_key, class_key, position_key, blocks_key, mixing_key, head_key = jax.random.split(key, 7)
        dim, (rows, columns), patch_size = config.dim, config.grid, pair(config.patch_size)
        if config.convolutional_stem:
            self.stem = Stem(config.channels, key=stem_key)
            halved = (patch_size[0] // 2, patch_size[1] // 2)
            self.patch_embedding = PatchEmbedding(halved, _STEM_WIDTH, dim, key=patch_key)
        else:
            self.stem = None
            self.patch_embedding = PatchEmbedding(patch_size, config.channels, dim, key=patch_key)
        self.class_token = truncated_normal()(class_key, (1, dim))
        self.position_embedding = truncated_normal()(position_key, (1 + rows * columns, dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.blocks = _blocks(config, config.depth - config.mixing_depth, mix=False, key=blocks_key)
        self.re_attention_blocks = _blocks(config, config.mixing_depth, mix=True, key=mixing_key)
        self.norm = LayerNorm(dim, config.norm_eps)
        self.head = Linear(dim, config.num_classes, key=head_key) if config.num_classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        """All tokens, the class token first, after the final norm."""
        embedding_key, blocks_key, mixing_key = split_or_none(key, 3)
        x = image
        if self.stem is not None:
            x, state = self.stem(x, state)
        patches = self.patch_embedding(x).reshape(-1, self.config.dim)
        tokens = jnp.concatenate([self.class_token, patches]) + self.position_embedding
        tokens = self.embedding_dropout(tokens, key=embedding_key)
        plain, mixing = jnp.split(ramp(self.config.depth), (self.config.depth - self.config.mixing_depth,))
        if self.blocks is not None:
            tokens, state = self.blocks.with_state(tokens, state, scanned=(plain,), key=blocks_key)
        if self.re_attention_blocks is not None:
            tokens, state = self.re_attention_blocks.with_state(tokens, state, scanned=(mixing,), key=mixing_key)
        return self.norm(tokens), state

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " classes"], eqx.nn.State]:
        """Logits and state."""
        tokens, state = self.features(image, state, key=key)
        pooled = tokens[0] if self.config.pool == "cls" else jnp.mean(tokens[1:], axis=0)
        return self.head(pooled), state

    def resized(self, image_size: int | tuple[int, int]) -> tuple[DeepViTConfig, dict[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as timm does it."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


def _attention(config: DeepViTConfig, *, key: PRNGKeyArray) -> Attention:
    return Attention(
        config.dim,
        config.heads,
        head_dim=config.dim_head,
        qkv_bias=config.qkv_bias,
        dropout=config.dropout,
        key=key,
    )


def _blocks(config: DeepViTConfig, depth: int, *, mix: bool, key: PRNGKeyArray) -> Stack | None:
    return Stack.build(lambda key: Block(config, mix=mix, key=key), depth, key=key) if depth else None


def _preset(dim: int, depth: int, image_size: int = 224) -> DeepViTConfig:
    return DeepViTConfig(
        image_size=image_size, patch_size=16, num_classes=1000, dim=dim, depth=depth, heads=12, mlp_dim=3 * dim
    )


def _optimised(config: DeepViTConfig, re_attention_depth: int, *, re_attention_scale: bool = False) -> DeepViTConfig:
    return replace(
        config,
        re_attention_depth=re_attention_depth,
        re_attention_scale=re_attention_scale,
        branch_scale=0.5,
        convolutional_stem=True,
    )


PRESETS: dict[str, DeepViTConfig] = {
    "deepvit_patch16_224_re_attn_16b": _preset(384, 16),  # 24,426,664
    "deepvit_patch16_224_re_attn_24b": _preset(384, 24),  # 36,261,448
    "deepvit_patch16_224_re_attn_32b": _preset(384, 32),  # 48,096,232
    "deepvit_S": _optimised(_preset(396, 16), 5, re_attention_scale=True),  # 27,312,632
    "deepvit_L": _optimised(_preset(420, 32), 12),  # 58,883,708
    "deepvit_L_384": _optimised(_preset(420, 32, 384), 12),  # 59,043,308
}


def _source(file: str) -> Source:
    url = f"https://drive.google.com/file/d/{file}"
    return Source(hub=url, layout="official", mean=INCEPTION_MEAN, std=INCEPTION_STD, license="unknown")


WEIGHTS: dict[str, Source] = {
    "deepvit_patch16_224_re_attn_24b": _source("1lPmKdNMPJq-mq-4FivqIY4JNAPoQHYxV"),
    "deepvit_patch16_224_re_attn_32b": _source("1kUBrAbAQfMT5FQJprITRxDtOE6ECZM0M"),
    "deepvit_S": _source("1evhBjla4Nth7LawW2PAXnGEcpv3YBWEC"),
    "deepvit_L": _source("1MTRm0NK_sPGRSyuD_hHJ1Zgw2diEaKLR"),
}
