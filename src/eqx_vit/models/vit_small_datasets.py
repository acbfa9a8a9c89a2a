"""Vision transformer for small datasets (arXiv 2112.13492): ViT with shifted patch tokenisation and locality attention.

The idea: a ViT lacks locality, so it needs much data. Shifted patch tokenisation (SPT) lets each token see half a patch
beyond its own; locality self-attention (LSA) sharpens the attention by a learned scale per head and forbids a token to
attend to itself.

Axes: tokens = 1 + rows * columns; dim = width of a token. `shifted_patches` and `locality_attention` switch the two
parts off. No departure from the official code (aanna0701/SPT_LSA_ViT); it has no mean pooling, which here comes before
the norm, and no rule for other image sizes: `resize_spec` follows ViT's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    OutputProjection,
    PatchEmbedding,
    PreNormBlock,
    Stack,
    TokenLayer,
    attend,
    flatten_map,
    make_head,
    merge_heads,
    patchify,
    pool_tokens,
    resize_table,
    split_heads,
)
from eqx_vit.layers.config import Size, check, check_heads, check_multiple, no_type_check, pair
from eqx_vit.layers.init import constant, normal, xavier_normal
from eqx_vit.model import PatchGridConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint, points_of_blocks

NORM_EPS = 1e-5  # PyTorch's default


@no_type_check
@dataclass(frozen=True, kw_only=True)
class SmallDatasetViTConfig(PatchGridConfig["SmallDatasetViT"]):
    """Everything that defines a SmallDatasetViT."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches, the class token left out
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # after the attention, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    drop_path: float = 0.0  # stochastic depth, the same for every residual
    shifted_patches: bool = True  # SPT; False: the patches of the image alone, without a norm
    locality_attention: bool = True  # LSA; False: ordinary attention

    def check(self) -> None:
        if self.dim_head is None:
            check_heads(self.dim, self.heads)


class SPT(eqx.Module):
    """Shifted patch tokenisation: one image, or a map of any channels, to tokens.

    Odd patch sizes shift by half a patch rounded down.

    **Raises:** `ValueError` for an image that does not split into patches, or has other than `channels` channels.
    """

    norm: LayerNorm
    linear: Linear
    patch_size: tuple[int, int] = eqx.field(static=True)
    channels: int = eqx.field(static=True)

    def __init__(self, dim: int, patch_size: Size, *, channels: int = 3, key: PRNGKeyArray) -> None:
        """**Arguments:** `dim`: width of a token; `patch_size`: in pixels, one number or (height, width); `channels`:
        of the image.
        """
        self.patch_size = pair(patch_size)
        self.channels = channels
        pixels = 5 * channels * math.prod(self.patch_size)
        self.norm = LayerNorm(pixels, NORM_EPS)
        self.linear = Linear(pixels, dim, weight_init=xavier_normal(pixels, dim), key=key)

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "tokens dim"]:
        height, width, channels = image.shape
        check(
            channels == self.channels,
            f"this SPT takes images of (height, width, {self.channels}), given {image.shape}: build it with "
            f"channels={channels}, or put the channels last with jnp.moveaxis",
        )
        check_multiple("the image's size", (height, width), self.patch_size)
        patches = patchify(concatenate_shifts(image, self.patch_size), self.patch_size)
        return self.linear(self.norm(patches.reshape(-1, patches.shape[-1])))


