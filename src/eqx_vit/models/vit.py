"""Vision Transformer (arXiv 2010.11929), and its kin: DeiT, DeiT III, registers, DINOv2, CLIP's and SigLIP's towers.

The idea: an image is a sequence of patches, read by a plain transformer encoder; a class token gathers what the head
reads. Further papers: DeiT (2012.12877), DeiT III (2204.07118), registers (2309.16588), DINOv2 (2304.07193), CLIP
(2103.00020), SigLIP (2303.15343), SigLIP 2 (2502.14786).

Axes: tokens = prefix tokens + rows * columns; dim = width of a token. No departure from timm's `VisionTransformer` and
the official code; `approximate_gelu` and `norm_eps` select between their numbers (google-research: True, 1e-6;
timm and DeiT: False, 1e-6; Hugging Face: False, 1e-12). SigLIP was trained with the tanh form of GELU, as Hugging Face
has it; timm runs the presets without `approximate_gelu` with the exact one.
"""

import functools
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
    Activation,
    Attention,
    AttentionPool,
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
    SwiGLU,
    TokenLayer,
    drop_path_schedule,
    flatten_map,
    gelu,
    gelu_tanh,
    make_head,
    pool_tokens,
    quick_gelu,
    resize_table,
)
from eqx_vit.layers.config import Size, check, check_heads, no_type_check, pair
from eqx_vit.layers.init import constant, lecun_normal, normal, truncated_normal, xavier_uniform
from eqx_vit.model import LogitsPair, PatchGridConfig, StatelessImageModel
from eqx_vit.models.source import CLIP_MEAN, CLIP_STD, INCEPTION_MEAN, INCEPTION_STD, Source
from eqx_vit.points import AttentionPoint, FeaturePoint, TokenFeatures, points_of_blocks


