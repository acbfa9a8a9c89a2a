"""SimpleViT's names in the official Flax code (google-research/big_vision) and in timm's `VisionTransformer`."""

import numpy as np

from eqx_vit.layers import resize_grid, sincos_2d
from eqx_vit.layers.config import pair
from eqx_vit.models.simple_vit import SimpleViTConfig
from eqx_vit.weights import linen
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim
from eqx_vit.weights.rules import Constant, Rule, patch_embedding, stack, timm_block, token, weight_and_bias


def _official(config: SimpleViTConfig) -> list[Rule | Constant]:
    prefixes = [f"Transformer/encoderblock_{index}/" for index in range(config.depth)]
    return [*_around_blocks(config), *stack("blocks", prefixes, linen.block(config.heads))]


def _official_scan(config: SimpleViTConfig) -> list[Rule | Constant]:
    """Checkpoints of a model with scan=True: the blocks are stored stacked."""
    return [
        *_around_blocks(config),
        *linen.scan_stack("blocks", "Transformer/encoderblock/", linen.block(config.heads)),
    ]


def _around_blocks(config: SimpleViTConfig) -> list[Rule | Constant]:
    check_head_dim("big_vision's ViT", config.dim, config.heads, config.dim_head)
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    return [
        *linen.patch_embedding("patch_embedding", "embedding", pair(config.patch_size)),
        token("class_token", "cls"),
        token("position_embedding", "pos_embedding"),
        *linen.layer_norm("norm", "Transformer/encoder_norm"),
        token("attention_pool.probe", "MAPHead_0/probe"),
        *linen.projections("attention_pool.query", [f"{attention}/query"], config.heads),
        *linen.projections("attention_pool.key_value", [f"{attention}/key", f"{attention}/value"], config.heads),
        *linen.from_heads("attention_pool.projection.linear", f"{attention}/out", config.heads),
        *linen.layer_norm("attention_pool.norm", "MAPHead_0/LayerNorm_0"),
        *linen.mlp("attention_pool.mlp", "MAPHead_0/MlpBlock_0"),
        *linen.dense("pre_logits", "pre_logits"),
        *linen.dense("head", "head"),
    ]


def _timm(config: SimpleViTConfig) -> list[Rule | Constant]:
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        token("class_token", "cls_token"),
        _timm_positions(config),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], timm_block()),
        *weight_and_bias("norm", "norm"),
        token("attention_pool.probe", "attn_pool.latent"),
        *weight_and_bias("attention_pool.query", "attn_pool.q"),
        *weight_and_bias("attention_pool.key_value", "attn_pool.kv"),
        *weight_and_bias("attention_pool.projection.linear", "attn_pool.proj"),
        *weight_and_bias("attention_pool.norm", "attn_pool.norm"),
        *weight_and_bias("attention_pool.mlp.fc1", "attn_pool.mlp.fc1"),
        *weight_and_bias("attention_pool.mlp.fc2", "attn_pool.mlp.fc2"),
        *weight_and_bias("pre_logits", "pre_logits.fc"),
        *weight_and_bias("head", "head"),
    ]


def _timm_positions(config: SimpleViTConfig) -> Rule | Constant:
    """timm has no fixed table: there it is a parameter that holds ours."""
    if config.learned_positions:
        return token("position_embedding", "pos_embed")
    rows, columns = config.grid
    return Constant("pos_embed", np.asarray(sincos_2d(rows, columns, config.dim)).reshape(1, -1, config.dim))


CHECKPOINTS = Checkpoints(
    names={"official": _official, "official_scan": _official_scan, "flax": _official, "timm": _timm},
    renames=dict.fromkeys(("official", "official_scan", "flax"), linen.RENAMES),
    resize={"timm": resize_grid},
)
