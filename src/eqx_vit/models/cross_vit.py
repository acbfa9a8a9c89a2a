"""CrossViT (arXiv 2103.14899): two vision transformers see one image at two patch sizes and exchange class tokens.

The idea: a small-patch branch (many narrow tokens) and a large-patch branch (few wide ones) run side by side; in each
multi-scale block the class token of a branch attends to the patches of the other one: cross-attention in linear time.

Axes: small and large = the branches 0 (`sm_`) and 1 (`lg_`); tokens = class token + rows * columns of the branch.
No departure from the official code (IBM/CrossViT) and timm's `CrossVit`. As there, only the first of several
cross-attentions (`cross_attn_depth` above 1) sees the patches.
"""

import functools
import itertools
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import (
    MLP,
    Attention,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    OutputProjection,
    PatchEmbedding,
    PreNormBlock,
    Stack,
    attend,
    drop_path_schedule,
    gelu,
    make_head,
    merge_heads,
    pool_tokens,
    resize_grid,
    split_heads,
    split_or_none,
)
from eqx_vit.layers.config import Size, check, check_multiple, check_stages, no_type_check, pair, per_stage
from eqx_vit.layers.init import truncated_normal
from eqx_vit.model import ImageModelConfig, StatelessImageModel
from eqx_vit.models.source import Source
from eqx_vit.points import AttentionPoint, FeaturePoint

Tokens = tuple[Float[Array, "small_tokens small_dim"], Float[Array, "large_tokens large_dim"]]


