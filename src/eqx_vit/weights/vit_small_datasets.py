"""SmallDatasetViT's names in the official code (aanna0701/SPT_LSA_ViT)."""

from eqx_vit.models.vit_small_datasets import SmallDatasetViTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, rearranged, same, stack


def _official(config: SmallDatasetViTConfig) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "0.norm"),
        same("attention.qkv.weight", "0.fn.to_qkv.weight"),
        same("attention.scale", "0.fn.scale"),
        *affine("attention.projection", "0.fn.to_out.0"),
        *affine("norm2", "1.norm"),
        *affine("mlp.expand", "1.fn.net.0"),
        *affine("mlp.contract", "1.fn.net.3"),
    ]
    linear = "merging.2" if config.shifted_patches else "1"
    return [
        *affine("patch_embedding.norm", "to_patch_embedding.merging.1"),
        *affine("patch_embedding.linear", f"to_patch_embedding.{linear}"),
        _token("class_token", "cls_token"),
        _token("position_embedding", "pos_embedding"),
        *stack("blocks", [f"transformer.layers.{index}." for index in range(config.depth)], block),
        *affine("norm", "mlp_head.0"),
        *affine("head", "mlp_head.1"),
    ]


def _token(ours: str, theirs: str) -> Rule:
    return rearranged(ours, theirs, "one tokens dim -> (one tokens) dim", {"one": 1})


NAMES = {"official": _official}
