"""ScalableViT's names in the official code (Yangr116/ScalableViT)."""

import numpy as np

from eqx_vit.models.scalable_vit import ScalableViTConfig, StageSizes
from eqx_vit.weights.checkpoints import Checkpoints
from eqx_vit.weights.rules import (
    Constant,
    Join,
    Rule,
    copy,
    periodic_stack,
    relayout,
    timm_block,
    weight_and_bias,
    with_prefix,
)


def _official(config: ScalableViTConfig) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = [*weight_and_bias("norm", "norm")]
    for index, sizes in enumerate(config.stages):
        rules += with_prefix(f"stages.{index}.", "", _stage(index, sizes))
    if config.head_dim is None:
        return [*rules, *weight_and_bias("head", "head")]
    return [
        *rules,
        *weight_and_bias("head.fc1", "head.0"),
        *weight_and_bias("head.norm", "head.1"),
        *weight_and_bias("head.fc2", "head.3"),
    ]


def _stage(index: int, sizes: StageSizes) -> list[Rule | Constant]:
    first, *others = [f"stages.{index}.{block}." for block in range(sizes.depth)]
    # Both kinds of attention: rules for arrays that a block does not have are skipped.
    block = [
        *timm_block(),
        *weight_and_bias("attention.local_interactive_module", "attn.lim_func"),
        *weight_and_bias("attention.query", "attn.q"),
        *with_prefix("attention.", "attn.", _key_value(sizes)),
    ]
    return [
        *weight_and_bias("patch_embedding", f"patch_embeds.{index}.proj"),
        *weight_and_bias("norm", f"patch_embeds.{index}.norm"),
        *weight_and_bias("position_generator", f"pos_block.{index}.proj.0"),
        *with_prefix("first_block.", first, block),
        *periodic_stack("blocks", others, 2, len(others) // 2, block),
    ]


def _key_value(sizes: StageSizes) -> list[Rule | Constant]:
    if sizes.reduction == 1:
        return weight_and_bias("key_value", "kv")
    inner = sizes.heads * sizes.key_dim
    rows = Join(load=np.concatenate, save=lambda array: np.split(array, [inner]))
    pattern = "out channels height width -> out (channels height width)"
    return [
        *weight_and_bias("reduction.conv", "reduction.0"),
        relayout("reduction.linear.weight", "reduction.1.weight", pattern, {"height": 1, "width": 1}),
        copy("reduction.linear.bias", "reduction.1.bias"),
        *weight_and_bias("reduction.norm", "norm_act.0"),
        relayout("key_value.weight", ["k.weight", "v.weight"], join=rows),
        relayout("key_value.bias", ["k.bias", "v.bias"], join=rows),
    ]


CHECKPOINTS = Checkpoints(names={"official": _official})