class Branch(NamedTuple):
    """The numbers of one branch."""

    dim: int
    patch_size: tuple[int, int]
    image_size: tuple[int, int]  # that the branch sees
    depths: tuple[int, ...]  # ViT blocks in each multi-scale block
    heads: int
    head_dim: int
    mlp_dim: int

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches; what a scaled image has beyond whole patches is left out, as in timm."""
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        return height // patch_height, width // patch_width


@no_type_check
@dataclass(frozen=True, kw_only=True)
class CrossViTConfig(ImageModelConfig["CrossViT"]):
    """Everything that defines a CrossViT. `sm_` is the branch of small patches, `lg_` that of large ones."""

    MAY_BE_ZERO = ("cross_attn_depth",)
    COUNTS = ("depth", "cross_attn_depth")

    image_size: Size
    num_classes: int  # 0: no head, the pooled features of both branches come out, one after the other
    sm_dim: int
    lg_dim: int
    depth: int = 3  # multi-scale blocks
    sm_patch_size: Size = 12
    sm_enc_depth: int | tuple[int, ...] = 1  # ViT blocks in a multi-scale block, or in each of them
    sm_enc_heads: int = 8
    sm_enc_mlp_dim: int = 2048
    sm_enc_dim_head: int | None = None  # None: sm_dim // sm_enc_heads
    lg_patch_size: Size = 16
    lg_enc_depth: int | tuple[int, ...] = 4
    lg_enc_heads: int = 8
    lg_enc_mlp_dim: int = 2048
    lg_enc_dim_head: int | None = None  # None: lg_dim // lg_enc_heads
    cross_attn_depth: int = 1  # 0 is 1 under the older checkpoint names, which all released models have
    cross_attn_heads: int | None = None  # None: those of the branch that is attended to
    cross_attn_dim_head: int | None = None  # None: its dim // heads
    dropout: float = 0.0  # attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    image_scale: tuple[float, float] = (1.0, 1.0)  # the image size of each branch, in multiples of image_size
    crop_scale: bool = False  # cut the centre out of a larger image instead of resampling it
    convolutional_embedding: bool = False  # three convolutions (the dagger models), for patches of 12 or 16
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches
    attention_dropout: float = 0.0  # attention weights
    drop_path: float = 0.0  # stochastic depth, from 0 to the rate over depth; the paper trains with 0.1
    qkv_bias: bool = True
    norm_eps: float = 1e-6

    def check(self) -> None:
        check(min(self.image_scale) > 0, f"image_scale must be above 0, given {self.image_scale}")
        check_stages(self, self.depth, "depth", "sm_enc_depth", "lg_enc_depth")
        for name, branch, scale in zip(("sm", "lg"), self.branches, self.image_scale, strict=True):
            dim, patch_size, patches = branch.dim, branch.patch_size, f"{name}_patch_size"
            for owner, heads in ((f"{name}_enc", branch.heads), ("cross_attn", self.cross_attn_heads or branch.heads)):
                check(
                    getattr(self, f"{owner}_dim_head") is not None or dim % heads == 0,
                    f"{name}_dim {dim} is not a multiple of {owner}_heads {heads}: change one, or give "
                    f"{owner}_dim_head",
                )
            if scale == 1:
                check_multiple("image_size", self.image_size, getattr(self, patches))
            elif self.convolutional_embedding:
                name_of_size = f"image_size * {scale}, the image of the branch of {patches},"
                check_multiple(name_of_size, branch.image_size, patch_size)
            check(
                min(branch.grid) > 0,
                f"image_size {self.image_size} * {scale} is smaller than {patches} {patch_size}: enlarge image_size",
            )
            check(
                not self.convolutional_embedding or (patch_size in ((12, 12), (16, 16)) and dim >= 4),
                "convolutional_embedding=True needs patches of 12 or 16 and dims of 4 or more, given "
                f"{patches} {patch_size} and dim {dim}",
            )

    @property
    def branches(self) -> tuple[Branch, Branch]:
        return self._branch("sm", self.image_scale[0]), self._branch("lg", self.image_scale[1])

    def _branch(self, name: str, scale: float) -> Branch:
        fields = ("dim", "patch_size", "enc_depth", "enc_heads", "enc_dim_head", "enc_mlp_dim")
        dim, patch_size, depth, heads, head_dim, mlp_dim = (getattr(self, f"{name}_{field}") for field in fields)
        # The small amount keeps 240 * (224 / 240), which is not an exact float, from falling to 223.
        height, width = (int(side * scale + 1e-6) for side in pair(self.image_size))
        depths, head_dim = per_stage(depth, self.depth), head_dim or dim // heads
        return Branch(dim, pair(patch_size), (height, width), depths, heads, head_dim, mlp_dim)

    @property
    def runs(self) -> tuple[tuple[tuple[int, int], int], ...]:
        """The multi-scale blocks as runs of equal ones: ((small, large) depths, number of blocks)."""
        small, large = self.branches
        runs = itertools.groupby(zip(small.depths, large.depths, strict=True))
        return tuple((depths, len(list(run))) for depths, run in runs)


class ConvPatchEmbedding(eqx.Module):
    """The dagger models' patch embedding: three convolutions with ReLU between them (section 4.1)."""

    convolutions: tuple[Conv, Conv, Conv]

    def __init__(self, patch_size: int, channels: int, dim: int, *, key: PRNGKeyArray) -> None:
        first_key, second_key, third_key = jax.random.split(key, 3)
        quarter, half = dim // 4, dim // 2
        stride, padding = (3, 0) if patch_size == 12 else (2, 1)
        self.convolutions = (
            Conv(channels, quarter, 7, stride=4, padding=3, key=first_key),
            Conv(quarter, half, 3, stride=stride, padding=padding, key=second_key),
            Conv(half, dim, 3, stride=patch_size // (4 * stride), padding=1, key=third_key),
        )

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "rows columns dim"]:
        first, second, third = self.convolutions
        return third(jax.nn.relu(second(jax.nn.relu(first(image)))))


class Embedding(eqx.Module):
    """The tokens of one branch: its image, cut and embedded, behind its class token, with positions."""

    patch_embedding: PatchEmbedding | ConvPatchEmbedding
    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "tokens dim"]
    dropout: Dropout
    branch: Branch = eqx.field(static=True)
    crop: bool = eqx.field(static=True)

    def __init__(self, config: CrossViTConfig, branch: Branch, *, key: PRNGKeyArray) -> None:
        patch_key, token_key, position_key = jax.random.split(key, 3)
        dim, (rows, columns) = branch.dim, branch.grid
        self.patch_embedding = (
            ConvPatchEmbedding(branch.patch_size[0], config.channels, dim, key=patch_key)
            if config.convolutional_embedding
            else PatchEmbedding(branch.patch_size, config.channels, dim, key=patch_key)
        )
        self.class_token = truncated_normal()(token_key, (1, dim))
        self.position_embedding = truncated_normal()(position_key, (1 + rows * columns, dim))
        self.dropout = Dropout(config.emb_dropout)
        self.branch = branch
        self.crop = config.crop_scale

    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        (rows, columns), (height, width) = self.branch.grid, self.branch.patch_size
        scaled = scale_image(image, self.branch.image_size, crop=self.crop)
        patches = self.patch_embedding(scaled[: rows * height, : columns * width])
        tokens = jnp.concatenate([self.class_token, patches.reshape(-1, patches.shape[-1])])
        return self.dropout(tokens + self.position_embedding, key=key)


