"""CrossViT's names in the official code (IBM/CrossViT) and timm."""

from collections.abc import Sequence

from eqx_vit.models.cross_vit import CrossViTConfig, equal_runs
from eqx_vit.weights.rules import Constant, Rule, affine, patch_embedding, rearranged, stack


def _official(config: CrossViTConfig) -> list[Rule | Constant]:
    return _rules(config, ".")


def _timm(config: CrossViTConfig) -> list[Rule | Constant]:
    return _rules(config, "_")


def _rules(config: CrossViTConfig, dot: str) -> list[Rule | Constant]:
    """`dot` stands before the branch's number in the names of tokens and tables, the one difference of the two."""
    rules: list[Rule | Constant] = []
    for branch in (0, 1):
        ours, theirs = f"embeddings.{branch}", f"patch_embed.{branch}.proj"
        rules += [
            _token(f"{ours}.class_token", f"cls_token{dot}{branch}"),
            _token(f"{ours}.position_embedding", f"pos_embed{dot}{branch}"),
            *patch_embedding(f"{ours}.patch_embedding", theirs, config.patch_sizes[branch]),
            *affine(f"norm.{branch}", f"norm.{branch}"),
            *affine(f"head.{branch}", f"head.{branch}"),
        ]
        for index in range(3):
            rules += affine(f"{ours}.patch_embedding.convolutions.{index}", f"{theirs}.{2 * index}")
    for index, (depths, run) in enumerate(equal_runs(config)):
        block = [*_branches(depths), *_exchange(config, 0), *_exchange(config, 1)]
        rules += stack(f"blocks.{index}", [f"blocks.{number}." for number in run], block)
    return rules


def _branches(depths: Sequence[int]) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    rules: list[Rule | Constant] = []
    for branch, depth in enumerate(depths):
        rules += stack(f"branches.{branch}", [f"blocks.{branch}.{index}." for index in range(depth)], block)
    return rules


def _exchange(config: CrossViTConfig, branch: int) -> list[Rule | Constant]:
    ours = f"exchanges.{branch}"
    rules = [
        *affine(f"{ours}.projection.norm", f"projs.{branch}.0"),
        *affine(f"{ours}.projection.linear", f"projs.{branch}.2"),
        *affine(f"{ours}.reversion.norm", f"revert_projs.{branch}.0"),
        *affine(f"{ours}.reversion.linear", f"revert_projs.{branch}.2"),
    ]
    for index in range(max(config.cross_attn_depth, 1)):
        # A depth of 0 means one block without an index of its own: the layout of every released checkpoint.
        theirs = f"fusion.{branch}.{index}" if config.cross_attn_depth else f"fusion.{branch}"
        fusion = f"{ours}.fusion.{index}"
        key_value = [f"{theirs}.attn.wk", f"{theirs}.attn.wv"]
        rules += [
            *affine(f"{fusion}.norm", f"{theirs}.norm1"),
            *affine(f"{fusion}.query", f"{theirs}.attn.wq"),
            rearranged(
                f"{fusion}.key_value.weight",
                [f"{name}.weight" for name in key_value],
                "two out dim -> (two out) dim",
                {"two": 2},
            ),
            rearranged(
                f"{fusion}.key_value.bias", [f"{name}.bias" for name in key_value], "two out -> (two out)", {"two": 2}
            ),
            *affine(f"{fusion}.projection", f"{theirs}.attn.proj"),
        ]
    return rules


def _token(ours: str, theirs: str) -> Rule:
    return rearranged(ours, theirs, "one tokens dim -> (one tokens) dim", {"one": 1})


NAMES = {"official": _official, "timm": _timm}

SPELLINGS = {"timm": [(r"^(cls_token|pos_embed)\.([01])$", r"\1_\2")]}  # files from before timm renamed them
