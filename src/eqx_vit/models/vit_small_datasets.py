"""Vision transformer for small datasets (arXiv 2112.13492): ViT with shifted patch tokenisation and locality attention.

The idea: a ViT lacks locality, so it needs much data. Shifted patch tokenisation (SPT) lets each token see half a patch
beyond its own; locality self-attention (LSA) sharpens the attention by a learned scale per head and forbids a token to
attend to itself.

    image                     height width channels
    SPT: image, 4 shifts      height width 5*channels    diagonally by half a patch: the content moves down and right,
                                                         down and left, up and right, up and left; zeros come in
    patches, norm, linear     tokens dim                 rows * columns patches, row-major
    class token + patches     tokens dim                 and a learned position each
    depth x block             tokens dim                 LSA and MLP, pre-norm, residual
    norm                      tokens dim
    pool                      dim                        the class token, or the mean of the patches
    head                      num_classes

Axes: tokens = 1 + rows * columns; dim = width of a token. `shifted_patches` and `locality_attention` switch the two
parts off. No departure from the official code (aanna0701/SPT_LSA_ViT); it has no mean pooling, which here comes before
the norm, and no rule for other image sizes: `resized` follows ViT's.
"""

import math
import typing
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Stack,
    attend,
    image_door,
    merge_heads,
    patchify,
    resize_table,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair
from eqx_vit.layers.init import constant, normal, xavier_normal
from eqx_vit.models.source import Source

