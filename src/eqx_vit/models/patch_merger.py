"""PatchMerger (arXiv 2202.12015): learning to merge tokens in vision transformers.

The idea: half way through a plain ViT, a few learned queries replace all tokens by as many weighted means of them; the
blocks that follow cost next to nothing, and the accuracy stays.

    image                       height width channels
    patch embedding             rows columns dim         rows = height / patch height, columns = width / patch width
    + positions                 tokens dim               tokens = rows * columns; there is no class token
    patch_merge_layer x block   tokens dim               attention and MLP, pre-norm, residual
    merger                      merged dim               merged = patch_merge_num_tokens
    the remaining blocks        merged dim
    norm, mean over tokens      dim
    head                        num_classes

Axes: tokens, merged = positions in the sequence before and after the merger; dim = width of a token. There is no
official code. The merger is vit-pytorch's, which adds a norm and a scale to the paper's formula, `softmax(W X) X`; that
one is `patch_merge_norm=False, patch_merge_scale=1.0`. The ViT around it is the usual one; vit-pytorch's is
`qkv_bias=False, patch_norm=True, norm_eps=1e-5`, and `project_out=False` where it has one head of the full width.
"""

import math
import typing
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Dropout,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Stack,
    attend,
    image_door,
    patchify,
    resize_table,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair
from eqx_vit.layers.init import constant, normal, truncated_normal
from eqx_vit.models.source import Source


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class PatchMergerViTConfig:
    """Everything that defines a ViT with one PatchMerger. Sizes are in pixels, one number or (height, width)."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_merge_layer: int | None = None  # the merger follows this many blocks, 1 to depth; None: half of them
    patch_merge_num_tokens: int = 8
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    qkv_bias: bool = True
    project_out: bool = True  # False: no linear map (and dropout) after attention
    patch_norm: bool = False  # LayerNorm on the pixels of a patch and on its embedding
    patch_merge_norm: bool = True  # LayerNorm on the tokens that are merged
    patch_merge_scale: float | None = None  # of the merger's scores; None: dim ** -0.5
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "channels", "dim_head")
        check_positive(self, "patch_merge_num_tokens")
        check_rates(self, "dropout", "emb_dropout")
        check(self.num_classes >= 0, f"PatchMergerViTConfig.num_classes must not be negative, given {self.num_classes}")
        check_multiple("image_size", self.image_size, self.patch_size)
        check(
            self.dim_head is not None or self.dim % self.heads == 0,
            f"dim {self.dim} is not a multiple of heads {self.heads}: change one, or give dim_head",
        )
        check(
            self.project_out or self.heads * (self.dim_head or self.dim // self.heads) == self.dim,
            f"project_out=False needs heads * dim_head equal to dim {self.dim}, given {self.heads} * {self.dim_head}",
        )
        check(
            1 <= self.merge_layer <= self.depth,
            f"patch_merge_layer counts blocks from 1: use 1 to {self.depth}, given {self.patch_merge_layer}",
        )

    @property
    def grid(self):
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def merge_layer(self):
        return max(1, self.depth // 2) if self.patch_merge_layer is None else self.patch_merge_layer

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this PatchMergerViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, "
            f"or the model with eqx_vit.resize(model, ({height}, {width}))",
        )


class PatchMerger(eqx.Module):
    """`softmax(queries @ tokens.T * scale) @ tokens`: few tokens from many, whatever their order (section 3).

    **Arguments:** `norm_eps` is that of the LayerNorm on the tokens, None for no norm; `scale` defaults to
    `dim ** -0.5`. The paper's formula is `norm_eps=None, scale=1.0`, vit-pytorch's the default.
    """

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
        sizes = f"given dim={dim}, num_tokens_out={num_tokens_out}"
        check(dim >= 1 and num_tokens_out >= 1, f"PatchMerger needs sizes of at least 1, {sizes}")
        self.queries = normal(1.0)(key, (num_tokens_out, dim))
        self.norm = eqx.nn.Identity() if norm_eps is None else LayerNorm(dim, norm_eps)
        self.scale = scale

    def __call__(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, "merged dim"]:
        one_head = self.norm(tokens)[:, None]
        return attend(self.queries[:, None], one_head, one_head, scale=self.scale)[:, 0]


class Block(eqx.Module):
    """Attention and MLP, each normalised before and added after."""

    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP

    def __init__(self, config: PatchMergerViTConfig, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(
            config.dim,
            config.heads,
            head_dim=config.dim_head,
            qkv_bias=config.qkv_bias,
            project_out=config.project_out,
            dropout=config.dropout,
            key=attention_key,
        )
        self.norm2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=mlp_key)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, mlp_key = split_or_none(key)
        tokens = tokens + self.attention(self.norm1(tokens), key=attention_key)
        return tokens + self.mlp(self.norm2(tokens), key=mlp_key)


class PatchMergerViT(eqx.Module):
    """A ViT with one PatchMerger: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    pixel_norm: LayerNorm | eqx.nn.Identity
    patch_embedding: PatchEmbedding
    patch_norm: LayerNorm | eqx.nn.Identity
    position_embedding: Float[Array, "tokens dim"]
    embedding_dropout: Dropout
    blocks: Stack
    patch_merger: PatchMerger
    merged_blocks: Stack | None  # None: the merger follows the last block
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: PatchMergerViTConfig = eqx.field(static=True)

    def __init__(self, config: PatchMergerViTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, position_key, blocks_key, merger_key, merged_blocks_key, head_key = jax.random.split(key, 6)
        dim, eps, patch_size = config.dim, config.norm_eps, pair(config.patch_size)
        pixels = math.prod(patch_size) * config.channels
        self.pixel_norm = LayerNorm(pixels, eps) if config.patch_norm else eqx.nn.Identity()
        self.patch_embedding = PatchEmbedding(
            patch_size,
            config.channels,
            dim,
            weight_init=truncated_normal(),
            bias_init=constant(0.0),
            key=patch_key,
        )
        self.patch_norm = LayerNorm(dim, eps) if config.patch_norm else eqx.nn.Identity()
        self.position_embedding = truncated_normal()(position_key, (math.prod(config.grid), dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.blocks = Stack.build(lambda key: Block(config, key=key), config.merge_layer, key=blocks_key)
        self.patch_merger = PatchMerger(
            dim,
            config.patch_merge_num_tokens,
            norm_eps=eps if config.patch_merge_norm else None,
            scale=config.patch_merge_scale,
            key=merger_key,
        )
        rest = config.depth - config.merge_layer
        self.merged_blocks = (
            Stack.build(lambda key: Block(config, key=key), rest, key=merged_blocks_key) if rest else None
        )
        self.norm = LayerNorm(dim, eps)
        classes = config.num_classes
        self.head = Linear(dim, classes, key=head_key) if classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "merged dim"]:
        """The merged tokens after the final norm."""
        embedding_key, blocks_key, merged_blocks_key = split_or_none(key, 3)
        pixels = self.pixel_norm(patchify(image, self.patch_embedding.patch_size))
        patches = self.patch_norm(self.patch_embedding.linear(pixels)).reshape(-1, self.config.dim)
        tokens = self.embedding_dropout(patches + self.position_embedding, key=embedding_key)
        tokens = self.patch_merger(self.blocks(tokens, key=blocks_key))
        if self.merged_blocks is not None:
            tokens = self.merged_blocks(tokens, key=merged_blocks_key)
        return self.norm(tokens)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits, from the mean of the merged tokens."""
        return self.head(jnp.mean(self.features(image, key=key), axis=0))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[PatchMergerViTConfig, dict[str, Array]]:
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
