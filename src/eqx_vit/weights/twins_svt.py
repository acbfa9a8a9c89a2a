"""Twins' names in the official code (Meituan-AutoML/Twins) and timm, which are the same."""

from eqx_vit.models.twins_svt import StageSizes, TwinsSVTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, inside, patch_embedding, stack

# Both kinds of attention: rules for arrays that a block does not have are skipped.
_BLOCK = [
    *affine("norm1", "norm1"),
    *affine("attention.attention.qkv", "attn.qkv"),
    *affine("attention.attention.projection", "attn.proj"),
    *affine("attention.query", "attn.q"),
    *affine("attention.key_value", "attn.kv"),
    *affine("attention.norm", "attn.norm"),
    *affine("attention.projection", "attn.proj"),
    *affine("norm2", "norm2"),
    *affine("mlp.expand", "mlp.fc1"),
    *affine("mlp.contract", "mlp.fc2"),
]


def _official(config: TwinsSVTConfig) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = []
    for index, sizes in enumerate(config.stages):
        rules += inside(f"stages.{index}.", "", _stage(index, sizes))
    return [*rules, *affine("norm", "norm"), *affine("head", "head")]


def _stage(index: int, sizes: StageSizes) -> list[Rule | Constant]:
    patches = (sizes.patch_size, sizes.patch_size)
    blocks = [f"blocks.{index}.{block}." for block in range(sizes.blocks)]
    block = [*_BLOCK, *patch_embedding("attention.reduction", "attn.sr", (sizes.reduction, sizes.reduction))]
    paired = 1 + (sizes.blocks - 1) // 2 * 2
    return [
        *patch_embedding("patch_embedding", f"patch_embeds.{index}.proj", patches),
        *affine("norm", f"patch_embeds.{index}.norm"),
        *affine("position_encoding", f"pos_block.{index}.proj.0"),
        *inside("first.", blocks[0], block),
        *stack("pairs", blocks[1:paired:2], inside("global_block.", "", block)),
        *stack("pairs", blocks[2:paired:2], inside("local_block.", "", block)),
        *inside("last.", blocks[-1], block),
    ]


NAMES = {"official": _official, "timm": _official}
