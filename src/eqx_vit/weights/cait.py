"""CaiT's names in the official code (facebookresearch/deit) and timm, which are the same."""

from eqx_vit.layers.config import pair
from eqx_vit.models.cait import CaiTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, patch_embedding, rearranged, same, stack


def _official(config: CaiTConfig) -> list[Rule | Constant]:
    scales_and_mlp = [
        *affine("norm1", "norm1"),
        same("scale1.scale", "gamma_1"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
        same("scale2.scale", "gamma_2"),
        *affine("attention.projection", "attn.proj"),
    ]
    block = [
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.mix_scores", "attn.proj_l"),
        *affine("attention.mix_weights", "attn.proj_w"),
        *scales_and_mlp,
    ]
    two = {"two": 2}
    class_block = [
        *affine("attention.query", "attn.q"),
        rearranged(
            "attention.key_value.weight", ["attn.k.weight", "attn.v.weight"], "two out dim -> (two out) dim", two
        ),
        rearranged("attention.key_value.bias", ["attn.k.bias", "attn.v.bias"], "two out -> (two out)", two),
        *scales_and_mlp,
    ]
    token = "one tokens dim -> (one tokens) dim"
    return [
        rearranged("class_token", "cls_token", token, {"one": 1}),
        rearranged("position_embedding", "pos_embed", token, {"one": 1}),
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *stack("class_blocks", [f"blocks_token_only.{index}." for index in range(config.cls_depth)], class_block),
        *affine("norm", "norm"),
        *affine("head", "head"),
    ]


NAMES = {"official": _official, "timm": _official}
