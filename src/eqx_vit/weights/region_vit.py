"""RegionViT's names in the official code (IBM/RegionViT)."""

from eqx_vit.models.region_vit import RegionViTConfig
from eqx_vit.weights.checkpoints import Checkpoints
from eqx_vit.weights.rules import (
    Constant,
    Rule,
    copy,
    patch_embedding,
    relayout,
    stack,
    timm_block,
    weight_and_bias,
    with_prefix,
)


def _official(config: RegionViTConfig) -> list[Rule | Constant]:
    region_patch = (config.region_patch_size, config.region_patch_size)
    rules = [*_local_stem(config), *patch_embedding("region_stem", "cls_token.proj", region_patch)]
    for stage, sizes in enumerate(config.stages):
        ours, theirs = f"stages.{stage}", f"layers.{stage}"
        # The official code holds the one downsampling of both maps under two names.
        for name in ("proj", "proj_cls") if stage else ():
            rules += with_prefix(f"{ours}.downsample.", f"{theirs}.block.0.{name}.", _DOWNSAMPLE)
        rules += stack(f"{ours}.blocks", [f"{theirs}.block.{index + 1}." for index in range(sizes.depth)], _BLOCK)
        rules.append(copy(f"{ours}.peg.weight", f"{theirs}.peg.weight"))
    return [*rules, *weight_and_bias("norm", "norm"), *weight_and_bias("head", "head")]


def _local_stem(config: RegionViTConfig) -> list[Rule | Constant]:
    if not config.tokenize_local_3_conv:
        return weight_and_bias("local_stem.convs.0", "patch_embed.proj")
    convs = [
        rule
        for index in range(3)
        for rule in weight_and_bias(f"local_stem.convs.{index}", f"patch_embed.proj.{3 * index}")
    ]
    norms = [
        rule
        for index in range(2)
        for rule in _map_norm(f"local_stem.norms.{index}", f"patch_embed.proj.{3 * index + 1}")
    ]
    return [*convs, *norms]


def _map_norm(ours: str, theirs: str) -> list[Rule | Constant]:
    """A LayerNorm over the channels of a map, held there as 1 x channels x 1 x 1."""
    pattern = "1 channels 1 1 -> channels"
    return [relayout(f"{ours}.{name}", f"{theirs}.{name}", pattern) for name in ("weight", "bias")]


_DOWNSAMPLE = [*_map_norm("norm", "0"), *weight_and_bias("conv", "2")]

_BLOCK = [
    *timm_block(),
    *weight_and_bias("norm0", "norm0"),
    copy("attention.position_bias", "attn.rel_pos"),
]

CHECKPOINTS = Checkpoints(names={"official": _official})