_EPS = 1e-5  # PyTorch's default


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class SmallDatasetViTConfig:
    """Everything that defines a SmallDatasetViT. Sizes in pixels are one number or (height, width)."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches, the class token left out
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # after the attention, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    drop_path: float = 0.0  # stochastic depth, the same for every residual
    shifted_patches: bool = True  # SPT; False: the patches of the image alone, without a norm
    locality_attention: bool = True  # LSA; False: ordinary attention

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "channels", "dim_head")
        check_rates(self, "dropout", "emb_dropout", "drop_path")
        check(
            self.num_classes >= 0, f"SmallDatasetViTConfig.num_classes must not be negative, given {self.num_classes}"
        )
        check_multiple("image_size", self.image_size, self.patch_size)
        check(
            self.dim_head is not None or self.dim % self.heads == 0,
            f"dim {self.dim} is not a multiple of heads {self.heads}: change one, or give dim_head",
        )

    @property
    def grid(self):
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this SmallDatasetViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, "
            f"or the model with eqx_vit.resize(model, ({height}, {width}))",
        )


class SPT(eqx.Module):
    """Shifted patch tokenisation: one image, or a map of any channels, to tokens.

    `patch_size` is one number or (height, width); odd sizes shift by half a patch rounded down.

    **Raises:** `ValueError` for an image that does not split into patches, or has other than `channels` channels.
    """

    norm: LayerNorm
    linear: Linear
    patch_size: tuple[int, int] = eqx.field(static=True)
    channels: int = eqx.field(static=True)

    def __init__(self, dim: int, patch_size: int | tuple[int, int], *, channels: int = 3, key: PRNGKeyArray) -> None:
        self.patch_size = pair(patch_size)
        self.channels = channels
        pixels = 5 * channels * math.prod(self.patch_size)
        self.norm = LayerNorm(pixels, _EPS)
        self.linear = _linear(pixels, dim, key=key)

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "tokens dim"]:
        height, width, channels = image.shape
        check(
            channels == self.channels,
            f"this SPT takes images of (height, width, {self.channels}), given {image.shape}: build it with "
            f"channels={channels}, or put the channels last with jnp.moveaxis",
        )
        check_multiple("the image's size", (height, width), self.patch_size)
        patches = patchify(shifted(image, self.patch_size), self.patch_size)
        return self.linear(self.norm(patches.reshape(-1, patches.shape[-1])))


class ShiftedMerging(eqx.Module):
    """SPT between two stages of a pyramid: patches of tokens become tokens; a class token has its own linear map."""

    merging: SPT
    class_linear: Linear | None

    def __init__(
        self, dim: int, patch_size: int | tuple[int, int], *, channels: int, class_token: bool, key: PRNGKeyArray
    ) -> None:
        merging_key, class_key = jax.random.split(key)
        self.merging = SPT(dim, patch_size, channels=channels, key=merging_key)
        self.class_linear = _linear(channels, dim, key=class_key) if class_token else None

    def __call__(
        self, tokens: Float[Array, "tokens channels"], grid: tuple[int, int]
    ) -> Float[Array, "new_tokens dim"]:
        """`grid` is (rows, columns) of the tokens after the class token."""
        first = 0 if self.class_linear is None else 1
        merged = self.merging(tokens[first:].reshape(*grid, -1))
        return merged if self.class_linear is None else jnp.concatenate([self.class_linear(tokens[:1]), merged])


class LSA(eqx.Module):
    """Locality self-attention: a learned scale per head, and no token attends to itself.

    `local=False` leaves ordinary attention. One head as wide as the tokens needs no projection, officially.
    """

    qkv: Linear  # rows: q of all heads, k of all heads, v of all heads
    scale: Float[Array, " heads"] | None
    projection: Linear | eqx.nn.Identity
    dropout: Dropout | eqx.nn.Identity
    heads: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        local: bool = True,
        dropout: float = 0.0,
        key: PRNGKeyArray,
    ) -> None:
        """`head_dim` defaults to `dim // heads`; `dropout` follows the projection."""
        qkv_key, projection_key = jax.random.split(key)
        size = dim // heads if head_dim is None else head_dim
        projects = heads > 1 or size != dim
        self.qkv = _linear(dim, 3 * heads * size, use_bias=False, key=qkv_key)
        self.scale = jnp.full(heads, size**-0.5) if local else None
        self.projection = _linear(heads * size, dim, key=projection_key) if projects else eqx.nn.Identity()
        self.dropout = Dropout(dropout) if projects else eqx.nn.Identity()
        self.heads = heads

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        others = None if self.scale is None else ~jnp.eye(len(tokens), dtype=bool)[None]
        mixed = attend(query, keys, value, scale=self.scale, mask=others)
        return self.dropout(self.projection(merge_heads(mixed)), key=key)


class Block(eqx.Module):
    """Attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: LSA
    norm2: LayerNorm
    mlp: MLP
    drop_path: DropPath

    def __init__(self, config: SmallDatasetViTConfig, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.dim, _EPS)
        self.attention = LSA(
            config.dim,
            config.heads,
            head_dim=config.dim_head,
            local=config.locality_attention,
            dropout=config.dropout,
            key=attention_key,
        )
        self.norm2 = LayerNorm(config.dim, _EPS)
        self.mlp = MLP(
            config.dim,
            config.mlp_dim,
            dropout=config.dropout,
            weight_init=xavier_normal(config.dim, config.mlp_dim),
            key=mlp_key,
        )
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens), key=attention_key), key=path1_key)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), key=mlp_key), key=path2_key)


