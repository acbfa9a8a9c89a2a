"""PatchMerger (arXiv 2202.12015): learning to merge tokens in vision transformers.

The idea: half way through a plain ViT, a few learned queries replace all tokens by as many weighted means of them; the
blocks that follow cost next to nothing, and the accuracy stays.

Axes: tokens, merged = positions in the sequence before and after the merger; dim = width of a token. There is no
official code. The merger is vit-pytorch's, which adds a norm and a scale to the paper's formula, `softmax(W X) X`; that
one is `patch_merge_norm=False, patch_merge_scale=1.0`. The ViT around it is the usual one; vit-pytorch's is
`qkv_bias=False, patch_norm=True, norm_eps=1e-5`, and `project_out=False` where it has one head of the full width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    PatchEmbedding,
    PreNormBlock,
    Stack,
    TokenLayer,
    attend,
    flatten_map,
    make_head,
    patchify,
    pool_tokens,
    resize_table,
    split_or_none,
)
from eqx_vit.layers.config import Size, check, check_heads, no_type_check, pair
from eqx_vit.layers.init import constant, normal, truncated_normal
from eqx_vit.model import PatchGridConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint, points_of_blocks


@no_type_check
@dataclass(frozen=True, kw_only=True)
class PatchMergerViTConfig(PatchGridConfig["PatchMergerViT"]):
    """Everything that defines a ViT with one PatchMerger."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_merge_layer: int | None = None  # the merger follows this many blocks, 1 to depth; None: half of them
    patch_merge_num_tokens: int = 8
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    dim_head: int | None = None  # None: dim // heads
    qkv_bias: bool = True
    project_out: bool = True  # False: no linear map (and dropout) after attention
    patch_norm: bool = False  # LayerNorm on the pixels of a patch and on its embedding
    patch_merge_norm: bool = True  # LayerNorm on the tokens that are merged
    patch_merge_scale: float | None = None  # of the merger's scores; None: dim ** -0.5
    norm_eps: float = 1e-6

    def check(self) -> None:
        if self.dim_head is None:
            check_heads(self.dim, self.heads)
        check(
            self.project_out or self.heads * (self.dim_head or self.dim // self.heads) == self.dim,
            f"project_out=False needs heads * dim_head equal to dim {self.dim}, given {self.heads} * {self.dim_head}",
        )
        check(
            self.merge_layer <= self.depth,
            f"patch_merge_layer counts blocks from 1: use 1 to {self.depth}, given {self.patch_merge_layer}",
        )

    @property
    def merge_layer(self) -> int:
        """The number of blocks before the merger."""
        return max(1, self.depth // 2) if self.patch_merge_layer is None else self.patch_merge_layer


class NormedPatchEmbedding(eqx.Module):
    """vit-pytorch's patch embedding: with a LayerNorm on the pixels of a patch, and one on its embedding."""

    pixel_norm: LayerNorm
    linear: Linear
    norm: LayerNorm
    patch_size: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self, patch_size: tuple[int, int], channels: int, dim: int, *, norm_eps: float, key: PRNGKeyArray
    ) -> None:
        pixels = math.prod(patch_size) * channels
        self.pixel_norm = LayerNorm(pixels, norm_eps)
        self.linear = Linear(pixels, dim, key=key)
        self.norm = LayerNorm(dim, norm_eps)
        self.patch_size = patch_size

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "rows columns dim"]:
        return self.norm(self.linear(self.pixel_norm(patchify(image, self.patch_size))))


class PatchMerger(eqx.Module):
    """`softmax(queries @ tokens.T * scale) @ tokens`: few tokens from many, whatever their order (section 3)."""

    queries: Float[Array, "merged dim"]
    norm: LayerNorm | eqx.nn.Identity
    scale: float | None = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_tokens_out: int,
        *,
        norm_eps: float | None = 1e-5,
        scale: float | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:**

        - `dim`: width of a token; `num_tokens_out`: how many come out.
        - `norm_eps`: of the LayerNorm on the tokens; None for no norm.
        - `scale`: of the scores, `dim ** -0.5` by default.

        The paper's formula is `norm_eps=None, scale=1.0`, vit-pytorch's the default.
        """
        sizes = f"given dim={dim}, num_tokens_out={num_tokens_out}"
        check(dim >= 1 and num_tokens_out >= 1, f"PatchMerger needs sizes of at least 1, {sizes}")
        self.queries = normal(1.0)(key, (num_tokens_out, dim))
        self.norm = eqx.nn.Identity() if norm_eps is None else LayerNorm(dim, norm_eps)
        self.scale = scale

    def __call__(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, "merged dim"]:
        one_head = self.norm(tokens)[:, None]
        return attend(self.queries[:, None], one_head, one_head, scale=self.scale)[:, 0]


# Called as `merger(tokens)`.
Merger: TypeAlias = Callable[[Float[Array, "tokens dim"]], Float[Array, "merged dim"]]


def make_patch_embedding(config: PatchMergerViTConfig, *, key: PRNGKeyArray) -> PatchEmbedding | NormedPatchEmbedding:
    """The linear map of each patch, with vit-pytorch's norms where the config asks for them."""
    sizes = (pair(config.patch_size), config.channels, config.dim)
    if config.patch_norm:
        return NormedPatchEmbedding(*sizes, norm_eps=config.norm_eps, key=key)
    return PatchEmbedding(*sizes, weight_init=truncated_normal(), bias_init=constant(0.0), key=key)


