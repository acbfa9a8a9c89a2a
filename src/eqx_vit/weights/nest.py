"""NesT's names in the official Flax code (google-research/nested-transformer) and timm."""

from itertools import accumulate

import numpy as np

from eqx_vit.layers.config import check, pair
from eqx_vit.models.nest import NesTConfig, StageSizes
from eqx_vit.weights import linen
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim, check_held
from eqx_vit.weights.rules import (
    Constant,
    Join,
    Rule,
    copy,
    patch_embedding,
    relayout,
    stack,
    timm_block,
    weight_and_bias,
    with_prefix,
)


def _timm(config: NesTConfig) -> list[Rule | Constant]:
    check(not config.multi_query, "timm has no NesT with multi_query=True: use source='official'")
    _check_heads("timm's NesT", config)
    rules = patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size))
    for stage, sizes in enumerate(config.stages):
        # timm merges the heads with the head innermost.
        merged, heads = "dim (size heads) -> dim (heads size)", {"heads": sizes.heads}
        block = [
            *timm_block(),
            *weight_and_bias("attention.attention.qkv", "attn.qkv"),
            relayout("attention.attention.projection.linear.weight", "attn.proj.weight", merged, heads),
            copy("attention.attention.projection.linear.bias", "attn.proj.bias"),
        ]
        parts = [
            _table("position_embedding", "pos_embed"),
            *weight_and_bias("aggregation.conv", "pool.conv"),
            *weight_and_bias("aggregation.norm", "pool.norm"),
            *stack("blocks", [f"transformer_encoder.{index}." for index in range(sizes.depth)], block),
        ]
        rules += with_prefix(f"stages.{stage}.", f"levels.{stage}.", parts)
    return [*rules, *weight_and_bias("norm", "norm"), *weight_and_bias("head", "head")]


def _check_heads(code: str, config: NesTConfig) -> None:
    for sizes in config.stages:
        check_head_dim(code, sizes.dim, sizes.heads, config.dim_head)


def _flax(config: NesTConfig) -> list[Rule | Constant]:
    _check_heads("the official NesT", config)
    check_held("the official NesT", config, {"pool_padding": "same"})
    rules = linen.patch_embedding("patch_embedding", "PatchEmbedding_0/Conv_0", pair(config.patch_size))
    ends = accumulate(sizes.depth for sizes in config.stages)
    for stage, (sizes, end) in enumerate(zip(config.stages, ends, strict=True)):
        attention = _multi_query(sizes) if config.multi_query else _multi_head(sizes)
        block = [
            *linen.layer_norm("norm1", "LayerNorm_0"),
            *with_prefix("attention.attention.", "", attention),
            *linen.layer_norm("norm2", "LayerNorm_1"),
            *linen.mlp("mlp", "MlpBlock_0"),
        ]
        # Blocks are numbered through all stages.
        prefixes = [f"EncoderNDBlock_{index}/" for index in range(end - sizes.depth, end)]
        pool = f"ConvPool_{stage - 1}"
        kernel = "height width dim out -> out dim height width"
        parts = [
            _table("position_embedding", f"PositionEmbedding_{stage}/pos_embedding"),
            relayout("aggregation.conv.weight", f"{pool}/Conv_0/kernel", kernel),
            copy("aggregation.conv.bias", f"{pool}/Conv_0/bias"),
            *linen.layer_norm("aggregation.norm", f"{pool}/LayerNorm_0"),
            *stack("blocks", prefixes, block),
        ]
        rules += with_prefix(f"stages.{stage}.", "", parts)
    return [*rules, *linen.layer_norm("norm", "LayerNorm_0"), *linen.dense("head", "Dense_0")]


def _multi_head(sizes: StageSizes) -> list[Rule | Constant]:
    name = "MultiHeadAttention_0"
    parts = [f"{name}/DenseGeneral_{index}" for index in (0, 1)]
    # The second map holds keys and values, side by side in each head.
    join = Join(
        load=lambda parts: np.concatenate(parts, axis=-1),
        save=lambda array: np.split(array, [sizes.head_dim], axis=-1),
    )
    axes = {"three": 3, "heads": sizes.heads}
    weight, bias = "dim heads (three size) -> (three heads size) dim", "heads (three size) -> (three heads size)"
    return [
        relayout("qkv.weight", [f"{part}/kernel" for part in parts], weight, axes, join=join),
        relayout("qkv.bias", [f"{part}/bias" for part in parts], bias, axes, join=join),
        *_projection(name, sizes),
    ]


def _multi_query(sizes: StageSizes) -> list[Rule | Constant]:
    name = "MultiQueryAttention_0"
    return [
        *linen.projections("query", [f"{name}/DenseGeneral_0"], sizes.heads),
        *linen.dense("key_value", f"{name}/Dense_0"),
        *_projection(name, sizes),
    ]


def _projection(name: str, sizes: StageSizes) -> list[Rule | Constant]:
    pattern = "heads size dim -> dim (heads size)"
    return [
        relayout("projection.linear.weight", f"{name}/proj_kernel", pattern, {"heads": sizes.heads}),
        copy("projection.linear.bias", f"{name}/bias"),
    ]


def _table(ours: str, theirs: str) -> Rule:
    return relayout(ours, theirs, "1 windows positions dim -> windows positions dim")


CHECKPOINTS = Checkpoints(names={"official": _flax, "flax": _flax, "timm": _timm})
