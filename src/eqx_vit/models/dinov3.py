"""DINOv3 (arXiv 2508.10104): the backbones of self-distillation at scale, with rotary positions.

The idea: a ViT whose dense features stay sound in long training. Positions are not added to the tokens: queries and
keys are turned by angles that a patch's place on the image gives, from -1 to 1 in both axes, so that one model takes
images of any multiple of the patch size. Four registers (the official code's storage tokens) take what is global.

Axes: tokens = 1 class token + registers + rows * columns; dim = width of a token; pairs = half the width of a head. No
departure from the official code (facebookresearch/dinov3) in inference; its jitter of the places in training is left
out. The official code masks the bias of the keys: here there is none. It reads the class token, as Hugging Face does;
timm, whose names the presets have, reads the mean of the patches, and so do they: `pool="cls"` is the other one.
"""

import functools
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
    DropPath,
    Embedding,
    LayerNorm,
    LayerScale,
    Linear,
    MakeEmbedding,
    MakeNorm,
    MakeTokenLayer,
    Norm,
    OutputProjection,
    PatchEmbedding,
    Rotation,
    Stack,
    SwiGLU,
    TokenLayer,
    add_bias,
    add_branch,
    attend,
    flatten_map,
    make_head,
    make_layer_scale,
    merge_heads,
    pool_tokens,
    rotary_2d,
    rotate,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import Size, check, check_heads, check_multiple, no_type_check, pair
from eqx_vit.layers.init import normal
from eqx_vit.model import PatchGridConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint, TokenFeatures, points_of_blocks