@no_type_check
@dataclass(frozen=True, kw_only=True)
class ViTConfig(PatchGridConfig["ViT"]):
    """Everything that defines a ViT."""

    MAY_BE_ZERO = ("register_tokens",)

    dim: int
    depth: int
    heads: int
    mlp_dim: int  # with swiglu=True: of the gate, and of the value
    pool: Literal["cls", "mean", "map"] = "cls"  # mean: of the patches; map: a learned query attends to all tokens
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    drop_path: float = 0.0  # stochastic depth
    drop_path_ramp: bool = True  # from 0 to the rate over depth (ViT, DeiT), or the same everywhere (DeiT III)
    class_token: bool = True
    distillation: bool = False  # DeiT's second token and head
    register_tokens: int = 0
    prefix_positions: bool = True  # False: the table covers the patches only (DeiT III, the registers paper)
    qkv_bias: bool = True
    qk_norm: bool = False  # LayerNorm on queries and keys
    layer_scale: float | None = None  # start of the factors on the residual branches
    pre_norm: bool = False  # a norm before the blocks, and no bias in the patch embedding (CLIP)
    pool_norm: bool | None = None  # norm after the pool instead of before; None: for pool="mean"
    representation_size: int | None = None  # a tanh layer before the head (ViT's pre-training)
    norm_eps: float = 1e-6
    approximate_gelu: bool = False  # the tanh form of google-research's code
    quick_gelu: bool = False  # the sigmoid form of OpenAI's CLIP
    swiglu: bool = False  # a gated MLP (DINOv2's giant)

    def check(self) -> None:
        if self.dim_head is None:
            check_heads(self.dim, self.heads)
        check(
            self.class_token or (self.pool != "cls" and not self.distillation),
            "class_token=False needs pool='mean' or 'map' and distillation=False: there is no token to read",
        )
        check(
            self.approximate_gelu + self.quick_gelu + self.swiglu <= 1,
            "an MLP has one activation: give one of approximate_gelu, quick_gelu and swiglu",
        )
        check(
            not self.distillation or (self.pool == "cls" and self.register_tokens == 0),
            "distillation=True needs pool='cls' and register_tokens=0",
        )
        check(
            not self.distillation or (not self.pool_norm and self.representation_size is None),
            "distillation=True needs pool_norm=False and representation_size=None: both heads read normalised tokens",
        )

    @property
    def head_dim(self) -> int:
        return self.dim_head or self.dim // self.heads

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches."""
        return self.class_token + self.distillation + self.register_tokens

    @property
    def norm_after_pool(self) -> bool:
        return self.pool == "mean" if self.pool_norm is None else self.pool_norm


def make_patch_embedding(config: ViTConfig, *, key: PRNGKeyArray) -> PatchEmbedding:
    """The linear map of each patch."""
    patch_size = pair(config.patch_size)
    return PatchEmbedding(
        patch_size,
        config.channels,
        config.dim,
        use_bias=not config.pre_norm,
        weight_init=lecun_normal(math.prod(patch_size) * config.channels),
        bias_init=constant(0.0),
        key=key,
    )


def make_attention(config: ViTConfig, *, key: PRNGKeyArray) -> Attention:
    """Multi-head self-attention."""
    dim, inner = config.dim, config.heads * config.head_dim
    return Attention(
        dim,
        config.heads,
        head_dim=config.dim_head,
        qkv_bias=config.qkv_bias,
        qk_norm_eps=config.norm_eps if config.qk_norm else None,
        dropout=config.dropout,
        # The official code has q, k and v apart: the fans are those of one of them.
        qkv_init=xavier_uniform(dim, inner),
        projection_init=xavier_uniform(inner, dim),
        key=key,
    )


def make_mlp(config: ViTConfig, *, key: PRNGKeyArray) -> MLP | SwiGLU:
    """The perceptron of a block."""
    make = SwiGLU if config.swiglu else functools.partial(MLP, activation=_activation(config))
    return make(
        config.dim,
        config.mlp_dim,
        dropout=config.dropout,
        weight_init=xavier_uniform(config.dim, config.mlp_dim),
        bias_init=normal(1e-6),
        key=key,
    )


def _activation(config: ViTConfig) -> Activation:
    if config.quick_gelu:
        return quick_gelu
    return gelu_tanh if config.approximate_gelu else gelu


def make_attention_pool(config: ViTConfig, norm: MakeNorm, *, key: PRNGKeyArray) -> AttentionPool:
    """The learned query of pool="map"."""
    attention_key, mlp_key = jax.random.split(key)
    return AttentionPool(
        config.dim,
        config.heads,
        make_mlp(replace(config, dropout=0.0), key=mlp_key),
        head_dim=config.dim_head,
        norm=norm,
        norm_eps=config.norm_eps,
        key=attention_key,
    )


class ViT(StatelessImageModel[ViTConfig]):
    """Vision Transformer: one image to logits.

        step              shape                  vit_base_patch16_224
        image             height width channels  224 224 3
        patch embedding   rows columns dim       14 14 768
        prefix + patches  tokens dim             197 768
        depth x block     tokens dim             197 768
        norm              tokens dim             197 768
        pool              dim                    768
        head              num_classes            1000

    rows = height / patch height, columns = width / patch width. The prefix is the class token, then the distillation
    token or the registers. A block is attention and MLP, pre-norm, residual. The pool is the class token, the mean of
    the patches, or what a learned query reads; the norm may follow it.
    """

    patch_embedding: PatchEmbedding | Embedding
    class_token: Float[Array, "1 dim"] | None
    distillation_token: Float[Array, "1 dim"] | None
    register_tokens: Float[Array, "registers dim"] | None
    position_embedding: Float[Array, "positions dim"]
    embedding_dropout: Dropout
    norm_pre: Norm | eqx.nn.Identity
    blocks: Stack[PreNormBlock[Attention | TokenLayer]]
    norm: Norm
    attention_pool: AttentionPool | None
    pre_logits: Linear | None
    head: Linear | eqx.nn.Identity
    head_dist: Linear | eqx.nn.Identity | None

    def __init__(
        self,
        config: ViTConfig,
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
        keys = jax.random.split(key, 8)
        patch_key, position_key, distillation_key, register_key, blocks_key, pre_logits_key, head_key, head_dist_key = (
            keys
        )
        dim, (rows, columns) = config.dim, config.grid
        self.config = config
        self.patch_embedding = patch_embedding(config, key=patch_key)
        self.class_token = jnp.zeros((1, dim)) if config.class_token else None
        self.distillation_token = truncated_normal()(distillation_key, (1, dim)) if config.distillation else None
        registers = (config.register_tokens, dim)
        self.register_tokens = normal(1e-6)(register_key, registers) if config.register_tokens else None
        positions = rows * columns + (config.prefix if config.prefix_positions else 0)
        self.position_embedding = normal(0.02)(position_key, (positions, dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.norm_pre = norm(dim, config.norm_eps) if config.pre_norm else eqx.nn.Identity()

        def make_block(*, key: PRNGKeyArray) -> PreNormBlock[Attention | TokenLayer]:
            attention_key, mlp_key = jax.random.split(key)
            return PreNormBlock(
                attention(config, key=attention_key),
                mlp(config, key=mlp_key),
                dim,
                norm=norm,
                norm_eps=config.norm_eps,
                drop_path=config.drop_path,
                layer_scale=config.layer_scale,
            )

        self.blocks = Stack.build(make_block, config.depth, key=blocks_key)
        self.norm = norm(dim, config.norm_eps)
        pool_key = jax.random.fold_in(pre_logits_key, 1)
        self.attention_pool = make_attention_pool(config, norm, key=pool_key) if config.pool == "map" else None
        width = config.representation_size
        init = lecun_normal(dim)
        self.pre_logits = None if width is None else Linear(dim, width, weight_init=init, key=pre_logits_key)
        # Zero, as the official code starts.
        make = functools.partial(make_head, width or dim, config.num_classes, weight_init=constant(0.0))
        self.head = make(key=head_key)
        self.head_dist = make(key=head_dist_key) if config.distillation else None

    def embed(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "tokens dim"]:
        """Prefix tokens and patches, with their positions."""
        patches = flatten_map(self.patch_embedding(image), self.config.grid, self.config.dim)
        if not self.config.prefix_positions:
            patches = patches + self.position_embedding
        parts = (self.class_token, self.distillation_token, self.register_tokens, patches)
        tokens = jnp.concatenate([part for part in parts if part is not None])
        if self.config.prefix_positions:
            tokens = tokens + self.position_embedding
        return self.norm_pre(self.embedding_dropout(tokens, key=key))

    def encode(self, x: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None) -> Float[Array, "tokens dim"]:
        """All tokens, prefix first, after the final norm (unless that one follows the pool)."""
        (schedule,) = drop_path_schedule([self.config.depth])
        scales = schedule if self.config.drop_path_ramp else jnp.ones(self.config.depth)
        tokens = self.blocks(x, xs=(scales,), key=key)
        return tokens if self.config.norm_after_pool else self.norm(tokens)

    def classify(self, features: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        """Logits: of the one head, or the mean of the pair with a distillation token."""
        if self.head_dist is not None:
            logits, distilled = self.classify_pair(features)
            return (logits + distilled) / 2
        return self.head(self.read(features))

    def read(self, features: Float[Array, "tokens dim"]) -> Float[Array, " width"]:
        """What the head reads: the pooled features."""
        if self.attention_pool is not None:
            pooled = self.attention_pool(features)
        else:
            pooled = pool_tokens(features, "cls" if self.config.pool == "cls" else "mean", self.config.prefix)
        pooled = self.norm(pooled) if self.config.norm_after_pool else pooled
        return pooled if self.pre_logits is None else jnp.tanh(self.pre_logits(pooled))

    def classify_pair(self, features: Float[Array, "tokens dim"]) -> LogitsPair:
        """(class logits, distillation logits), each of its token (DeiT, section 4)."""
        if self.head_dist is None:
            raise ValueError("this ViT has one head: a pair needs a config with distillation=True")
        return self.head(features[0]), self.head_dist(features[1])

    def name_features(self, features: Float[Array, "tokens dim"]) -> TokenFeatures:
        """`features` by name; a distillation token is of the prefix, and has none."""
        config = self.config
        return TokenFeatures(
            class_token=features[0] if config.class_token else None,
            register_tokens=features[config.prefix - config.register_tokens : config.prefix],
            patch_tokens=features[config.prefix :],
            pooled=self.read(features),
        )

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each block."""
        config = self.config
        return points_of_blocks(
            "blocks",
            config.depth,
            config.dim,
            config.patch_size,
            config.grid,
            prefix=config.prefix,
            norm=None if config.norm_after_pool else self.norm,
        )

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """What the last attention reads: of its output the head may read the class token alone."""
        return self.feature_points(height, width)[-1]._replace(module="blocks.norm1")

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The attention of each block."""
        config = self.config
        return [AttentionPoint("blocks.attention", config.grid, config.prefix, config.pool == "cls")]

    def resize_spec(self, image_size: Size) -> tuple[ViTConfig, Mapping[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as timm does it."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


def _preset(dim: int, depth: int, heads: int, patch_size: int, image_size: int = 224, mlp_dim: int = 0) -> ViTConfig:
    return ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim or 4 * dim,
    )


_TINY = _preset(192, 12, 3, 16)
_SMALL = _preset(384, 12, 6, 16)
_BASE = _preset(768, 12, 12, 16)
_LARGE = _preset(1024, 24, 16, 16)
_GAP = replace(_preset(512, 12, 8, 16, 256), class_token=False, pool="mean")
_REGISTERS = replace(_GAP, prefix_positions=False, register_tokens=4)


def _deit3(config: ViTConfig) -> ViTConfig:
    return replace(config, prefix_positions=False, layer_scale=1e-6, drop_path_ramp=False)


def _dinov2(config: ViTConfig, registers: int = 0) -> ViTConfig:
    """A backbone: what is released has no head."""
    config = replace(config, patch_size=14, image_size=518, num_classes=0, layer_scale=1e-5)
    return replace(config, register_tokens=registers, prefix_positions=registers == 0)


def _clip(config: ViTConfig, projection: int) -> ViTConfig:
    """An image tower: its head is the projection to the space that it shares with the texts."""
    return replace(config, pre_norm=True, norm_eps=1e-5, num_classes=projection)


def _siglip(config: ViTConfig, image_size: int, approximate_gelu: bool = False) -> ViTConfig:
    """An image tower without a head: the pooled features are the image's embedding."""
    config = replace(config, image_size=image_size, num_classes=0, approximate_gelu=approximate_gelu)
    return replace(config, class_token=False, pool="map")