class SmallDatasetViT(eqx.Module):
    """ViT for small datasets: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: SPT | PatchEmbedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "positions dim"]
    embedding_dropout: Dropout
    blocks: Stack
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: SmallDatasetViTConfig = eqx.field(static=True)

    def __init__(self, config: SmallDatasetViTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, class_key, position_key, blocks_key, head_key = jax.random.split(key, 5)
        dim, patch_size, channels = config.dim, pair(config.patch_size), config.channels
        if config.shifted_patches:
            self.patch_embedding = SPT(dim, patch_size, channels=channels, key=patch_key)
        else:
            self.patch_embedding = PatchEmbedding(
                patch_size,
                channels,
                dim,
                weight_init=xavier_normal(channels * math.prod(patch_size), dim),
                bias_init=constant(0.0),
                key=patch_key,
            )
        self.class_token = normal(1.0)(class_key, (1, dim))
        self.position_embedding = normal(1.0)(position_key, (1 + math.prod(config.grid), dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.blocks = Stack.build(lambda key: Block(config, key=key), config.depth, key=blocks_key)
        self.norm = LayerNorm(dim, _EPS)
        self.head = _linear(dim, config.num_classes, key=head_key) if config.num_classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm (which with pool="mean" follows the pool)."""
        embedding_key, blocks_key = split_or_none(key)
        patches = self.patch_embedding(image).reshape(-1, self.config.dim)
        tokens = jnp.concatenate([self.class_token, patches]) + self.position_embedding
        tokens = self.blocks(self.embedding_dropout(tokens, key=embedding_key), key=blocks_key)
        return self.norm(tokens) if self.config.pool == "cls" else tokens

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        tokens = self.features(image, key=key)
        return self.head(tokens[0] if self.config.pool == "cls" else self.norm(jnp.mean(tokens[1:], axis=0)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[SmallDatasetViTConfig, dict[str, Array]]:
        """The config for another image size, and the arrays that change: the table, resampled as for ViT."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


def shifted(
    image: Float[Array, "height width channels"], patch_size: tuple[int, int]
) -> Float[Array, "height width five_channels"]:
    """The image and its four diagonal shifts by half a patch, side by side in the channels."""
    (height, width, _), (down, across) = image.shape, (size // 2 for size in patch_size)
    padded = jnp.pad(image, ((down, down), (across, across), (0, 0)))
    corners = [(top, left) for top in (0, 2 * down) for left in (0, 2 * across)]
    shifts = [padded[top : top + height, left : left + width] for top, left in corners]
    return jnp.concatenate([image, *shifts], axis=-1)


def _linear(in_features: int, out_features: int, *, use_bias: bool = True, key: PRNGKeyArray) -> Linear:
    weight_init = xavier_normal(in_features, out_features)
    return Linear(in_features, out_features, use_bias=use_bias, weight_init=weight_init, key=key)


def _preset(image_size: int, patch_size: int, classes: int, *, spt: bool, lsa: bool) -> SmallDatasetViTConfig:
    return SmallDatasetViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=classes,
        dim=192,
        depth=9,
        heads=12,
        mlp_dim=384,
        drop_path=0.1,
        shifted_patches=spt,
        locality_attention=lsa,
    )


PRESETS: dict[str, SmallDatasetViTConfig] = {
    "sl_vit_cifar10_plain": _preset(32, 4, 10, spt=False, lsa=False),  # 2,692,426
    "sl_vit_cifar10_lsa": _preset(32, 4, 10, spt=False, lsa=True),  # 2,692,534
    "sl_vit_cifar10_spt": _preset(32, 4, 10, spt=True, lsa=False),  # 2,729,770
    "sl_vit_cifar10": _preset(32, 4, 10, spt=True, lsa=True),  # 2,729,878
    "sl_vit_cifar100_plain": _preset(32, 4, 100, spt=False, lsa=False),  # 2,709,796
    "sl_vit_cifar100_lsa": _preset(32, 4, 100, spt=False, lsa=True),  # 2,709,904
    "sl_vit_cifar100_spt": _preset(32, 4, 100, spt=True, lsa=False),  # 2,747,140
    "sl_vit_cifar100": _preset(32, 4, 100, spt=True, lsa=True),  # 2,747,248
    "sl_vit_svhn_plain": _preset(32, 4, 10, spt=False, lsa=False),  # 2,692,426
    "sl_vit_svhn_lsa": _preset(32, 4, 10, spt=False, lsa=True),  # 2,692,534
    "sl_vit_svhn_spt": _preset(32, 4, 10, spt=True, lsa=False),  # 2,729,770
    "sl_vit_svhn": _preset(32, 4, 10, spt=True, lsa=True),  # 2,729,878
    "sl_vit_tiny_imagenet_plain": _preset(64, 8, 200, spt=False, lsa=False),  # 2,756,744
    "sl_vit_tiny_imagenet_lsa": _preset(64, 8, 200, spt=False, lsa=True),  # 2,756,852
    "sl_vit_tiny_imagenet_spt": _preset(64, 8, 200, spt=True, lsa=False),  # 2,906,120
    "sl_vit_tiny_imagenet": _preset(64, 8, 200, spt=True, lsa=True),  # 2,906,228
}

WEIGHTS: dict[str, Source] = {}  # none were released
