"""PiT's names in the official code (naver-ai/pit) and timm."""

from collections.abc import Callable

from eqx_vit.models.pit import PiTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, rearranged, stack


def _official(config: PiTConfig) -> list[Rule | Constant]:
    return _rules(config, lambda pool: f"pools.{pool}")


def _timm(config: PiTConfig) -> list[Rule | Constant]:
    return _rules(config, lambda pool: f"transformers.{pool + 1}.pool")


def _rules(config: PiTConfig, pool_name: Callable[[int], str]) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    rules: list[Rule | Constant] = [
        rearranged("class_token", "cls_token", "one tokens dim -> (one tokens) dim", {"one": 1}),
        rearranged("position_embedding", "pos_embed", "one dim rows columns -> (one rows) columns dim", {"one": 1}),
        *affine("patch_embedding", "patch_embed.conv"),
    ]
    for stage, depth in enumerate(config.depth):
        prefixes = [f"transformers.{stage}.blocks.{index}." for index in range(depth)]
        rules += stack(f"stages.{stage}", prefixes, block)
    for pool in range(config.stages - 1):
        rules += affine(f"pools.{pool}.conv", f"{pool_name(pool)}.conv")
        rules += affine(f"pools.{pool}.linear", f"{pool_name(pool)}.fc")
    return [*rules, *affine("norm", "norm"), *affine("head", "head"), *affine("head_dist", "head_dist")]


NAMES = {"official": _official, "timm": _timm}

# Files from before timm put the pools into the stages.
SPELLINGS = {"timm": [(r"^pools\.(\d)\.", lambda match: f"transformers.{int(match[1]) + 1}.pool.")]}