@no_type_check
@dataclass(frozen=True, kw_only=True)
class DINOv3Config(PatchGridConfig["DINOv3"]):
    """Everything that defines a DINOv3. `image_size` is that of training: images may have another one."""

    MAY_BE_ZERO = ("register_tokens",)

    dim: int
    depth: int
    heads: int
    mlp_dim: int  # with swiglu=True: of the gate, and of the value
    pool: Literal["cls", "mean"] = "cls"  # mean: of the patches (timm)
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP
    emb_dropout: float = 0.0  # on the tokens before the first block
    drop_path: float = 0.0  # stochastic depth, the same in all blocks
    register_tokens: int = 4
    qkv_bias: bool = True  # of queries and values: keys have none
    swiglu: bool = False  # a gated MLP (S+, H+, 7B)
    layer_scale: float | None = 1e-5  # start of the factors on the residual branches
    rotary_base: float = 100.0  # the longest period of the angles; the shortest is 1
    norm_eps: float = 1e-5

    def check(self) -> None:
        check_heads(self.dim, self.heads, dim_head=None)
        check(
            self.head_dim % 4 == 0,
            f"dim // heads must be a multiple of 4, two channels for the angle of each axis; given {self.head_dim}: "
            "change dim or heads",
        )
        check(self.rotary_base >= 1, f"rotary_base must be at least 1, given {self.rotary_base}")

    def check_image_size(self, height: int, width: int) -> None:
        """Raise `ValueError` for an image that does not split into patches."""
        check_multiple("the image's size", (height, width), self.patch_size)

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches."""
        return 1 + self.register_tokens


def make_patch_embedding(config: DINOv3Config, *, key: PRNGKeyArray) -> PatchEmbedding:
    """The linear map of each patch."""
    return PatchEmbedding(pair(config.patch_size), config.channels, config.dim, key=key)


def make_attention(config: DINOv3Config, *, key: PRNGKeyArray) -> "RotaryAttention":
    """Multi-head self-attention with rotary positions."""
    return RotaryAttention(config, key=key)


def make_mlp(config: DINOv3Config, *, key: PRNGKeyArray) -> MLP | SwiGLU:
    """The perceptron of a block."""
    make = SwiGLU if config.swiglu else MLP
    return make(config.dim, config.mlp_dim, dropout=config.dropout, key=key)


class RotaryAttention(eqx.Module):
    """Self-attention whose queries and keys are turned by their places. The keys' bias, which would add the same to
    every score of a query, is left out (section 3.2 has it masked)."""

    qkv: Linear
    query_bias: Float[Array, " dim"] | None
    value_bias: Float[Array, " dim"] | None
    projection: OutputProjection
    attention_dropout: Dropout
    heads: int = eqx.field(static=True)

    def __init__(self, config: DINOv3Config, *, key: PRNGKeyArray) -> None:
        qkv_key, projection_key = jax.random.split(key)
        dim = config.dim
        self.qkv = Linear(dim, 3 * dim, use_bias=False, key=qkv_key)
        self.query_bias = jnp.zeros(dim) if config.qkv_bias else None
        self.value_bias = jnp.zeros(dim) if config.qkv_bias else None
        self.projection = OutputProjection(dim, dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.dropout)
        self.heads = config.heads

    def __call__(
        self, tokens: Float[Array, "tokens dim"], rotation: Rotation, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        fused = self.qkv(tokens)
        if self.query_bias is not None and self.value_bias is not None:
            bias = (self.query_bias, jnp.zeros_like(self.query_bias), self.value_bias)
            fused = add_bias(fused, jnp.concatenate(bias))
        query, keys, value = split_heads(fused, 3, self.heads)
        query, keys = rotate(query, rotation), rotate(keys, rotation)
        attended = attend(query, keys, value, dropout=self.attention_dropout, dropout_key=attention_key)
        return self.projection(merge_heads(attended), key=projection_key)


class Block(eqx.Module):
    """Attention and MLP, each normalised before, scaled and added after; the attention knows the places.

    x = x + drop_path(layer_scale1(attention(norm1(x), rotation)))
    x = x + drop_path(layer_scale2(mlp(norm2(x))))
    """

    norm1: Norm
    attention: RotaryAttention | TokenLayer
    layer_scale1: LayerScale | eqx.nn.Identity
    norm2: Norm
    mlp: MLP | SwiGLU | TokenLayer
    layer_scale2: LayerScale | eqx.nn.Identity
    drop_path: DropPath

    def __init__(
        self,
        config: DINOv3Config,
        attention: MakeTokenLayer,
        mlp: MakeTokenLayer,
        norm: MakeNorm,
        *,
        key: PRNGKeyArray,
    ) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm1 = norm(config.dim, config.norm_eps)
        self.attention = attention(config, key=attention_key)
        self.layer_scale1 = make_layer_scale(config.dim, config.layer_scale)
        self.norm2 = norm(config.dim, config.norm_eps)
        self.mlp = mlp(config, key=mlp_key)
        self.layer_scale2 = make_layer_scale(config.dim, config.layer_scale)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        x: Float[Array, "tokens dim"],
        rotation: Rotation,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.layer_scale1(self.attention(self.norm1(x), rotation, key=attention_key))
        x = add_branch(x, self.drop_path(branch, key=path1_key))
        branch = self.layer_scale2(self.mlp(self.norm2(x), key=mlp_key))
        return add_branch(x, self.drop_path(branch, key=path2_key))


class DINOv3(StatelessImageModel[DINOv3Config]):
    """DINOv3: one image to features, or to the logits of a head of one's own.

        step              shape                  vit_base_patch16_dinov3
        image             height width channels  256 256 3
        patch embedding   rows columns dim       16 16 768
        prefix + patches  tokens dim             261 768
        depth x block     tokens dim             261 768
        norm              tokens dim             261 768
        pool              dim                    768
        head              num_classes or dim     768

    rows = height / patch height, columns = width / patch width. The prefix is the class token and the registers. A
    block is attention with rotary positions and MLP, pre-norm, residual. The pool is the class token or the mean of the
    patches. The released models have no head: num_classes = 0, and the pooled features come out.
    """

    patch_embedding: PatchEmbedding | Embedding
    class_token: Float[Array, "1 dim"]
    register_tokens: Float[Array, "registers dim"] | None
    embedding_dropout: Dropout
    blocks: Stack[Block]
    norm: Norm
    head: Linear | eqx.nn.Identity

    def __init__(
        self,
        config: DINOv3Config,
        *,
        patch_embedding: MakeEmbedding = make_patch_embedding,
        attention: MakeTokenLayer = make_attention,
        mlp: MakeTokenLayer = make_mlp,
        norm: MakeNorm = LayerNorm,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `patch_embedding`, `attention`, `mlp`: make these parts, as `attention(config, key=key)`, an
        attention and an MLP for each block; an attention is called as `attention(tokens, rotation, key=key)`; `norm`:
        makes each norm, as `norm(dim, eps)`.
        """
        patch_key, class_key, register_key, blocks_key, head_key = jax.random.split(key, 5)
        dim = config.dim
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.class_token = normal(0.02)(class_key, (1, dim))
        registers = (config.register_tokens, dim)
        self.register_tokens = normal(0.02)(register_key, registers) if config.register_tokens else None
        self.embedding_dropout = Dropout(config.emb_dropout)
        make_block = functools.partial(Block, config, attention, mlp, norm)
        self.blocks = Stack.build(make_block, config.depth, key=blocks_key)
        self.norm = norm(dim, config.norm_eps)
        self.head = make_head(dim, config.num_classes, key=head_key)

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "tokens dim"], Rotation]:
        """Class token, registers and patches; and how far each is turned."""
        config = self.config
        rows, columns = self._grid(*image.shape[:2])
        patches = flatten_map(self.patch_embedding(image), (rows, columns), config.dim)
        parts = (self.class_token, self.register_tokens, patches)
        tokens = jnp.concatenate([part for part in parts if part is not None])
        rotation = rotary_2d(rows, columns, config.head_dim, prefix=config.prefix, base=config.rotary_base)
        return self.embedding_dropout(tokens, key=key), rotation

    def encode(
        self, x: tuple[Float[Array, "tokens dim"], Rotation], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """All tokens, prefix first, after the final norm."""
        tokens, rotation = x
        return self.norm(self.blocks(tokens, rotation, key=key))

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits; without a head, the pooled features."""
        return self.head(pool_tokens(features, self.config.pool, self.config.prefix))

    def name_features(self, features: Float[Array, "tokens dim"]) -> TokenFeatures:
        """`features` by name."""
        prefix = self.config.prefix
        pooled = pool_tokens(features, self.config.pool, prefix)
        return TokenFeatures(features[0], features[1:prefix], features[prefix:], pooled)

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        config, grid = self.config, self._grid(height, width)
        return points_of_blocks(
            "blocks", config.depth, config.dim, config.patch_size, grid, prefix=config.prefix, norm=self.norm
        )

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head may read the class token alone."""
        return self.feature_points(height, width)[-1]._replace(module="blocks.norm1")

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block."""
        config = self.config
        return [AttentionPoint("blocks.attention", self._grid(height, width), config.prefix, config.pool == "cls")]

    def resize_spec(self, image_size: Size) -> tuple[DINOv3Config, Mapping[str, Array]]:
        """The config for another image size: no array depends on it."""
        return replace(self.config, image_size=image_size), {}

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return replace(self.config, image_size=(height, width)).grid


def _preset(dim: int, depth: int, heads: int, mlp_dim: int, *, swiglu: bool = False) -> DINOv3Config:
    return DINOv3Config(
        image_size=256,
        patch_size=16,
        num_classes=0,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim,
        pool="mean",
        qkv_bias=False,
        swiglu=swiglu,
    )


_SMALL = _preset(384, 12, 6, 1536)
_SMALL_PLUS = _preset(384, 12, 6, 1536, swiglu=True)
_BASE = _preset(768, 12, 12, 3072)
_LARGE = _preset(1024, 24, 16, 4096)
_HUGE_PLUS = _preset(1280, 32, 20, 5120, swiglu=True)

# The biases of queries and values are 0 in what is released: timm leaves them out, but for the names with qkvb.
PRESETS: dict[str, DINOv3Config] = {
    "vit_small_patch16_dinov3": _SMALL,  # 21,586,944
    "vit_small_plus_patch16_dinov3": _SMALL_PLUS,  # 28,683,264
    "vit_base_patch16_dinov3": _BASE,  # 85,641,216
    "vit_large_patch16_dinov3": _LARGE,  # 303,079,424
    "vit_huge_plus_patch16_dinov3": _HUGE_PLUS,  # 840,509,440
    "vit_7b_patch16_dinov3": _preset(4096, 40, 32, 8192, swiglu=True),  # 6,716,030,976
    "vit_small_patch16_dinov3_qkvb": replace(_SMALL, qkv_bias=True),  # 21,596,160
    "vit_small_plus_patch16_dinov3_qkvb": replace(_SMALL_PLUS, qkv_bias=True),  # 28,692,480
    "vit_base_patch16_dinov3_qkvb": replace(_BASE, qkv_bias=True),  # 85,659,648
    "vit_large_patch16_dinov3_qkvb": replace(_LARGE, qkv_bias=True),  # 303,128,576
    "vit_huge_plus_patch16_dinov3_qkvb": replace(_HUGE_PLUS, qkv_bias=True),  # 840,591,360
}

# Meta's licence asks for its name beside them, and for more: read it.
WEIGHTS: dict[str, Source] = {
    name: Source(hub=f"timm/{name}.lvd1689m", crop=1.0, classes=0, license="dinov3-license") for name in PRESETS
}
