"""SimpleViT's names in the official Flax code (google-research/big_vision) and in timm's `VisionTransformer`."""

import numpy as np

from eqx_vit.layers import sincos_2d
from eqx_vit.layers.config import pair
from eqx_vit.models.simple_vit import SimpleViTConfig
from eqx_vit.weights import linen
from eqx_vit.weights.rules import Constant, Rule, affine, patch_embedding, rearranged, stack

_TOKEN = "one tokens dim -> (one tokens) dim"


def _official(config: SimpleViTConfig) -> list[Rule | Constant]:
    prefixes = [f"Transformer/encoderblock_{index}/" for index in range(config.depth)]
    return [*_around_blocks(config), *stack("blocks", prefixes, linen.block(config.heads))]


def _official_scan(config: SimpleViTConfig) -> list[Rule | Constant]:
    """Checkpoints of a model with scan=True: the blocks are stored stacked."""
    return [
        *_around_blocks(config),
        *linen.scanned("blocks", "Transformer/encoderblock/", linen.block(config.heads)),
    ]


def _around_blocks(config: SimpleViTConfig) -> list[Rule | Constant]:
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    return [
        *linen.patch_embedding("patch_embedding", "embedding", pair(config.patch_size)),
        _token("class_token", "cls"),
        _token("position_embedding", "pos_embedding"),
        *linen.layer_norm("norm", "Transformer/encoder_norm"),
        _token("attention_pool.probe", "MAPHead_0/probe"),
        *linen.projections("attention_pool.query", [f"{attention}/query"], config.heads),
        *linen.projections("attention_pool.key_value", [f"{attention}/key", f"{attention}/value"], config.heads),
        *linen.from_heads("attention_pool.projection", f"{attention}/out", config.heads),
        *linen.layer_norm("attention_pool.norm", "MAPHead_0/LayerNorm_0"),
        *linen.mlp("attention_pool.mlp", "MAPHead_0/MlpBlock_0"),
        *linen.dense("pre_logits", "pre_logits"),
        *linen.dense("head", "head"),
    ]


def _timm(config: SimpleViTConfig) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        _token("class_token", "cls_token"),
        _timm_positions(config),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *affine("norm", "norm"),
        _token("attention_pool.probe", "attn_pool.latent"),
        *affine("attention_pool.query", "attn_pool.q"),
        *affine("attention_pool.key_value", "attn_pool.kv"),
        *affine("attention_pool.projection", "attn_pool.proj"),
        *affine("attention_pool.norm", "attn_pool.norm"),
        *affine("attention_pool.mlp.expand", "attn_pool.mlp.fc1"),
        *affine("attention_pool.mlp.contract", "attn_pool.mlp.fc2"),
        *affine("pre_logits", "pre_logits.fc"),
        *affine("head", "head"),
    ]


def _timm_positions(config: SimpleViTConfig) -> Rule | Constant:
    """timm has no fixed table: there it is a parameter that holds ours."""
    if config.learned_positions:
        return _token("position_embedding", "pos_embed")
    rows, columns = config.grid
    return Constant("pos_embed", np.asarray(sincos_2d(rows, columns, config.dim)).reshape(1, -1, config.dim))


def _token(ours: str, theirs: str) -> Rule:
    return rearranged(ours, theirs, _TOKEN, {"one": 1})


NAMES = {"official": _official, "official_scan": _official_scan, "flax": _official, "timm": _timm}

SPELLINGS = dict.fromkeys(("official", "official_scan", "flax"), linen.SPELLINGS)
