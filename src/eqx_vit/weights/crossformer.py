"""CrossFormer's names in the official code (cheerss/CrossFormer)."""

from eqx_vit.models.crossformer import CrossFormerConfig
from eqx_vit.weights.rules import Constant, Rule, affine, stack


def _official(config: CrossFormerConfig) -> list[Rule | Constant]:
    rules = [*_embedding("embedding", "patch_embed.projs", config, 0), *affine("embedding_norm", "patch_embed.norm")]
    for stage, (depth, coolings) in enumerate(zip(config.depths, config.coolings_of_stages, strict=True)):
        names = [f"layers.{stage}.blocks.{index}." for index in range(depth)]
        rules += stack(f"stages.{stage}.blocks", names, _block())
        rules += stack(f"stages.{stage}.coolings", names[2 : 3 * coolings : 3], _COOLING)
    for stage in range(config.stages - 1):
        ours, theirs = f"merges.{stage}", f"layers.{stage}.downsample"
        rules += affine(f"{ours}.norm", f"{theirs}.norm")
        rules += _embedding(f"{ours}.embedding", f"{theirs}.reductions", config, stage + 1)
    return [*rules, *affine("norm", "norm"), *affine("head", "head")]


def _embedding(ours: str, theirs: str, config: CrossFormerConfig, stage: int) -> list[Rule | Constant]:
    kernels = range(len(config.kernels_of_stages[stage]))
    return [rule for index in kernels for rule in affine(f"{ours}.convs.{index}", f"{theirs}.{index}")]


def _block() -> list[Rule | Constant]:
    bias = [
        rule
        for index in range(3)
        for rule in (
            *affine(f"attention.position_bias.norms.{index}", f"attn.pos.pos{index + 1}.0"),
            *affine(f"attention.position_bias.linears.{index}", f"attn.pos.pos{index + 1}.2"),
        )
    ]
    return [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.position_bias.embedding", "attn.pos.pos_proj"),
        *bias,
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
        # Checkpoints of the first release hold these two tables; the code of today does not save them.
        Constant("attn.biases", None, saved=False),
        Constant("attn.relative_position_index", None, saved=False),
    ]


_COOLING = [*affine("conv", "ex_conv"), *affine("norm", "ex_ln")]

NAMES = {"official": _official}
