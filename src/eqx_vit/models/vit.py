"""Vision Transformer (arXiv 2010.11929), with DeiT's distillation token (2012.12877), DeiT III (2204.07118) and
registers (2309.16588).

The idea: an image is a sequence of patches, read by a plain transformer encoder; a class token gathers the answer.

    image                     height width channels
    patch embedding           rows columns dim           rows = height / patch height, columns = width / patch width
    prefix + patches          tokens dim                 class token, then distillation token or registers, then patches
    depth x block             tokens dim                 attention and MLP, pre-norm, residual
    norm                      tokens dim
    pool                      dim                        the class token, or the mean of the patches
    head                      num_classes

Axes: tokens = prefix tokens + rows * columns; dim = width of a token. No departure from timm's `VisionTransformer` and
the official code; `approximate_gelu` and `norm_eps` select between their numbers (google-research: True, 1e-6;
timm and DeiT: False, 1e-6; Hugging Face: False, 1e-12).
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
    Attention,
    Dropout,
    DropPath,
    LayerNorm,
    LayerScale,
    Linear,
    PatchEmbedding,
    Stack,
    gelu,
    gelu_tanh,
    image_door,
    ramp,
    resize_table,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair
from eqx_vit.layers.init import constant, lecun_normal, normal, truncated_normal, xavier_uniform
from eqx_vit.models.source import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, Source


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that defines a ViT. `image_size` and `patch_size` are in pixels, one number or (height, width)."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches, prefix tokens left out
    channels: int = 3
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

    def __post_init__(self):
        check_fields(self)
        check_positive(self, "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "channels", "dim_head")
        check_positive(self, "representation_size")
        check_rates(self, "dropout", "emb_dropout", "drop_path")
        check(self.num_classes >= 0, f"ViTConfig.num_classes must not be negative, given {self.num_classes}")
        check(
            self.register_tokens >= 0, f"ViTConfig.register_tokens must not be negative, given {self.register_tokens}"
        )
        check_multiple("image_size", self.image_size, self.patch_size)
        check(
            self.dim_head is not None or self.dim % self.heads == 0,
            f"dim {self.dim} is not a multiple of heads {self.heads}: change one, or give dim_head",
        )
        check(
            self.class_token or (self.pool == "mean" and not self.distillation),
            "class_token=False needs pool='mean' and distillation=False: there is no token to read",
        )
        check(
            not self.distillation or (self.pool == "cls" and self.register_tokens == 0),
            "distillation=True needs pool='cls' and register_tokens=0",
        )

    @property
    def grid(self):
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def prefix(self):
        return self.class_token + self.distillation + self.register_tokens

    @property
    def norm_after_pool(self):
        return self.pool == "mean" if self.pool_norm is None else self.pool_norm

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this ViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or the "
            f"model with eqx_vit.resize(model, ({height}, {width}))",
        )


class Block(eqx.Module):
    """Attention and MLP, each normalised before and added after (section 3.1, equations 2 and 3)."""

    norm1: LayerNorm
    attention: Attention
    scale1: LayerScale | eqx.nn.Identity
    norm2: LayerNorm
    mlp: MLP
    scale2: LayerScale | eqx.nn.Identity
    drop_path: DropPath

    def __init__(self, config: ViTConfig, *, key: PRNGKeyArray) -> None:
        attention_key, mlp_key = jax.random.split(key)
        inner = config.heads * (config.dim_head or config.dim // config.heads)
        self.norm1 = LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(
            config.dim,
            config.heads,
            head_dim=config.dim_head,
            qkv_bias=config.qkv_bias,
            qk_norm_eps=config.norm_eps if config.qk_norm else None,
            dropout=config.dropout,
            # The official code has q, k and v apart: the fans are those of one of them.
            qkv_init=xavier_uniform(config.dim, inner),
            projection_init=xavier_uniform(inner, config.dim),
            key=attention_key,
        )
        self.scale1 = _layer_scale(config)
        self.norm2 = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(
            config.dim,
            config.mlp_dim,
            activation=gelu_tanh if config.approximate_gelu else gelu,
            dropout=config.dropout,
            weight_init=xavier_uniform(config.dim, config.mlp_dim),
            bias_init=normal(1e-6),
            key=mlp_key,
        )
        self.scale2 = _layer_scale(config)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        tokens: Float[Array, "tokens dim"],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.scale1(self.attention(self.norm1(tokens), key=attention_key))
        tokens = tokens + self.drop_path(branch, drop_scale, key=path1_key)
        branch = self.scale2(self.mlp(self.norm2(tokens), key=mlp_key))
        return tokens + self.drop_path(branch, drop_scale, key=path2_key)


class ViT(eqx.Module):
    """Vision Transformer: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: PatchEmbedding
    class_token: Float[Array, "1 dim"] | None
    distillation_token: Float[Array, "1 dim"] | None
    register_tokens: Float[Array, "registers dim"] | None
    position_embedding: Float[Array, "positions dim"]
    embedding_dropout: Dropout
    norm_pre: LayerNorm | eqx.nn.Identity
    blocks: Stack
    norm: LayerNorm
    pre_logits: Linear | None
    head: Linear | eqx.nn.Identity
    head_dist: Linear | eqx.nn.Identity | None
    config: ViTConfig = eqx.field(static=True)

    def __init__(self, config: ViTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, position_key, distillation_key, register_key, blocks_key, head_key = jax.random.split(key, 6)
        dim, (rows, columns) = config.dim, config.grid
        patch_size = pair(config.patch_size)
        self.patch_embedding = PatchEmbedding(
            patch_size,
            config.channels,
            dim,
            use_bias=not config.pre_norm,
            weight_init=lecun_normal(math.prod(patch_size) * config.channels),
            bias_init=constant(0.0),
            key=patch_key,
        )
        self.class_token = jnp.zeros((1, dim)) if config.class_token else None
        self.distillation_token = truncated_normal()(distillation_key, (1, dim)) if config.distillation else None
        registers = (config.register_tokens, dim)
        self.register_tokens = normal(1e-6)(register_key, registers) if config.register_tokens else None
        positions = rows * columns + (config.prefix if config.prefix_positions else 0)
        self.position_embedding = normal(0.02)(position_key, (positions, dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.norm_pre = LayerNorm(dim, config.norm_eps) if config.pre_norm else eqx.nn.Identity()
        self.blocks = Stack.build(lambda key: Block(config, key=key), config.depth, key=blocks_key)
        self.norm = LayerNorm(dim, config.norm_eps)
        width = config.representation_size
        self.pre_logits = None if width is None else Linear(dim, width, weight_init=lecun_normal(dim), key=head_key)
        self.head = _head(config, key=head_key)
        self.head_dist = _head(config, key=head_key) if config.distillation else None
        self.config = config

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens, prefix first, after the final norm (unless that one follows the pool)."""
        embedding_key, blocks_key = split_or_none(key)
        patches = self.patch_embedding(image).reshape(-1, self.config.dim)
        if not self.config.prefix_positions:
            patches = patches + self.position_embedding
        parts = (self.class_token, self.distillation_token, self.register_tokens, patches)
        tokens = jnp.concatenate([part for part in parts if part is not None])
        if self.config.prefix_positions:
            tokens = tokens + self.position_embedding
        tokens = self.norm_pre(self.embedding_dropout(tokens, key=embedding_key))
        depth = self.config.depth
        scales = ramp(depth) if self.config.drop_path_ramp else jnp.ones(depth)
        tokens = self.blocks(tokens, scanned=(scales,), key=blocks_key)
        return tokens if self.config.norm_after_pool else self.norm(tokens)

    def heads(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " classes"], Float[Array, " classes"]]:
        """(class logits, distillation logits), for a distillation loss (DeiT, section 4).

        **Raises:** `ValueError` unless the config says `distillation=True`.
        """
        if self.head_dist is None:
            raise ValueError("this ViT has one head: a pair needs a config with distillation=True")
        tokens = self.features(image, key=key)
        return self.head(tokens[0]), self.head_dist(tokens[1])

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits: of the one head, or the mean of the pair with a distillation token."""
        if self.head_dist is not None:
            logits, distilled = self.heads(image, key=key)
            return (logits + distilled) / 2
        tokens = self.features(image, key=key)
        pooled = tokens[0] if self.config.pool == "cls" else jnp.mean(tokens[self.config.prefix :], axis=0)
        pooled = self.norm(pooled) if self.config.norm_after_pool else pooled
        return self.head(pooled if self.pre_logits is None else jnp.tanh(self.pre_logits(pooled)))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[ViTConfig, dict[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as timm does it."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


def _layer_scale(config: ViTConfig) -> LayerScale | eqx.nn.Identity:
    return eqx.nn.Identity() if config.layer_scale is None else LayerScale(config.dim, config.layer_scale)


def _head(config: ViTConfig, *, key: PRNGKeyArray) -> Linear | eqx.nn.Identity:
    if config.num_classes == 0:
        return eqx.nn.Identity()
    width = config.representation_size or config.dim
    return Linear(width, config.num_classes, weight_init=constant(0.0), key=key)  # zero, as the official code starts


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
    "vit_large_patch14_224": replace(_LARGE, patch_size=14),  # 304,203,752
    "vit_huge_patch14_224": _preset(1280, 32, 16, 14),  # 632,045,800
    "vit_giant_patch14_224": _preset(1408, 40, 16, 14, mlp_dim=6144),  # 1,012,611,432
    "vit_gigantic_patch14_224": _preset(1664, 48, 16, 14, mlp_dim=8192),  # 1,844,440,680
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
    "deit3_huge_patch14_224": _deit3(_preset(1280, 32, 16, 14)),  # 632,126,440
}


def _source(name: str, tag: str, crop: float) -> Source:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if name.startswith("deit") else (INCEPTION_MEAN, INCEPTION_STD)
    return Source(hub=f"timm/{name}.{tag}", mean=mean, std=std, crop=crop)


_TAGS = {  # tag and crop of timm's default checkpoint; those not named here follow the rule below
    "vit_base_patch16_224": ("augreg2_in21k_ft_in1k", 0.9),
    "vit_base_patch8_224": ("augreg2_in21k_ft_in1k", 0.9),
    "vit_large_patch32_384": ("orig_in21k_ft_in1k", 1.0),
    "vit_medium_patch16_gap_256": ("sw_in12k_ft_in1k", 0.95),
    "vit_medium_patch16_reg4_gap_256": ("sbb_in12k_ft_in1k", 0.95),
    "vit_little_patch16_reg4_gap_256": ("sbb_in1k", 0.95),
    "vit_wee_patch16_reg1_gap_256": ("sbb_in1k", 0.95),
}
_UNRELEASED = (  # no checkpoint with a 1000-class head
    "vit_small_patch8_224",
    "vit_large_patch32_224",
    "vit_large_patch14_224",
    "vit_huge_patch14_224",
    "vit_giant_patch14_224",
    "vit_gigantic_patch14_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_reg4_gap_256",
)


def _tag(name: str) -> tuple[str, float]:
    tag = "fb_in1k" if name.startswith("deit") else "augreg_in21k_ft_in1k"
    return tag, 1.0 if name.endswith("384") else 0.9


WEIGHTS: dict[str, Source] = {
    name: _source(name, *(_TAGS.get(name) or _tag(name))) for name in PRESETS if name not in _UNRELEASED
}
