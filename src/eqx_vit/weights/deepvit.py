"""DeepViT's names in the official code (zhoudaquan/dvit_repo)."""

import itertools

from eqx_vit.layers.config import pair
from eqx_vit.models.deepvit import DeepViTConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim
from eqx_vit.weights.rules import (
    Constant,
    Rule,
    batch_norm,
    copy,
    patch_embedding,
    relayout,
    stack,
    timm_block,
    token,
    weight_and_bias,
)


def _official(config: DeepViTConfig) -> list[Rule | Constant]:
    check_head_dim("the official DeepViT", config.dim, config.heads, config.dim_head)
    prefixes = [f"blocks.{index}." for index in range(config.depth)]
    ends = list(itertools.accumulate(config.depths))
    height, width = pair(config.patch_size)
    patch_size = (height // 2, width // 2) if config.convolutional_stem else (height, width)
    re_attention_block = [
        *timm_block(),
        relayout(
            "attention.mix.weight",
            "attn.reatten_matrix.weight",
            "out heads height width -> out (heads height width)",
            {"height": 1, "width": 1},
        ),
        copy("attention.mix.bias", "attn.reatten_matrix.bias"),
        *batch_norm("attention.mix_norm", "attn.var_norm"),
    ]
    stacks = ("blocks", "re_attention_blocks", *(f"later_blocks.{index}" for index in range(len(ends) - 2)))
    runs = (
        stack(ours, prefixes[end - depth : end], re_attention_block if index % 2 else timm_block())
        for index, (ours, depth, end) in enumerate(zip(stacks, config.depths, ends, strict=True))
    )
    return [
        *(_stem() if config.convolutional_stem else []),
        *patch_embedding("patch_embedding", "patch_embed.proj", patch_size),
        token("class_token", "cls_token"),
        token("position_embedding", "pos_embed"),
        *itertools.chain(*runs),
        *weight_and_bias("norm", "norm"),
        *weight_and_bias("head", "head"),
    ]


def _stem() -> list[Rule | Constant]:
    return [
        copy("stem.conv1.weight", "patch_embed.conv1.weight"),
        *batch_norm("stem.norm1", "patch_embed.bn1"),
        copy("stem.conv2.weight", "patch_embed.conv2.weight"),
        *batch_norm("stem.norm2", "patch_embed.bn2"),
    ]


CHECKPOINTS = Checkpoints(names={"official": _official})
