"""CaiT (arXiv 2103.17239): going deeper with image transformers.

The idea: a learned scale per channel on every residual branch (LayerScale) lets very deep transformers train; the class
token enters only after the patches are done, in a few blocks of its own that leave the patches as they are.

    image                    height width channels
    patch embedding          rows columns dim          rows = height / patch height, columns = width / patch width
    + positions              patches dim               patches = rows * columns; no class token here
    depth x block            patches dim               talking-heads attention and MLP, pre-norm, scaled, residual
    cls_depth x class block  1 dim                     the class token asks, class token and patches answer; then an MLP
    norm                     tokens dim                tokens = 1 + patches: the class token first
    head                     num_classes               from the class token

Axes: tokens, patches = positions in the sequence, with and without the class token; dim = width of a token. No
departure from the official code (facebookresearch/deit); `layer_dropout` is its drop-path rate.
"""

import typing
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Dropout,
    DropPath,
    LayerNorm,
    LayerScale,
    Linear,
    PatchEmbedding,
    Stack,
    attend,
    attention_scores,
    attention_values,
    attention_weights,
    dear,
    image_door,
    merge_heads,
    resize_table,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair
from eqx_vit.layers.init import truncated_normal
from eqx_vit.models.source import Source


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class CaiTConfig:
    """Everything that defines a CaiT. `image_size` and `patch_size` are in pixels, one number or (height, width)."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the class token comes out
    dim: int
    depth: int  # blocks among the patches
    cls_depth: int = 2  # blocks of the class token
    heads: int
    mlp_dim: int
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP; never in the class blocks
    emb_dropout: float = 0.0  # after the positions are added
    layer_dropout: float = 0.0  # stochastic depth, the same for every residual among the patches
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    cls_mlp_dim: int | None = None  # MLP width of the class blocks; None: mlp_dim
    qkv_bias: bool = True
    layer_scale: float | None = None  # start of the factors on the residual branches; None: by depth, see initial_scale
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "depth", "cls_depth", "heads", "mlp_dim", "channels")
        check_positive(self, "dim_head", "cls_mlp_dim")
        check_rates(self, "dropout", "emb_dropout", "layer_dropout")
        check(self.num_classes >= 0, f"CaiTConfig.num_classes must not be negative, given {self.num_classes}")
        check_multiple("image_size", self.image_size, self.patch_size)
        check(
            self.dim_head is not None or self.dim % self.heads == 0,
            f"dim {self.dim} is not a multiple of heads {self.heads}: change one, or give dim_head",
        )

    @property
    def grid(self):
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def inner(self):
        """Width of the queries of all heads."""
        return self.heads * (self.dim_head or self.dim // self.heads)

    @property
    def initial_scale(self):
        """The paper's rule: the deeper the network, the closer to zero all its residual branches start."""
        if self.layer_scale is not None:
            return self.layer_scale
        return 0.1 if self.depth <= 18 else 1e-5 if self.depth <= 24 else 1e-6

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this CaiT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or the "
            f"model with eqx_vit.resize(model, ({height}, {width}))",
        )


class TalkingHeads(eqx.Module):
    """Self-attention whose heads are mixed before and after the softmax (Shazeer et al., arXiv 2003.02436)."""

    qkv: Linear
    mix_scores: Linear  # heads to heads
    mix_weights: Linear
    projection: Linear
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: CaiTConfig, *, key: PRNGKeyArray) -> None:
        qkv_key, scores_key, weights_key, projection_key = jax.random.split(key, 4)
        self.qkv = Linear(config.dim, 3 * config.inner, use_bias=config.qkv_bias, key=qkv_key)
        self.mix_scores = Linear(config.heads, config.heads, key=scores_key)
        self.mix_weights = Linear(config.heads, config.heads, key=weights_key)
        self.projection = Linear(config.inner, config.dim, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.projection_dropout = Dropout(config.dropout)
        self.heads = config.heads

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        scores = dear(attention_scores(query, keys))
        weights = attention_weights(across_heads(self.mix_scores, scores))
        weights = self.attention_dropout(across_heads(self.mix_weights, weights), key=attention_key)
        mixed = merge_heads(attention_values(weights, value))
        return self.projection_dropout(self.projection(mixed), key=projection_key)


class ClassAttention(eqx.Module):
    """Attention in which the first token alone asks (section 3, equations 6 and 7)."""

    query: Linear
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, config: CaiTConfig, *, key: PRNGKeyArray) -> None:
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        self.query = Linear(config.dim, config.inner, use_bias=config.qkv_bias, key=query_key)
        self.key_value = Linear(config.dim, 2 * config.inner, use_bias=config.qkv_bias, key=key_value_key)
        self.projection = Linear(config.inner, config.dim, key=projection_key)
        self.heads = config.heads

    def __call__(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, "1 dim"]:
        (query,) = split_heads(self.query(tokens[:1]), 1, self.heads)
        keys, value = split_heads(self.key_value(tokens), 2, self.heads)
        return self.projection(merge_heads(attend(query, keys, value)))