class CrossAttention(eqx.Module):
    """A class token attends to itself and patches (equations 4 and 5); the residual is the token before the norm."""

    norm: LayerNorm
    query: Linear
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: OutputProjection
    attention_dropout: Dropout
    drop_path: DropPath
    heads: int = eqx.field(static=True)

    def __init__(self, config: CrossViTConfig, other: Branch, *, key: PRNGKeyArray) -> None:
        """`other` is the branch of the patches."""
        query_key, key_value_key, projection_key = jax.random.split(key, 3)
        self.heads = config.cross_attn_heads or other.heads
        inner = self.heads * (config.cross_attn_dim_head or other.dim // self.heads)
        self.norm = LayerNorm(other.dim, config.norm_eps)
        self.query = Linear(other.dim, inner, use_bias=config.qkv_bias, key=query_key)
        self.key_value = Linear(other.dim, 2 * inner, use_bias=config.qkv_bias, key=key_value_key)
        self.projection = OutputProjection(inner, other.dim, dropout=config.dropout, key=projection_key)
        self.attention_dropout = Dropout(config.attention_dropout)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self,
        token: Float[Array, "1 dim"],
        patches: Float[Array, "patches dim"],
        drop_scale: Float[Array, ""],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "1 dim"]:
        attention_key, projection_key, path_key = split_or_none(key, 3)
        normalised = self.norm(jnp.concatenate([token, patches]))
        (query,) = split_heads(self.query(normalised[:1]), 1, self.heads)
        keys, value = split_heads(self.key_value(normalised), 2, self.heads)
        attended = attend(query, keys, value, dropout=self.attention_dropout, dropout_key=attention_key)
        branch = self.projection(merge_heads(attended), key=projection_key)
        return token + self.drop_path(branch, drop_scale, key=path_key)


class CrossFusion(eqx.Module):
    """The new class token of a branch: projected, fused with the other branch's patches, projected back."""

    project_norm: LayerNorm
    project: Linear
    attentions: tuple[CrossAttention, ...]
    revert_norm: LayerNorm
    revert: Linear

    def __init__(self, config: CrossViTConfig, own: Branch, other: Branch, *, key: PRNGKeyArray) -> None:
        project_key, attentions_key, revert_key = jax.random.split(key, 3)
        keys = jax.random.split(attentions_key, max(config.cross_attn_depth, 1))
        self.project_norm = LayerNorm(own.dim, config.norm_eps)
        self.project = Linear(own.dim, other.dim, key=project_key)
        self.attentions = tuple(CrossAttention(config, other, key=attention_key) for attention_key in keys)
        self.revert_norm = LayerNorm(other.dim, config.norm_eps)
        self.revert = Linear(other.dim, own.dim, key=revert_key)

    def __call__(
        self,
        token: Float[Array, "1 dim"],
        patches: Float[Array, "patches other_dim"],
        drop_scale: Float[Array, ""],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "1 dim"]:
        token = self.project(gelu(self.project_norm(token)))
        for attention, attention_key in zip(self.attentions, split_or_none(key, len(self.attentions)), strict=True):
            token = attention(token, patches, drop_scale, key=attention_key)
            patches = patches[:0]  # the official chain hands on the class token alone
        return self.revert(gelu(self.revert_norm(token)))


class MultiScaleBlock(eqx.Module):
    """Both branches' encoders, then both fusions of class tokens, each of which sees the branches before either."""

    branches: tuple[Stack[PreNormBlock[Attention]], Stack[PreNormBlock[Attention]]]
    fusions: tuple[CrossFusion, CrossFusion]

    def __init__(self, config: CrossViTConfig, depths: tuple[int, int], *, key: PRNGKeyArray) -> None:
        small_key, large_key, small_fusion_key, large_fusion_key = jax.random.split(key, 4)
        small, large = config.branches
        self.branches = (
            Stack.build(functools.partial(_make_block, config, small), depths[0], key=small_key),
            Stack.build(functools.partial(_make_block, config, large), depths[1], key=large_key),
        )
        self.fusions = (
            CrossFusion(config, small, large, key=small_fusion_key),
            CrossFusion(config, large, small, key=large_fusion_key),
        )

    def __call__(
        self, tokens: Tokens, drop_scales: Float[Array, " scales"], *, key: PRNGKeyArray | None = None
    ) -> Tokens:
        """`drop_scales`: both branches' blocks take them from the start, both fusions the last one."""
        small_key, large_key, small_fusion_key, large_fusion_key = split_or_none(key, 4)
        small_blocks, large_blocks = self.branches
        small = small_blocks(tokens[0], xs=(drop_scales[: len(small_blocks)],), key=small_key)
        large = large_blocks(tokens[1], xs=(drop_scales[: len(large_blocks)],), key=large_key)
        small_token = self.fusions[0](small[:1], large[1:], drop_scales[-1], key=small_fusion_key)
        large_token = self.fusions[1](large[:1], small[1:], drop_scales[-1], key=large_fusion_key)
        return jnp.concatenate([small_token, small[1:]]), jnp.concatenate([large_token, large[1:]])