def concatenate_shifts(
    image: Float[Array, "height width channels"], patch_size: tuple[int, int]
) -> Float[Array, "height width five_channels"]:
    """The image and its four diagonal shifts by half a patch, side by side in the channels.

    The content moves down and right, down and left, up and right, up and left; zeros come in.
    """
    (height, width, _), (down, across) = image.shape, (size // 2 for size in patch_size)
    padded = jnp.pad(image, ((down, down), (across, across), (0, 0)))
    corners = [(top, left) for top in (0, 2 * down) for left in (0, 2 * across)]
    shifts = [padded[top : top + height, left : left + width] for top, left in corners]
    return jnp.concatenate([image, *shifts], axis=-1)


class ShiftedMerging(eqx.Module):
    """SPT between two stages of a pyramid: patches of tokens become tokens; a class token has its own linear map."""

    merging: SPT
    class_linear: Linear | None

    def __init__(self, dim: int, patch_size: Size, *, channels: int, class_token: bool, key: PRNGKeyArray) -> None:
        """**Arguments:** `channels`: width of a token before, `dim`: after; `patch_size`: in tokens; `class_token`:
        whether one comes first.
        """
        merging_key, token_key = jax.random.split(key)
        self.merging = SPT(dim, patch_size, channels=channels, key=merging_key)
        init = xavier_normal(channels, dim)
        self.class_linear = Linear(channels, dim, weight_init=init, key=token_key) if class_token else None

    def __call__(
        self, tokens: Float[Array, "tokens channels"], grid: tuple[int, int]
    ) -> Float[Array, "new_tokens dim"]:
        """`grid` is (rows, columns) of the tokens after the class token."""
        if self.class_linear is None:
            return self.merging(tokens.reshape(*grid, -1))
        return jnp.concatenate([self.class_linear(tokens[:1]), self.merging(tokens[1:].reshape(*grid, -1))])


class LSA(eqx.Module):
    """Locality self-attention: a learned scale per head, and no token attends to itself."""

    qkv: Linear  # rows: q of all heads, k of all heads, v of all heads
    scale: Float[Array, " heads"] | None
    projection: OutputProjection | eqx.nn.Identity
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
        """**Arguments:**

        - `dim`: width of a token; `heads`, and `head_dim`, which defaults to `dim // heads`.
        - `local`: False leaves ordinary attention.
        - `dropout`: the rate after the projection. One head as wide as the tokens has neither, officially.
        """
        qkv_key, projection_key = jax.random.split(key)
        size = dim // heads if head_dim is None else head_dim
        inner = heads * size
        self.qkv = Linear(dim, 3 * inner, use_bias=False, weight_init=xavier_normal(dim, 3 * inner), key=qkv_key)
        self.scale = jnp.full(heads, size**-0.5) if local else None
        self.projection = (
            eqx.nn.Identity()
            if heads == 1 and size == dim
            else OutputProjection(
                inner, dim, dropout=dropout, weight_init=xavier_normal(inner, dim), key=projection_key
            )
        )
        self.heads = heads

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        others = None if self.scale is None else ~jnp.eye(len(tokens), dtype=bool)[None]
        attended = attend(query, keys, value, scale=self.scale, mask=others)
        return self.projection(merge_heads(attended), key=key)


def make_patch_embedding(config: SmallDatasetViTConfig, *, key: PRNGKeyArray) -> SPT | PatchEmbedding:
    """Shifted patch tokenisation, or the linear map of each patch."""
    dim, patch_size, channels = config.dim, pair(config.patch_size), config.channels
    if config.shifted_patches:
        return SPT(dim, patch_size, channels=channels, key=key)
    init = xavier_normal(channels * math.prod(patch_size), dim)
    return PatchEmbedding(patch_size, channels, dim, weight_init=init, bias_init=constant(0.0), key=key)


def make_attention(config: SmallDatasetViTConfig, *, key: PRNGKeyArray) -> LSA:
    """Locality self-attention, or ordinary."""
    return LSA(
        config.dim,
        config.heads,
        head_dim=config.dim_head,
        local=config.locality_attention,
        dropout=config.dropout,
        key=key,
    )


def make_mlp(config: SmallDatasetViTConfig, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a block."""
    init = xavier_normal(config.dim, config.mlp_dim)
    return MLP(config.dim, config.mlp_dim, dropout=config.dropout, weight_init=init, key=key)


class SmallDatasetViT(StatelessImageModel[SmallDatasetViTConfig]):
    """ViT for small datasets: one image to logits.

        step                   shape                    sl_vit_cifar10
        image                  height width channels    32 32 3
        SPT: image, 4 shifts   height width 5*channels  32 32 15
        SPT: norm, linear      patches dim              64 192
        class token + patches  tokens dim               65 192
        depth x block          tokens dim               65 192
        norm                   tokens dim               65 192
        pool                   dim                      192
        head                   num_classes              10

    patches = height / patch height * width / patch width, row-major. Every token has a learned position. A block is LSA
    and MLP, pre-norm, residual. The pool is the class token, or the mean of the patches, which the norm then follows.
    """

    patch_embedding: SPT | PatchEmbedding | Embedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "positions dim"]
    embedding_dropout: Dropout
    blocks: Stack[PreNormBlock[LSA | TokenLayer]]
    norm: Norm
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: SmallDatasetViTConfig,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`, `attention`, `mlp`: make these parts, as `attention(config, key=key)`, an
        attention and an MLP for each block; `norm`: makes each norm, as `norm(dim, eps)`.
        """
        patch_key, token_key, position_key, blocks_key, head_key = jax.random.split(key, 5)
        dim, classes = config.dim, config.num_classes
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.class_token = normal(1.0)(token_key, (1, dim))
        self.position_embedding = normal(1.0)(position_key, (1 + math.prod(config.grid), dim))
        self.embedding_dropout = Dropout(config.emb_dropout)

        def make_block(*, key: PRNGKeyArray) -> PreNormBlock[LSA | TokenLayer]:
            attention_key, mlp_key = jax.random.split(key)
            layers = (attention(config, key=attention_key), mlp(config, key=mlp_key))
            return PreNormBlock(*layers, dim, norm=norm, norm_eps=NORM_EPS, drop_path=config.drop_path)

        self.blocks = Stack.build(make_block, config.depth, key=blocks_key)
        self.norm = norm(dim, NORM_EPS)
        self.head = make_head(dim, classes, weight_init=xavier_normal(dim, classes), key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """The class token and the patches, with their positions."""
        patches = flatten_map(self.patch_embedding(image), self.config.grid, self.config.dim)
        tokens = jnp.concatenate([self.class_token, patches]) + self.position_embedding
        return self.embedding_dropout(tokens, key=key)

    def encode(self, x: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm (which with pool="mean" follows the pool)."""
        tokens = self.blocks(x, key=key)
        return self.norm(tokens) if self.config.pool == "cls" else tokens

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits."""
        pooled = pool_tokens(features, self.config.pool, prefix=1)
        return self.head(pooled if self.config.pool == "cls" else self.norm(pooled))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        config = self.config
        return points_of_blocks(
            "blocks",
            config.depth,
            config.dim,
            config.patch_size,
            config.grid,
            prefix=1,
            norm=self.norm if config.pool == "cls" else None,
        )

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head may read the class token alone."""
        return self.feature_points(height, width)[-1]._replace(module="blocks.norm1")

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block."""
        return [AttentionPoint("blocks.attention", self.config.grid, 1, self.config.pool == "cls")]

    def resize_spec(self, image_size: Size) -> tuple[SmallDatasetViTConfig, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change: the table, resampled as for ViT."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


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