_HUGE = _preset(1280, 32, 16, 14)
_GIANT = _preset(1408, 40, 16, 14, mlp_dim=6144)
_GIGANTIC = _preset(1664, 48, 16, 14, mlp_dim=8192)
_LARGE14 = replace(_LARGE, patch_size=14)
_SWIGLU_GIANT = replace(_preset(1536, 40, 24, 14, mlp_dim=4096), swiglu=True)
_SO400M = _preset(1152, 27, 16, 14, mlp_dim=4304)
_SO400M16 = replace(_SO400M, patch_size=16)


PRESETS: dict[str, ViTConfig] = {
    "vit_tiny_patch16_224": _TINY,  # 5,717,416
    "vit_tiny_patch16_384": replace(_TINY, image_size=384),  # 5,790,376
    "vit_small_patch32_224": replace(_SMALL, patch_size=32),  # 22,878,952
    "vit_small_patch32_384": replace(_SMALL, patch_size=32, image_size=384),  # 22,915,432
    "vit_small_patch16_224": _SMALL,  # 22,050,664
    "vit_small_patch16_384": replace(_SMALL, image_size=384),  # 22,196,584
    "vit_small_patch8_224": replace(_SMALL, patch_size=8),  # 22,055,272
    "vit_base_patch32_224": replace(_BASE, patch_size=32),  # 88,224,232
    "vit_base_patch32_384": replace(_BASE, patch_size=32, image_size=384),  # 88,297,192
    "vit_base_patch16_224": _BASE,  # 86,567,656
    "vit_base_patch16_384": replace(_BASE, image_size=384),  # 86,859,496
    "vit_base_patch8_224": replace(_BASE, patch_size=8),  # 86,576,872
    "vit_large_patch32_224": replace(_LARGE, patch_size=32),  # 306,535,400
    "vit_large_patch32_384": replace(_LARGE, patch_size=32, image_size=384),  # 306,632,680
    "vit_large_patch16_224": _LARGE,  # 304,326,632
    "vit_large_patch16_384": replace(_LARGE, image_size=384),  # 304,715,752
    "vit_large_patch14_224": _LARGE14,  # 304,203,752
    "vit_huge_patch14_224": _HUGE,  # 632,045,800
    "vit_giant_patch14_224": _GIANT,  # 1,012,611,432
    "vit_gigantic_patch14_224": _GIGANTIC,  # 1,844,440,680
    "vit_base_patch16_gap_224": replace(  # 86,566,120
        _BASE, heads=16, class_token=False, pool="mean", pool_norm=False
    ),
    "vit_medium_patch16_gap_256": replace(_GAP, pool_norm=False, qkv_bias=False, layer_scale=1e-6),  # 38,861,288
    "vit_medium_patch16_reg4_gap_256": replace(_REGISTERS, layer_scale=1e-5),  # 38,881,768
    "vit_little_patch16_reg4_gap_256": replace(  # 22,516,008
        _REGISTERS, dim=320, depth=14, heads=5, mlp_dim=1792, layer_scale=1e-5
    ),
    "vit_wee_patch16_reg1_gap_256": replace(  # 13,422,568
        _REGISTERS, dim=256, depth=14, heads=4, mlp_dim=1280, layer_scale=1e-5, register_tokens=1
    ),
    "vit_base_patch16_reg4_gap_256": replace(_REGISTERS, dim=768, heads=12, mlp_dim=3072),  # 86,615,272
    "deit_tiny_patch16_224": _TINY,  # 5,717,416
    "deit_small_patch16_224": _SMALL,  # 22,050,664
    "deit_base_patch16_224": _BASE,  # 86,567,656
    "deit_base_patch16_384": replace(_BASE, image_size=384),  # 86,859,496
    "deit_tiny_distilled_patch16_224": replace(_TINY, distillation=True),  # 5,910,800
    "deit_small_distilled_patch16_224": replace(_SMALL, distillation=True),  # 22,436,432
    "deit_base_distilled_patch16_224": replace(_BASE, distillation=True),  # 87,338,192
    "deit_base_distilled_patch16_384": replace(_BASE, distillation=True, image_size=384),  # 87,630,032
    "deit3_small_patch16_224": _deit3(_SMALL),  # 22,059,496
    "deit3_small_patch16_384": _deit3(replace(_SMALL, image_size=384)),  # 22,205,416
    "deit3_medium_patch16_224": _deit3(_preset(512, 12, 8, 16)),  # 38,849,512
    "deit3_base_patch16_224": _deit3(_BASE),  # 86,585,320
    "deit3_base_patch16_384": _deit3(replace(_BASE, image_size=384)),  # 86,877,160
    "deit3_large_patch16_224": _deit3(_LARGE),  # 304,374,760
    "deit3_large_patch16_384": _deit3(replace(_LARGE, image_size=384)),  # 304,763,880
    "deit3_huge_patch14_224": _deit3(_HUGE),  # 632,126,440
    "vit_small_patch14_dinov2": _dinov2(_SMALL),  # 22,056,192
    "vit_base_patch14_dinov2": _dinov2(_BASE),  # 86,579,712
    "vit_large_patch14_dinov2": _dinov2(_LARGE),  # 304,367,616
    "vit_giant_patch14_dinov2": _dinov2(_SWIGLU_GIANT),  # 1,136,479,232
    "vit_small_patch14_reg4_dinov2": _dinov2(_SMALL, 4),  # 22,057,344
    "vit_base_patch14_reg4_dinov2": _dinov2(_BASE, 4),  # 86,582,016
    "vit_large_patch14_reg4_dinov2": _dinov2(_LARGE, 4),  # 304,370,688
    "vit_giant_patch14_reg4_dinov2": _dinov2(_SWIGLU_GIANT, 4),  # 1,136,483,840
    "vit_base_patch32_clip_224": _clip(replace(_BASE, patch_size=32), 512),  # 87,849,728
    "vit_base_patch16_clip_224": _clip(_BASE, 512),  # 86,193,152
    "vit_large_patch14_clip_224": _clip(_LARGE14, 768),  # 303,966,976
    "vit_large_patch14_clip_336": _clip(replace(_LARGE14, image_size=336), 768),  # 304,294,656
    "vit_huge_patch14_clip_224": _clip(_HUGE, 1024),  # 632,077,824
    "vit_giant_patch14_clip_224": _clip(_GIANT, 1024),  # 1,012,646,656
    "vit_gigantic_patch14_clip_224": _clip(_GIGANTIC, 1280),  # 1,844,908,544
    "vit_base_patch32_clip_quickgelu_224": _clip(replace(_BASE, patch_size=32, quick_gelu=True), 512),  # 87,849,728
    "vit_base_patch16_clip_quickgelu_224": _clip(replace(_BASE, quick_gelu=True), 512),  # 86,193,152
    "vit_large_patch14_clip_quickgelu_224": _clip(replace(_LARGE14, quick_gelu=True), 768),  # 303,966,976
    "vit_large_patch14_clip_quickgelu_336": _clip(
        replace(_LARGE14, quick_gelu=True, image_size=336), 768
    ),  # 304,294,656
    "vit_base_patch32_siglip_256": _siglip(replace(_BASE, patch_size=32), 256, approximate_gelu=True),  # 94,552,320
    "vit_base_patch16_siglip_224": _siglip(_BASE, 224),  # 92,884,224
    "vit_base_patch16_siglip_256": _siglip(_BASE, 256),  # 92,930,304
    "vit_base_patch16_siglip_384": _siglip(_BASE, 384),  # 93,176,064
    "vit_base_patch16_siglip_512": _siglip(_BASE, 512),  # 93,520,128
    "vit_large_patch16_siglip_256": _siglip(_LARGE, 256),  # 315,956,224
    "vit_large_patch16_siglip_384": _siglip(_LARGE, 384),  # 316,283,904
    "vit_large_patch16_siglip_512": _siglip(_LARGE, 512, approximate_gelu=True),  # 316,742,656
    "vit_so400m_patch14_siglip_224": _siglip(_SO400M, 224),  # 427,680,704
    "vit_so400m_patch14_siglip_378": _siglip(_SO400M, 378),  # 428,225,600
    "vit_so400m_patch16_siglip_256": _siglip(_SO400M16, 256, approximate_gelu=True),  # 427,888,064
    "vit_so400m_patch16_siglip_384": _siglip(_SO400M16, 384, approximate_gelu=True),  # 428,256,704
    "vit_so400m_patch16_siglip_512": _siglip(_SO400M16, 512, approximate_gelu=True),  # 428,772,800
}