class CrossViT(StatelessImageModel[CrossViTConfig, Tokens]):
    """CrossViT: one image of any size to logits; each branch resamples the image to its own.

        step                       shape                  crossvit_small_240
        image                      height width channels  240 240 3
        image of branch i          height width channels  240 240 3, 224 224 3
        patch embedding            rows columns dim[i]    20 20 192, 14 14 384
        class token + patches      tokens dim[i]          401 192, 197 384
        depth x multi-scale block  tokens dim[i]          401 192, 197 384
        norm, small branch         tokens dim[0]          401 192
        norm, large branch         tokens dim[1]          197 384
        pool                       dim[i]                 192, 384
        head                       num_classes            1000

    The image of branch i is image_size * image_scale[i]. The patch embedding is one convolution, or three (the dagger
    models). A multi-scale block is a ViT encoder in each branch, then for each branch's class token: to the other
    branch's dim, cross-attention to its patches, and back. The pool is the class token, or the mean of the patches; the
    logits are the mean of those of both branches.
    """

    embeddings: tuple[Embedding, Embedding]
    blocks: tuple[Stack[MultiScaleBlock], ...]  # one stack for each run of equal ones
    norm: tuple[LayerNorm, LayerNorm]
    head: tuple[Linear | eqx.nn.Identity, Linear | eqx.nn.Identity]

    def __init__(self, config: CrossViTConfig, *, key: PRNGKeyArray) -> None:
        small_key, large_key, blocks_key, small_head_key, large_head_key = jax.random.split(key, 5)
        (small, large), runs = config.branches, config.runs
        self.config = config
        self.embeddings = (Embedding(config, small, key=small_key), Embedding(config, large, key=large_key))
        self.blocks = tuple(
            Stack.build(functools.partial(MultiScaleBlock, config, depths), count, key=run_key)
            for (depths, count), run_key in zip(runs, jax.random.split(blocks_key, len(runs)), strict=True)
        )
        self.norm = (LayerNorm(small.dim, config.norm_eps), LayerNorm(large.dim, config.norm_eps))
        self.head = (
            make_head(small.dim, config.num_classes, key=small_head_key),
            make_head(large.dim, config.num_classes, key=large_head_key),
        )

    def embed(self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None) -> Tokens:
        """(small, large) class token and patches, with their positions."""
        small_key, large_key = split_or_none(key)
        return self.embeddings[0](image, key=small_key), self.embeddings[1](image, key=large_key)

    def encode(self, x: Tokens, *, key: PRNGKeyArray | None) -> Tokens:
        """(small, large) tokens, class token first, after the final norms."""
        tokens, scales = x, iter(drop_path_scales(self.config))
        for blocks, run_key in zip(self.blocks, split_or_none(key, len(self.blocks)), strict=True):
            own = jnp.stack(list(itertools.islice(scales, len(blocks))))
            tokens = blocks(tokens, xs=(own,), key=run_key)
        return self.norm[0](tokens[0]), self.norm[1](tokens[1])

    def classify(self, features: Tokens) -> Float[Array, " classes"]:
        """Logits: the mean of those of both branches."""
        small, large = (pool_tokens(tokens, self.config.pool, 1) for tokens in features)
        if self.config.num_classes == 0:
            return jnp.concatenate([small, large])
        return (self.head[0](small) + self.head[1](large)) / 2

    def feature_points(self, height: int, width: int) -> list[FeaturePoint]:
        """The output of each multi-scale block: of the branch of small patches, then of that of large ones."""
        reductions = [  # of the image, which each branch sees at another scale
            (round(branch.patch_size[0] / scale), round(branch.patch_size[1] / scale))
            for branch, scale in zip(self.config.branches, self.config.image_scale, strict=True)
        ]
        return [
            FeaturePoint(
                f"blocks.{run}",
                branch.dim,
                reductions[part],
                (index,),
                part,
                branch.grid,
                prefix=1,
                norm=self.norm[part],
            )
            for part, branch in enumerate(self.config.branches)
            for run, blocks in enumerate(self.blocks)
            for index in range(len(blocks))
        ]

    def cam_point(self, height: int, width: int) -> FeaturePoint:
        """The small patches that the large branch's class token attends to last."""
        point = self.feature_points(height, width)[0]
        return point._replace(module=f"blocks.{len(self.blocks) - 1}.branches.0", block=(-1, -1), part=None)

    def attention_points(self, height: int, width: int) -> list[AttentionPoint]:
        """The large branch's class token, which attends to the small patches."""
        grid = self.config.branches[0].grid
        names = [f"blocks.{run}.fusions.1.attentions.0" for run in range(len(self.blocks))]
        return [AttentionPoint(name, grid, 1, self_attention=False) for name in names]