def make_attention(config: PatchMergerViTConfig, *, key: PRNGKeyArray) -> Attention:
    """Multi-head self-attention."""
    return Attention(
        config.dim,
        config.heads,
        head_dim=config.dim_head,
        qkv_bias=config.qkv_bias,
        project_out=config.project_out,
        dropout=config.dropout,
        key=key,
    )


def make_mlp(config: PatchMergerViTConfig, *, key: PRNGKeyArray) -> MLP:
    """The perceptron of a block."""
    return MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=key)


def make_merger(config: PatchMergerViTConfig, *, key: PRNGKeyArray) -> PatchMerger:
    """The merger, with or without the norm and the scale that vit-pytorch adds."""
    return PatchMerger(
        config.dim,
        config.patch_merge_num_tokens,
        norm_eps=config.norm_eps if config.patch_merge_norm else None,
        scale=config.patch_merge_scale,
        key=key,
    )


class PatchMergerViT(StatelessImageModel[PatchMergerViTConfig]):
    """A ViT with one PatchMerger: one image to logits.

        step                           shape                  patch_merger_base_patch16_224
        image                          height width channels  224 224 3
        patch embedding                rows columns dim       14 14 768
        + positions                    tokens dim             196 768
        merge_layer x block            tokens dim             196 768
        merger                         merged dim             8 768
        (depth - merge_layer) x block  merged dim             8 768
        norm                           merged dim             8 768
        mean                           dim                    768
        head                           num_classes            1000

    rows = height / patch height, columns = width / patch width; merged = patch_merge_num_tokens. There is no class
    token. A block is attention and MLP, pre-norm, residual.
    """

    patch_embedding: PatchEmbedding | NormedPatchEmbedding | Embedding
    position_embedding: Float[Array, "tokens dim"]
    embedding_dropout: Dropout
    blocks: Stack[PreNormBlock[Attention | TokenLayer]]
    patch_merger: PatchMerger | Merger
    merged_blocks: Stack[PreNormBlock[Attention | TokenLayer]] | None  # None: the merger follows the last block
    norm: Norm
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: PatchMergerViTConfig,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        merger: Callable[..., Merger] = make_merger,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`, `attention`, `mlp`, `merger`: make these parts, as
        `attention(config, key=key)`, an attention and an MLP for each block; `norm`: makes each norm, as
        `norm(dim, eps)`.
        """
        patch_key, position_key, blocks_key, merger_key, merged_blocks_key, head_key = jax.random.split(key, 6)
        dim, rest = config.dim, config.depth - config.merge_layer
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.position_embedding = truncated_normal()(position_key, (math.prod(config.grid), dim))
        self.embedding_dropout = Dropout(config.emb_dropout)

        def make_block(*, key: PRNGKeyArray) -> PreNormBlock[Attention | TokenLayer]:
            attention_key, mlp_key = jax.random.split(key)
            layers = (attention(config, key=attention_key), mlp(config, key=mlp_key))
            return PreNormBlock(*layers, dim, norm=norm, norm_eps=config.norm_eps)

        self.blocks = Stack.build(make_block, config.merge_layer, key=blocks_key)
        self.patch_merger = merger(config, key=merger_key)
        self.merged_blocks = Stack.build(make_block, rest, key=merged_blocks_key) if rest else None
        self.norm = norm(dim, config.norm_eps)
        self.head = make_head(dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """Patches with their positions."""
        patches = flatten_map(self.patch_embedding(image), self.config.grid, self.config.dim)
        return self.embedding_dropout(patches + self.position_embedding, key=key)

    def encode(self, x: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None) -> Float[Array, "merged dim"]:
        """The merged tokens after the final norm."""
        blocks_key, merged_blocks_key = split_or_none(key)
        merged = self._merge(self.blocks(x, key=blocks_key))
        if self.merged_blocks is not None:
            merged = self.merged_blocks(merged, key=merged_blocks_key)
        return self.norm(merged)

    def _merge(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, "merged dim"]:
        """The merged tokens: a merger of a user's own that changes their width is told so here."""
        return self.patch_merger(tokens)

    def classify(self, features: Float[Array, "merged dim"]) -> Float[Array, " classes"]:
        """Logits, from the mean of the merged tokens."""
        return self.head(pool_tokens(features, "mean", prefix=0))

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block before the merger: behind it the tokens are no map."""
        config = self.config
        return points_of_blocks(
            "blocks", config.merge_layer, config.dim, config.patch_size, config.grid, norm=self.norm
        )

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block before the merger."""
        return [AttentionPoint("blocks.attention", self.config.grid, class_token=False)]

    def resize_spec(self, image_size: Size) -> tuple[PatchMergerViTConfig, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as for a ViT."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


def _preset(dim: int, depth: int, heads: int, patch_size: int) -> PatchMergerViTConfig:
    return PatchMergerViTConfig(
        image_size=224, patch_size=patch_size, num_classes=1000, dim=dim, depth=depth, heads=heads, mlp_dim=4 * dim
    )


PRESETS: dict[str, PatchMergerViTConfig] = {
    "patch_merger_small_patch32_224": _preset(384, 12, 6, 32),  # 22,882,024
    "patch_merger_base_patch32_224": _preset(768, 12, 12, 32),  # 88,230,376
    "patch_merger_base_patch16_224": _preset(768, 12, 12, 16),  # 86,573,800
    "patch_merger_large_patch32_224": _preset(1024, 24, 16, 32),  # 306,543,592
    "patch_merger_large_patch16_224": _preset(1024, 24, 16, 16),  # 304,334,824
    "patch_merger_huge_patch14_224": _preset(1280, 32, 16, 14),  # 632,056,040
}

WEIGHTS: dict[str, Source] = {}  # none are released