def _inception(hub: str, crop: float = 0.9) -> Source:
    return Source(hub=hub, crop=crop, mean=INCEPTION_MEAN, std=INCEPTION_STD)


def _imagenet(hub: str, crop: float = 0.9) -> Source:
    return Source(hub=hub, crop=crop)


def _backbone(hub: str, crop: float = 1.0, image: Literal["imagenet", "inception"] = "imagenet") -> Source:
    """Weights without a head."""
    make = _imagenet if image == "imagenet" else _inception
    return replace(make(hub, crop), classes=0)


def _tower(hub: str, projection: int, crop: float = 1.0) -> Source:
    return Source(hub=hub, crop=crop, classes=projection, mean=CLIP_MEAN, std=CLIP_STD)


# timm's default checkpoint with a head of 1000 classes, where there is one; of CLIP the towers as they were released,
# OpenAI's with quickgelu and LAION-2B's without; of SigLIP the second.
WEIGHTS: dict[str, Source] = {
    "vit_tiny_patch16_224": _inception("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "vit_tiny_patch16_384": _inception("timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k", crop=1.0),
    "vit_small_patch32_224": _inception("timm/vit_small_patch32_224.augreg_in21k_ft_in1k"),
    "vit_small_patch32_384": _inception("timm/vit_small_patch32_384.augreg_in21k_ft_in1k", crop=1.0),
    "vit_small_patch16_224": _inception("timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "vit_small_patch16_384": _inception("timm/vit_small_patch16_384.augreg_in21k_ft_in1k", crop=1.0),
    "vit_base_patch32_224": _inception("timm/vit_base_patch32_224.augreg_in21k_ft_in1k"),
    "vit_base_patch32_384": _inception("timm/vit_base_patch32_384.augreg_in21k_ft_in1k", crop=1.0),
    "vit_base_patch16_224": _inception("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    "vit_base_patch16_384": _inception("timm/vit_base_patch16_384.augreg_in21k_ft_in1k", crop=1.0),
    "vit_base_patch8_224": _inception("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"),
    "vit_large_patch32_384": _inception("timm/vit_large_patch32_384.orig_in21k_ft_in1k", crop=1.0),
    "vit_large_patch16_224": _inception("timm/vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "vit_large_patch16_384": _inception("timm/vit_large_patch16_384.augreg_in21k_ft_in1k", crop=1.0),
    "vit_medium_patch16_gap_256": _inception("timm/vit_medium_patch16_gap_256.sw_in12k_ft_in1k", crop=0.95),
    "vit_medium_patch16_reg4_gap_256": _inception("timm/vit_medium_patch16_reg4_gap_256.sbb_in12k_ft_in1k", crop=0.95),
    "vit_little_patch16_reg4_gap_256": _inception("timm/vit_little_patch16_reg4_gap_256.sbb_in1k", crop=0.95),
    "vit_wee_patch16_reg1_gap_256": _inception("timm/vit_wee_patch16_reg1_gap_256.sbb_in1k", crop=0.95),
    "deit_tiny_patch16_224": _imagenet("timm/deit_tiny_patch16_224.fb_in1k"),
    "deit_small_patch16_224": _imagenet("timm/deit_small_patch16_224.fb_in1k"),
    "deit_base_patch16_224": _imagenet("timm/deit_base_patch16_224.fb_in1k"),
    "deit_base_patch16_384": _imagenet("timm/deit_base_patch16_384.fb_in1k", crop=1.0),
    "deit_tiny_distilled_patch16_224": _imagenet("timm/deit_tiny_distilled_patch16_224.fb_in1k"),
    "deit_small_distilled_patch16_224": _imagenet("timm/deit_small_distilled_patch16_224.fb_in1k"),
    "deit_base_distilled_patch16_224": _imagenet("timm/deit_base_distilled_patch16_224.fb_in1k"),
    "deit_base_distilled_patch16_384": _imagenet("timm/deit_base_distilled_patch16_384.fb_in1k", crop=1.0),
    "deit3_small_patch16_224": _imagenet("timm/deit3_small_patch16_224.fb_in1k"),
    "deit3_small_patch16_384": _imagenet("timm/deit3_small_patch16_384.fb_in1k", crop=1.0),
    "deit3_medium_patch16_224": _imagenet("timm/deit3_medium_patch16_224.fb_in1k"),
    "deit3_base_patch16_224": _imagenet("timm/deit3_base_patch16_224.fb_in1k"),
    "deit3_base_patch16_384": _imagenet("timm/deit3_base_patch16_384.fb_in1k", crop=1.0),
    "deit3_large_patch16_224": _imagenet("timm/deit3_large_patch16_224.fb_in1k"),
    "deit3_large_patch16_384": _imagenet("timm/deit3_large_patch16_384.fb_in1k", crop=1.0),
    "deit3_huge_patch14_224": _imagenet("timm/deit3_huge_patch14_224.fb_in1k"),
    "vit_small_patch14_dinov2": _backbone("timm/vit_small_patch14_dinov2.lvd142m"),
    "vit_base_patch14_dinov2": _backbone("timm/vit_base_patch14_dinov2.lvd142m"),
    "vit_large_patch14_dinov2": _backbone("timm/vit_large_patch14_dinov2.lvd142m"),
    "vit_giant_patch14_dinov2": _backbone("timm/vit_giant_patch14_dinov2.lvd142m"),
    "vit_small_patch14_reg4_dinov2": _backbone("timm/vit_small_patch14_reg4_dinov2.lvd142m"),
    "vit_base_patch14_reg4_dinov2": _backbone("timm/vit_base_patch14_reg4_dinov2.lvd142m"),
    "vit_large_patch14_reg4_dinov2": _backbone("timm/vit_large_patch14_reg4_dinov2.lvd142m"),
    "vit_giant_patch14_reg4_dinov2": _backbone("timm/vit_giant_patch14_reg4_dinov2.lvd142m"),
    "vit_base_patch32_clip_224": _tower("timm/vit_base_patch32_clip_224.laion2b", 512, crop=0.9),
    "vit_base_patch16_clip_224": _tower("timm/vit_base_patch16_clip_224.laion2b", 512),
    "vit_large_patch14_clip_224": replace(_inception("timm/vit_large_patch14_clip_224.laion2b", 1.0), classes=768),
    "vit_huge_patch14_clip_224": _tower("timm/vit_huge_patch14_clip_224.laion2b", 1024),
    "vit_giant_patch14_clip_224": _tower("timm/vit_giant_patch14_clip_224.laion2b", 1024),
    "vit_gigantic_patch14_clip_224": _tower("timm/vit_gigantic_patch14_clip_224.laion2b", 1280),
    "vit_base_patch32_clip_quickgelu_224": _tower("timm/vit_base_patch32_clip_224.openai", 512, crop=0.9),
    "vit_base_patch16_clip_quickgelu_224": _tower("timm/vit_base_patch16_clip_224.openai", 512, crop=0.9),
    "vit_large_patch14_clip_quickgelu_224": _tower("timm/vit_large_patch14_clip_224.openai", 768),
    "vit_large_patch14_clip_quickgelu_336": _tower("timm/vit_large_patch14_clip_336.openai", 768),
    "vit_base_patch32_siglip_256": _backbone("timm/vit_base_patch32_siglip_256.v2_webli", 0.9, "inception"),
    "vit_base_patch16_siglip_224": _backbone("timm/vit_base_patch16_siglip_224.v2_webli", 0.9, "inception"),
    "vit_base_patch16_siglip_256": _backbone("timm/vit_base_patch16_siglip_256.v2_webli", 0.9, "inception"),
    "vit_base_patch16_siglip_384": _backbone("timm/vit_base_patch16_siglip_384.v2_webli", 0.9, "inception"),
    "vit_base_patch16_siglip_512": _backbone("timm/vit_base_patch16_siglip_512.v2_webli", 0.9, "inception"),
    "vit_large_patch16_siglip_256": _backbone("timm/vit_large_patch16_siglip_256.v2_webli", 0.9, "inception"),
    "vit_large_patch16_siglip_384": _backbone("timm/vit_large_patch16_siglip_384.v2_webli", 0.9, "inception"),
    "vit_large_patch16_siglip_512": _backbone("timm/vit_large_patch16_siglip_512.v2_webli", 0.9, "inception"),
    "vit_so400m_patch14_siglip_224": _backbone("timm/vit_so400m_patch14_siglip_224.v2_webli", 0.9, "inception"),
    "vit_so400m_patch14_siglip_378": _backbone("timm/vit_so400m_patch14_siglip_378.v2_webli", 0.9, "inception"),
    "vit_so400m_patch16_siglip_256": _backbone("timm/vit_so400m_patch16_siglip_256.v2_webli", 0.9, "inception"),
    "vit_so400m_patch16_siglip_384": _backbone("timm/vit_so400m_patch16_siglip_384.v2_webli", 0.9, "inception"),
    "vit_so400m_patch16_siglip_512": _backbone("timm/vit_so400m_patch16_siglip_512.v2_webli", 0.9, "inception"),
}
