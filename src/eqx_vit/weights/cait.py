"""CaiT's names in the official code (facebookresearch/deit) and timm, which are the same."""

from eqx_vit.layers.config import pair
from eqx_vit.models.cait import CaiTConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim
from eqx_vit.weights.rules import Constant, Rule, copy, fuse, patch_embedding, stack, timm_block, token, weight_and_bias


def _official(config: CaiTConfig) -> list[Rule | Constant]:
    check_head_dim("the official CaiT", config.dim, config.heads, config.dim_head)
    scales = [copy("layer_scale1.gamma", "gamma_1"), copy("layer_scale2.gamma", "gamma_2")]
    block = [
        *timm_block(),
        *weight_and_bias("attention.mix_scores", "attn.proj_l"),
        *weight_and_bias("attention.mix_weights", "attn.proj_w"),
        *scales,
    ]
    class_block = [
        *timm_block(),
        *weight_and_bias("attention.query", "attn.q"),
        *fuse("attention.key_value", ["attn.k", "attn.v"]),
        *scales,
    ]
    return [
        token("class_token", "cls_token"),
        token("position_embedding", "pos_embed"),
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *stack("class_blocks", [f"blocks_token_only.{index}." for index in range(config.cls_depth)], class_block),
        *weight_and_bias("norm", "norm"),
        *weight_and_bias("head", "head"),
    ]


CHECKPOINTS = Checkpoints(names={"official": _official, "timm": _official})
