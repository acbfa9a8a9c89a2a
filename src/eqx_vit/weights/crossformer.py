"""CrossFormer's names in the official code (cheerss/CrossFormer)."""

from eqx_vit.models.crossformer import CrossFormerConfig, StageSizes
from eqx_vit.weights.checkpoints import Checkpoints
from eqx_vit.weights.rules import Constant, Rule, periodic_stack, timm_block, weight_and_bias, with_prefix


def _official(config: CrossFormerConfig) -> list[Rule | Constant]:
    first, *others = config.stages
    rules = [
        *_embedding("embedding", "patch_embed.projs", first),
        *weight_and_bias("embedding_norm", "patch_embed.norm"),
    ]
    for index, sizes in enumerate(config.stages):
        names = [f"layers.{index}.blocks.{block}." for block in range(sizes.depth)]
        rules += periodic_stack(f"stages.{index}", names, sizes.period, sizes.periods, _BLOCK)
    for index, sizes in enumerate(others):
        ours, theirs = f"mergings.{index}", f"layers.{index}.downsample"
        rules += weight_and_bias(f"{ours}.norm", f"{theirs}.norm")
        rules += _embedding(f"{ours}.embedding", f"{theirs}.reductions", sizes)
    return [*rules, *weight_and_bias("norm", "norm"), *weight_and_bias("head", "head")]


def _embedding(ours: str, theirs: str, sizes: StageSizes) -> list[Rule | Constant]:
    kernels = range(len(sizes.kernels))
    return [rule for index in kernels for rule in weight_and_bias(f"{ours}.convs.{index}", f"{theirs}.{index}")]


def _block() -> list[Rule | Constant]:
    bias = [
        rule
        for index in range(3)
        for rule in (
            *weight_and_bias(f"norms.{index}", f"pos{index + 1}.0"),
            *weight_and_bias(f"linears.{index}", f"pos{index + 1}.2"),
        )
    ]
    return [
        *timm_block(),
        *with_prefix("attention.position_bias.", "attn.pos.", [*weight_and_bias("embedding", "pos_proj"), *bias]),
    ]


# With and without a cooling layer: rules for arrays that a block does not have are skipped.
_BLOCK = [
    *_block(),
    *with_prefix("block.", "", _block()),
    *weight_and_bias("cooling.conv", "ex_conv"),
    *weight_and_bias("cooling.norm", "ex_ln"),
    # Checkpoints of the first release hold these two tables; the code of today does not save them.
    Constant("attn.biases"),
    Constant("attn.relative_position_index"),
]

CHECKPOINTS = Checkpoints(names={"official": _official})
