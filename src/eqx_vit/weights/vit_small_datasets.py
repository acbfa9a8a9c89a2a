"""SmallDatasetViT's names in the official code (aanna0701/SPT_LSA_ViT)."""

from eqx_vit.models.vit_small_datasets import SmallDatasetViTConfig
from eqx_vit.weights.checkpoints import Checkpoints
from eqx_vit.weights.rules import Constant, Rule, copy, stack, token, weight_and_bias


def _official(config: SmallDatasetViTConfig) -> list[Rule | Constant]:
    block = [
        *weight_and_bias("norm1", "0.norm"),
        copy("attention.qkv.weight", "0.fn.to_qkv.weight"),
        copy("attention.scale", "0.fn.scale"),
        *weight_and_bias("attention.projection.linear", "0.fn.to_out.0"),
        *weight_and_bias("norm2", "1.norm"),
        *weight_and_bias("mlp.fc1", "1.fn.net.0"),
        *weight_and_bias("mlp.fc2", "1.fn.net.3"),
    ]
    linear = "merging.2" if config.shifted_patches else "1"
    return [
        *weight_and_bias("patch_embedding.norm", "to_patch_embedding.merging.1"),
        *weight_and_bias("patch_embedding.linear", f"to_patch_embedding.{linear}"),
        token("class_token", "cls_token"),
        token("position_embedding", "pos_embedding"),
        *stack("blocks", [f"transformer.layers.{index}." for index in range(config.depth)], block),
        *weight_and_bias("norm", "mlp_head.0"),
        *weight_and_bias("head", "mlp_head.1"),
    ]


CHECKPOINTS = Checkpoints(names={"official": _official})
