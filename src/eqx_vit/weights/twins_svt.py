"""Twins' names in the official code (Meituan-AutoML/Twins) and timm, which are the same."""

from eqx_vit.models.twins_svt import StageSizes, TwinsSVTConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_held
from eqx_vit.weights.rules import (
    Constant,
    Rule,
    patch_embedding,
    periodic_stack,
    timm_block,
    weight_and_bias,
    with_prefix,
)


def _official(config: TwinsSVTConfig) -> list[Rule | Constant]:
    check_held("the official Twins", config, {"peg_kernel_size": 3})
    rules: list[Rule | Constant] = []
    for index, sizes in enumerate(config.stages):
        rules += with_prefix(f"stages.{index}.", "", _stage(index, sizes))
    return [*rules, *weight_and_bias("norm", "norm"), *weight_and_bias("head", "head")]


def _stage(index: int, sizes: StageSizes) -> list[Rule | Constant]:
    first, *others = [f"blocks.{index}.{block}." for block in range(sizes.depth)]
    # Both kinds of attention: rules for arrays that a block does not have are skipped.
    block = [
        *timm_block(),
        *weight_and_bias("attention.attention.qkv", "attn.qkv"),
        *weight_and_bias("attention.attention.projection.linear", "attn.proj"),
        *weight_and_bias("attention.query", "attn.q"),
        *weight_and_bias("attention.key_value", "attn.kv"),
        *patch_embedding("attention.reduction", "attn.sr", (sizes.reduction, sizes.reduction)),
        *weight_and_bias("attention.norm", "attn.norm"),
    ]
    return [
        *patch_embedding("patch_embedding", f"patch_embeds.{index}.proj", (sizes.patch_size, sizes.patch_size)),
        *weight_and_bias("norm", f"patch_embeds.{index}.norm"),
        *weight_and_bias("position_encoding", f"pos_block.{index}.proj.0"),
        *with_prefix("first_block.", first, block),
        *periodic_stack("blocks", others, 2, len(others) // 2, block),
    ]


CHECKPOINTS = Checkpoints(names={"official": _official, "timm": _official})
