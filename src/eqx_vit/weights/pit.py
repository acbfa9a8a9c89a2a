"""PiT's names in the official code (naver-ai/pit) and timm."""

from collections.abc import Callable

from eqx_vit.models.pit import PiTConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim
from eqx_vit.weights.rules import Constant, Rule, relayout, stack, timm_block, token, weight_and_bias


def _official(config: PiTConfig) -> list[Rule | Constant]:
    return _rules(config, lambda pool: f"pools.{pool}")


def _timm(config: PiTConfig) -> list[Rule | Constant]:
    return _rules(config, lambda pool: f"transformers.{pool + 1}.pool")


def _rules(config: PiTConfig, pool_name: Callable[[int], str]) -> list[Rule | Constant]:
    for sizes in config.stages:
        check_head_dim("the official PiT", sizes.dim, sizes.heads, sizes.dim_head)
    rules: list[Rule | Constant] = [
        token("class_token", "cls_token"),
        relayout("position_embedding", "pos_embed", "one dim rows columns -> (one rows) columns dim", {"one": 1}),
        *weight_and_bias("patch_embedding", "patch_embed.conv"),
    ]
    for stage, depth in enumerate(config.depth):
        prefixes = [f"transformers.{stage}.blocks.{index}." for index in range(depth)]
        rules += stack(f"stages.{stage}", prefixes, timm_block())
    for pool in range(len(config.stages) - 1):
        rules += weight_and_bias(f"pools.{pool}.conv", f"{pool_name(pool)}.conv")
        rules += weight_and_bias(f"pools.{pool}.linear", f"{pool_name(pool)}.fc")
    return [
        *rules,
        *weight_and_bias("norm", "norm"),
        *weight_and_bias("head", "head"),
        *weight_and_bias("head_dist", "head_dist"),
    ]


CHECKPOINTS = Checkpoints(
    names={"official": _official, "timm": _timm},
    # Files from before timm put the pools into the stages.
    renames={"timm": [(r"^pools\.(\d)\.", lambda match: f"transformers.{int(match[1]) + 1}.pool.")]},
)
