"""CrossViT's names in the official code (IBM/CrossViT) and timm."""

from collections.abc import Sequence

from eqx_vit.models.cross_vit import CrossViTConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim
from eqx_vit.weights.rules import (
    Constant,
    KeyRenames,
    Rule,
    fuse,
    patch_embedding,
    stack,
    timm_block,
    token,
    weight_and_bias,
)


def _official(config: CrossViTConfig) -> list[Rule | Constant]:
    return _rules(config, ".")


def _timm(config: CrossViTConfig) -> list[Rule | Constant]:
    return _rules(config, "_")


def _rules(config: CrossViTConfig, dot: str) -> list[Rule | Constant]:
    """`dot` stands before the branch's number in the names of tokens and tables, the one difference of the two."""
    code = "the official CrossViT"
    check_head_dim(code, config.sm_dim, config.sm_enc_heads, config.sm_enc_dim_head, "sm_enc_dim_head")
    check_head_dim(code, config.lg_dim, config.lg_enc_heads, config.lg_enc_dim_head, "lg_enc_dim_head")
    for branch in config.branches:
        heads = config.cross_attn_heads or branch.heads
        check_head_dim(code, branch.dim, heads, config.cross_attn_dim_head, "cross_attn_dim_head")
    rules: list[Rule | Constant] = []
    for index, branch in enumerate(config.branches):
        ours, theirs = f"embeddings.{index}", f"patch_embed.{index}.proj"
        rules += [
            token(f"{ours}.class_token", f"cls_token{dot}{index}"),
            token(f"{ours}.position_embedding", f"pos_embed{dot}{index}"),
            *patch_embedding(f"{ours}.patch_embedding", theirs, branch.patch_size),
            *weight_and_bias(f"norm.{index}", f"norm.{index}"),
            *weight_and_bias(f"head.{index}", f"head.{index}"),
        ]
        for layer in range(3):
            rules += weight_and_bias(f"{ours}.patch_embedding.convolutions.{layer}", f"{theirs}.{2 * layer}")
    start = 0
    for index, (depths, count) in enumerate(config.runs):
        prefixes = [f"blocks.{number}." for number in range(start, start + count)]
        rules += stack(f"blocks.{index}", prefixes, [*_branches(depths), *_fusion(config, 0), *_fusion(config, 1)])
        start += count
    return rules


def _branches(depths: Sequence[int]) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = []
    for branch, depth in enumerate(depths):
        rules += stack(f"branches.{branch}", [f"blocks.{branch}.{index}." for index in range(depth)], timm_block())
    return rules


def _fusion(config: CrossViTConfig, branch: int) -> list[Rule | Constant]:
    ours = f"fusions.{branch}"
    rules = [
        *weight_and_bias(f"{ours}.project_norm", f"projs.{branch}.0"),
        *weight_and_bias(f"{ours}.project", f"projs.{branch}.2"),
        *weight_and_bias(f"{ours}.revert_norm", f"revert_projs.{branch}.0"),
        *weight_and_bias(f"{ours}.revert", f"revert_projs.{branch}.2"),
    ]
    for index in range(max(config.cross_attn_depth, 1)):
        # A depth of 0 means one block without an index of its own: the layout of every released checkpoint.
        theirs = f"fusion.{branch}.{index}" if config.cross_attn_depth else f"fusion.{branch}"
        attention = f"{ours}.attentions.{index}"
        rules += [
            *weight_and_bias(f"{attention}.norm", f"{theirs}.norm1"),
            *weight_and_bias(f"{attention}.query", f"{theirs}.attn.wq"),
            *fuse(f"{attention}.key_value", [f"{theirs}.attn.wk", f"{theirs}.attn.wv"]),
            *weight_and_bias(f"{attention}.projection.linear", f"{theirs}.attn.proj"),
        ]
    return rules


# Files from before timm renamed them.
_RENAMES: KeyRenames = [(r"^(cls_token|pos_embed)\.([01])$", r"\1_\2")]

CHECKPOINTS = Checkpoints(names={"official": _official, "timm": _timm}, renames={"timm": _RENAMES})