class Block(eqx.Module):
    """Talking-heads attention and MLP among the patches, each scaled per channel and added (equation 5)."""

    norm1: LayerNorm
    attention: TalkingHeads
    scale1: LayerScale
    norm2: LayerNorm
    mlp: MLP
    scale2: LayerScale
    drop_path: DropPath

    def __init__(self, config: CaiTConfig, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.dim, config.norm_eps)
        self.attention = TalkingHeads(config, key=attention_key)
        self.scale1 = LayerScale(config.dim, config.initial_scale)
        self.norm2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=mlp_key)
        self.scale2 = LayerScale(config.dim, config.initial_scale)
        self.drop_path = DropPath(config.layer_dropout)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.scale1(self.attention(self.norm1(tokens), key=attention_key))
        tokens = tokens + self.drop_path(branch, key=path1_key)
        branch = self.scale2(self.mlp(self.norm2(tokens), key=mlp_key))
        return tokens + self.drop_path(branch, key=path2_key)


class ClassBlock(eqx.Module):
    """Class attention and MLP: only the class token changes. The official code drops nothing here."""

    norm1: LayerNorm
    attention: ClassAttention
    scale1: LayerScale
    norm2: LayerNorm
    mlp: MLP
    scale2: LayerScale

    def __init__(self, config: CaiTConfig, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = LayerNorm(config.dim, config.norm_eps)
        self.attention = ClassAttention(config, key=attention_key)
        self.scale1 = LayerScale(config.dim, config.initial_scale)
        self.norm2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.cls_mlp_dim or config.mlp_dim, key=mlp_key)
        self.scale2 = LayerScale(config.dim, config.initial_scale)

    def __call__(
        self,
        class_token: Float[Array, "1 dim"],
        patches: Float[Array, "patches dim"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "1 dim"]:
        """The next class token. `key` is not used."""
        tokens = jnp.concatenate([class_token, patches])
        class_token = class_token + self.scale1(self.attention(self.norm1(tokens)))
        return class_token + self.scale2(self.mlp(self.norm2(class_token)))


class CaiT(eqx.Module):
    """Class-Attention in image Transformers: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: PatchEmbedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "patches dim"]
    embedding_dropout: Dropout
    blocks: Stack
    class_blocks: Stack
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: CaiTConfig = eqx.field(static=True)

    def __init__(self, config: CaiTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, token_key, position_key, blocks_key, class_blocks_key, head_key = jax.random.split(key, 6)
        rows, columns = config.grid
        self.patch_embedding = PatchEmbedding(pair(config.patch_size), config.channels, config.dim, key=patch_key)
        self.class_token = truncated_normal()(token_key, (1, config.dim))
        self.position_embedding = truncated_normal()(position_key, (rows * columns, config.dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.blocks = Stack.build(lambda key: Block(config, key=key), config.depth, key=blocks_key)
        self.class_blocks = Stack.build(lambda key: ClassBlock(config, key=key), config.cls_depth, key=class_blocks_key)
        self.norm = LayerNorm(config.dim, config.norm_eps)
        classes = config.num_classes
        self.head = Linear(config.dim, classes, key=head_key) if classes else eqx.nn.Identity()
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm."""
        embedding_key, blocks_key = split_or_none(key)
        patches = self.patch_embedding(image).reshape(-1, self.config.dim) + self.position_embedding
        patches = self.blocks(self.embedding_dropout(patches, key=embedding_key), key=blocks_key)
        class_token = self.class_blocks(self.class_token, patches)
        return self.norm(jnp.concatenate([class_token, patches]))

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits, read from the class token."""
        return self.head(self.features(image, key=key)[0])

    def resized(self, image_size: int | tuple[int, int]) -> tuple[CaiTConfig, dict[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as official fine-tuning
        at a higher resolution does it.
        """
        config = replace(self.config, image_size=image_size)
        table = resize_table(self.position_embedding, self.config.grid, config.grid, antialias=False)
        return config, {"position_embedding": table}


def across_heads(linear: Linear, maps: Float[Array, "heads queries keys"]) -> Float[Array, "heads queries keys"]:
    """The linear map applied along the axis of heads, in the dtype of `maps`."""
    mixed = dear(jnp.einsum("gh,hqk->gqk", linear.weight.astype(maps.dtype), maps))
    if linear.bias is None:
        return mixed
    return mixed + jnp.broadcast_to(linear.bias.astype(maps.dtype)[:, None, None], mixed.shape)


def _preset(dim: int, depth: int, heads: int, image_size: int, layer_scale: float) -> CaiTConfig:
    return CaiTConfig(
        image_size=image_size,
        patch_size=16,
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=4 * dim,
        layer_scale=layer_scale,
    )


PRESETS: dict[str, CaiTConfig] = {
    "cait_xxs24_224": _preset(192, 24, 4, 224, 1e-5),  # 11,956,264
    "cait_xxs24_384": _preset(192, 24, 4, 384, 1e-5),  # 12,029,224
    "cait_xxs36_224": _preset(192, 36, 4, 224, 1e-5),  # 17,299,720
    "cait_xxs36_384": _preset(192, 36, 4, 384, 1e-5),  # 17,372,680
    "cait_xs24_384": _preset(288, 24, 6, 384, 1e-5),  # 26,670,088
    "cait_s24_224": _preset(384, 24, 8, 224, 1e-5),  # 46,916,200
    "cait_s24_384": _preset(384, 24, 8, 384, 1e-5),  # 47,062,120
    "cait_s36_384": _preset(384, 36, 8, 384, 1e-6),  # 68,366,632
    "cait_m36_384": _preset(768, 36, 16, 384, 1e-6),  # 271,221,352
    "cait_m48_448": _preset(768, 48, 16, 448, 1e-6),  # 356,460,520
}

WEIGHTS: dict[str, Source] = {name: Source(hub=f"timm/{name}.fb_dist_in1k", crop=1.0) for name in PRESETS}
