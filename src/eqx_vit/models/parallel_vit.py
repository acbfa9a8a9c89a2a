"""Parallel ViT (arXiv 2203.09795, "Three things everyone should know about Vision Transformers").

The idea: pairs of layers run side by side instead of in turn. Half the depth, the same parameters, about the same
accuracy, and more work at once. `ParallelViTHMLP` also has the paper's hMLP stem, which suits masked pre-training: it
cuts patches in three steps that never mix two patches. The stem has BatchNorm, hence a class of its own, with state.

    image                     height width channels
    patch embedding           rows columns dim           rows = height / patch height, columns = width / patch width
      or hMLP stem            rows columns dim           cuts of 4, 2 and 2 pixels, each with BatchNorm
    class token + patches     tokens dim                 positions added to the patches alone
    depth x block             tokens dim                 the sum of all attentions, then the sum of all MLPs
    norm                      tokens dim
    pool                      dim                        the class token, or the mean of the patches
    head                      num_classes

Axes: tokens = 1 + rows * columns; dim = width of a token. Every branch has its own norm and its own scale.
No departure from the official code (facebookresearch/deit) and timm's `ParallelThingsBlock`; `prefix_positions` and
`drop_path_ramp` select between them (official: False, False; timm: True, True).
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
    Dropout,
    DropPath,
    LayerNorm,
    LayerScale,
    Linear,
    PatchEmbedding,
    Stack,
    gelu,
    image_door,
    ramp,
    resize_table,
    split_or_none,
)
from eqx_vit.layers.config import check, check_fields, check_multiple, check_positive, check_rates, pair
from eqx_vit.layers.init import truncated_normal
from eqx_vit.models.source import Source

_HMLP_CUTS = (4, 2, 2)


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class _Fields:
    """What both configurations hold. `image_size`, `patch_size` are in pixels, one number or (height, width)."""

    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_classes: int  # 0: no head, the pooled features come out
    dim: int
    depth: int  # of blocks: with two branches a depth of 18 holds the layers of a plain ViT of 36
    heads: int
    mlp_dim: int
    num_parallel_branches: int = 2
    pool: Literal["cls", "mean"] = "cls"  # mean: over the patches, the class token left out
    channels: int = 3
    dim_head: int | None = None  # None: dim // heads
    dropout: float = 0.0  # attention weights, attention output, inside and after the MLP
    emb_dropout: float = 0.0  # after the positions are added
    drop_path: float = 0.0  # stochastic depth, drawn for each branch
    drop_path_ramp: bool = False  # from 0 to the rate over depth (timm), or the same everywhere
    layer_scale: float | None = None  # start of the factors on the branches
    prefix_positions: bool = False  # True: the table has an entry for the class token too (timm)
    qkv_bias: bool = True
    norm_eps: float = 1e-6  # of the LayerNorms

    @property
    def grid(self):
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    def check_image_size(self, height, width):
        check(
            (height, width) == pair(self.image_size),
            f"this ParallelViT takes images of {pair(self.image_size)}, given {(height, width)}: resize the image, or "
            f"the model with eqx_vit.resize(model, ({height}, {width}))",
        )


@typing.no_type_check
def _check(config):
    check_fields(config)
    check_positive(config, "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim", "num_parallel_branches")
    check_positive(config, "channels", "dim_head")
    check_rates(config, "dropout", "emb_dropout", "drop_path")
    check(
        config.num_classes >= 0,
        f"{type(config).__name__}.num_classes must not be negative, given {config.num_classes}",
    )
    check_multiple("image_size", config.image_size, config.patch_size)
    check(
        config.dim_head is not None or config.dim % config.heads == 0,
        f"dim {config.dim} is not a multiple of heads {config.heads}: change one, or give dim_head",
    )


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class ParallelViTConfig(_Fields):
    """Everything that defines a ParallelViT."""

    def __post_init__(self):
        _check(self)


@typing.no_type_check
@dataclass(frozen=True, kw_only=True)
class ParallelViTHMLPConfig(_Fields):
    """Everything that defines a ParallelViTHMLP: the same fields, with patches of 16 and `dim` a multiple of 4."""

    def __post_init__(self):
        _check(self)
        check(
            pair(self.patch_size) == (16, 16),
            f"the hMLP stem cuts patches of 16 (by {_HMLP_CUTS}), given patch_size {self.patch_size}: use 16, or "
            "ParallelViTConfig",
        )
        check(self.dim % 4 == 0, f"the hMLP stem needs dim to be a multiple of 4, given {self.dim}")


class HMLPStem(eqx.nn.StatefulLayer):
    """Hierarchical MLP stem (section 5): non-overlapping cuts with BatchNorm after each and GELU between them."""

    cuts: tuple[PatchEmbedding, ...]
    norms: tuple[BatchNorm, ...]

    def __init__(self, channels: int, dim: int, *, key: PRNGKeyArray) -> None:
        widths = (channels, dim // 4, dim // 4, dim)
        keys = jax.random.split(key, len(_HMLP_CUTS))
        self.cuts = tuple(
            PatchEmbedding((size, size), before, after, key=key)
            for size, before, after, key in zip(_HMLP_CUTS, widths[:-1], widths[1:], keys, strict=True)
        )
        self.norms = tuple(BatchNorm(width) for width in widths[1:])

    def __call__(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "rows columns dim"], eqx.nn.State]:
        x, state = self.norms[0](self.cuts[0](image), state)
        for cut, norm in zip(self.cuts[1:], self.norms[1:], strict=True):
            x, state = norm(cut(gelu(x)), state)
        return x, state


class AttentionBranch(eqx.Module):
    """Norm, attention, scale: one of the attentions that run side by side."""

    norm: LayerNorm
    attention: Attention
    scale: LayerScale | eqx.nn.Identity
    drop_path: DropPath

    def __init__(self, config: _Fields, *, key: PRNGKeyArray) -> None:
        self.norm = LayerNorm(config.dim, config.norm_eps)
        self.attention = Attention(
            config.dim,
            config.heads,
            head_dim=config.dim_head,
            qkv_bias=config.qkv_bias,
            dropout=config.dropout,
            key=key,
        )
        self.scale = _layer_scale(config)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], drop_scale: Float[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, path_key = split_or_none(key)
        branch = self.scale(self.attention(self.norm(tokens), key=attention_key))
        return self.drop_path(branch, drop_scale, key=path_key)


class MLPBranch(eqx.Module):
    """Norm, MLP, scale: one of the MLPs that run side by side."""

    norm: LayerNorm
    mlp: MLP
    scale: LayerScale | eqx.nn.Identity
    drop_path: DropPath

    def __init__(self, config: _Fields, *, key: PRNGKeyArray) -> None:
        self.norm = LayerNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, dropout=config.dropout, key=key)
        self.scale = _layer_scale(config)
        self.drop_path = DropPath(config.drop_path)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], drop_scale: Float[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        mlp_key, path_key = split_or_none(key)
        branch = self.scale(self.mlp(self.norm(tokens), key=mlp_key))
        return self.drop_path(branch, drop_scale, key=path_key)


class Block(eqx.Module):
    """All attentions read the same tokens and are added to them; then all MLPs (section 3)."""

    attentions: Stack
    mlps: Stack

    def __init__(self, config: _Fields, *, key: PRNGKeyArray) -> None:
        attentions_key, mlps_key = jax.random.split(key)
        branches = config.num_parallel_branches
        self.attentions = Stack.build(lambda key: AttentionBranch(config, key=key), branches, key=attentions_key)
        self.mlps = Stack.build(lambda key: MLPBranch(config, key=key), branches, key=mlps_key)

    def __call__(
        self, tokens: Float[Array, "tokens dim"], drop_scale: Float[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attentions_key, mlps_key = split_or_none(key)
        tokens = tokens + self.attentions.summed(tokens, drop_scale, key=attentions_key)
        return tokens + self.mlps.summed(tokens, drop_scale, key=mlps_key)


class _Encoder(eqx.Module):
    """What the two models share: everything after the patches."""

    class_token: Float[Array, "1 dim"]
    position_embedding: Float[Array, "positions dim"]
    embedding_dropout: Dropout
    blocks: Stack
    norm: LayerNorm
    head: Linear | eqx.nn.Identity
    config: ParallelViTConfig | ParallelViTHMLPConfig = eqx.field(static=True)

    def _initialise(self, config: ParallelViTConfig | ParallelViTHMLPConfig, *, key: PRNGKeyArray) -> None:
        class_key, position_key, blocks_key, head_key = jax.random.split(key, 4)
        rows, columns = config.grid
        self.class_token = truncated_normal()(class_key, (1, config.dim))
        positions = rows * columns + config.prefix_positions
        self.position_embedding = truncated_normal()(position_key, (positions, config.dim))
        self.embedding_dropout = Dropout(config.emb_dropout)
        self.blocks = Stack.build(lambda key: Block(config, key=key), config.depth, key=blocks_key)
        self.norm = LayerNorm(config.dim, config.norm_eps)
        self.head = Linear(config.dim, config.num_classes, key=head_key) if config.num_classes else eqx.nn.Identity()
        self.config = config

    def _encode(
        self, patches: Float[Array, "rows columns dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        embedding_key, blocks_key = split_or_none(key)
        tokens = patches.reshape(-1, self.config.dim)
        if self.config.prefix_positions:
            tokens = jnp.concatenate([self.class_token, tokens]) + self.position_embedding
        else:
            tokens = jnp.concatenate([self.class_token, tokens + self.position_embedding])
        tokens = self.embedding_dropout(tokens, key=embedding_key)
        depth = self.config.depth
        scales = ramp(depth) if self.config.drop_path_ramp else jnp.ones(depth)
        return self.norm(self.blocks(tokens, scanned=(scales,), key=blocks_key))

    def _classify(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, " classes"]:
        return self.head(tokens[0] if self.config.pool == "cls" else jnp.mean(tokens[1:], axis=0))

    def resized(self, image_size: int | tuple[int, int]) -> tuple[_Fields, dict[str, Array]]:
        """The config for another image size, and the arrays that change: the table resampled as timm does it."""
        config = replace(self.config, image_size=image_size)
        return config, {"position_embedding": resize_table(self.position_embedding, self.config.grid, config.grid)}


class ParallelViT(_Encoder):
    """Parallel ViT: one image to logits. See the module's text for the shapes.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: PatchEmbedding

    def __init__(self, config: ParallelViTConfig, *, key: PRNGKeyArray) -> None:
        patch_key, encoder_key = jax.random.split(key)
        self.patch_embedding = PatchEmbedding(pair(config.patch_size), config.channels, config.dim, key=patch_key)
        self._initialise(config, key=encoder_key)

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens, the class token first, after the final norm."""
        return self._encode(self.patch_embedding(image), key=key)

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Logits."""
        return self._classify(self.features(image, key=key))