def _make_block(config: CrossViTConfig, branch: Branch, *, key: PRNGKeyArray) -> PreNormBlock[Attention]:
    attention_key, mlp_key = jax.random.split(key)
    attention = Attention(
        branch.dim,
        branch.heads,
        head_dim=branch.head_dim,
        qkv_bias=config.qkv_bias,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        key=attention_key,
    )
    mlp = MLP(branch.dim, branch.mlp_dim, dropout=config.dropout, key=mlp_key)
    return PreNormBlock(attention, mlp, branch.dim, norm_eps=config.norm_eps, drop_path=config.drop_path)


def scale_image(
    image: Float[Array, "height width channels"], size: tuple[int, int], *, crop: bool
) -> Float[Array, "new_height new_width channels"]:
    """The image resampled to (height, width), bicubic, not antialiased; with `crop` cut to it where it is larger."""
    height, width = image.shape[:2]
    if crop and height >= size[0] and width >= size[1]:
        top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
        return image[top : top + size[0], left : left + size[1]]
    return resize_grid(image, size, antialias=False)


def drop_path_scales(config: CrossViTConfig) -> tuple[Float[Array, " scales"], ...]:
    """The factors on the drop-path rate in each multi-scale block, one line over the deeper branch and the fusions."""
    small, large = config.branches
    depths = zip(small.depths, large.depths, strict=True)
    return drop_path_schedule([max(both) + config.cross_attn_depth for both in depths])


def _preset(dim: int, heads: int, large_depth: int, mlp_ratio: int) -> CrossViTConfig:
    return CrossViTConfig(
        image_size=240,
        image_scale=(1.0, 224 / 240),
        num_classes=1000,
        sm_dim=dim,
        sm_enc_heads=heads,
        sm_enc_mlp_dim=mlp_ratio * dim,
        lg_dim=2 * dim,
        lg_enc_depth=large_depth,
        lg_enc_heads=heads,
        lg_enc_mlp_dim=mlp_ratio * 2 * dim,
        cross_attn_depth=0,
    )


def _dagger(config: CrossViTConfig, image_size: int = 240) -> CrossViTConfig:
    scale = {240: 224 / 240, 408: 384 / 408}[image_size]
    return replace(config, convolutional_embedding=True, image_size=image_size, image_scale=(1.0, scale))


_9, _15, _18 = _preset(128, 4, 3, 3), _preset(192, 6, 5, 3), _preset(224, 7, 6, 3)

PRESETS: dict[str, CrossViTConfig] = {
    "crossvit_tiny_240": _preset(96, 3, 4, 4),  # 7,014,800
    "crossvit_small_240": _preset(192, 6, 4, 4),  # 26,856,272
    "crossvit_base_240": _preset(384, 12, 4, 4),  # 105,025,232
    "crossvit_9_240": _9,  # 8,553,296
    "crossvit_15_240": _15,  # 27,528,464
    "crossvit_18_240": _18,  # 43,271,408
    "crossvit_9_dagger_240": _dagger(_9),  # 8,776,592
    "crossvit_15_dagger_240": _dagger(_15),  # 28,209,008
    "crossvit_18_dagger_240": _dagger(_18),  # 44,266,976
    "crossvit_15_dagger_408": _dagger(_15, 408),  # 28,500,080
    "crossvit_18_dagger_408": _dagger(_18, 408),  # 44,606,560
}

WEIGHTS: dict[str, Source] = {
    name: Source(hub=f"timm/{name}.in1k", crop=1.0 if name.endswith("408") else 0.875) for name in PRESETS
}