class ParallelViTHMLP(_Encoder, eqx.nn.StatefulLayer):
    """Parallel ViT with the hMLP stem: one image and the BatchNorm state to logits and state.

    Made by `eqx_vit.create`, called through `eqx_vit.forward` in training, since BatchNorm needs the batch.

    **Raises:** `ValueError` for an image that does not fit the config, or a live dropout without a key.
    """

    patch_embedding: HMLPStem

    def __init__(self, config: ParallelViTHMLPConfig, *, key: PRNGKeyArray) -> None:
        patch_key, encoder_key = jax.random.split(key)
        self.patch_embedding = HMLPStem(config.channels, config.dim, key=patch_key)
        self._initialise(config, key=encoder_key)

    @image_door
    def features(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        """All tokens, the class token first, after the final norm."""
        patches, state = self.patch_embedding(image, state)
        return self._encode(patches, key=key), state

    @image_door
    def __call__(
        self, image: Float[Array, "height width channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " classes"], eqx.nn.State]:
        """Logits and state."""
        tokens, state = self.features(image, state, key=key)
        return self._classify(tokens), state


def _layer_scale(config: _Fields) -> LayerScale | eqx.nn.Identity:
    return eqx.nn.Identity() if config.layer_scale is None else LayerScale(config.dim, config.layer_scale)


def _preset(
    dim: int, depth: int, *, branches: int = 2, heads: int | None = None, patch_size: int = 16
) -> ParallelViTConfig:
    return ParallelViTConfig(
        image_size=224,
        patch_size=patch_size,
        num_classes=1000,
        dim=dim,
        depth=depth,
        heads=dim // 64 if heads is None else heads,
        mlp_dim=4 * dim,
        num_parallel_branches=branches,
    )


_SMALL = _preset(384, 18)
_BASE = _preset(768, 18)
_SMALL_36 = _preset(384, 36, branches=1)  # in turn, not parallel: what the paper compares with
_BASE_36 = _preset(768, 36, branches=1)


def _timm(config: ParallelViTConfig) -> ParallelViTConfig:
    return replace(config, layer_scale=1e-5, prefix_positions=True, drop_path_ramp=True)


def _scaled(config: ParallelViTConfig) -> ParallelViTConfig:
    return replace(config, layer_scale=1e-4)


def _hmlp(dim: int, heads: int) -> ParallelViTHMLPConfig:
    return ParallelViTHMLPConfig(
        image_size=224,
        patch_size=16,
        num_classes=1000,
        dim=dim,
        depth=18,
        heads=heads,
        mlp_dim=4 * dim,
        layer_scale=1e-4,
    )


PRESETS: dict[str, ParallelViTConfig] = {
    "vit_small_patch16_18x2_224": _timm(_SMALL),  # 64,665,448
    "vit_base_patch16_18x2_224": _timm(_BASE),  # 256,731,880
    "vit_small_patch16_36x1_224": _timm(_SMALL_36),  # 64,665,448
    "deit_small_patch16_18x2": _SMALL,  # 64,637,416
    "deit_small_patch16_18x2_LS": _scaled(_SMALL),  # 64,665,064
    "deit_base_patch16_18x2": _BASE,  # 256,675,816
    "deit_base_patch16_18x2_LS": _scaled(_BASE),  # 256,731,112
    "deit_huge_patch14_26x2_LS": _scaled(_preset(1280, 26, heads=16, patch_size=14)),  # 1,025,726,440
    "deit_small_patch16_36": _SMALL_36,  # 64,637,416
    "deit_small_patch16_36_LS": _scaled(_SMALL_36),  # 64,665,064
    "deit_base_patch16_36": _BASE_36,  # 256,675,816
    "deit_base_patch16_36_LS": _scaled(_BASE_36),  # 256,731,112
}

# The official code has the stem but names no model with it.
HMLP_PRESETS: dict[str, ParallelViTHMLPConfig] = {
    "deit_small_patch16_18x2_LS_hmlp": _hmlp(384, 6),  # 64,560,424
    "deit_base_patch16_18x2_LS_hmlp": _hmlp(768, 12),  # 256,890,472
}

WEIGHTS: dict[str, Source] = {}  # none were released
HMLP_WEIGHTS: dict[str, Source] = {}
