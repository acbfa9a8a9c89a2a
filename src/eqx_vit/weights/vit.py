"""ViT's names in timm, DeiT III's official code, transformers and google-research's Flax code."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eqx_vit.layers import resize_grid_corners
from eqx_vit.layers.config import check, pair
from eqx_vit.models.vit import ViTConfig
from eqx_vit.weights import linen
from eqx_vit.weights.checkpoints import Checkpoints, check_head_dim, check_held, find_differences, resize_grid_bicubic
from eqx_vit.weights.rules import (
    Constant,
    KeyRenames,
    Rule,
    copy,
    fuse,
    patch_embedding,
    stack,
    timm_block,
    token,
    weight_and_bias,
    with_prefix,
)
from eqx_vit.weights.vit_towers import find_tower, name_activation, read_activation


def _timm(config: ViTConfig) -> list[Rule | Constant]:
    _check_distilled("timm's distilled ViT", config)
    return _torch(config, "ls1.gamma", "ls2.gamma")


def _official(config: ViTConfig) -> list[Rule | Constant]:
    """facebookresearch/deit."""
    code = "DeiT's ViT"
    check_head_dim(code, config.dim, config.heads, config.dim_head)
    check_held(code, config, _PLAIN | {"class_token": True})
    check(not config.norm_after_pool, f"{code} has no norm after the pool: give pool_norm=False, or use another layout")
    _check_no_attention_pool(code, config)
    _check_distilled(code, config)
    check(
        config.layer_scale is None or not config.prefix_positions,
        f"{code} has layer_scale only in models of prefix_positions=False: use another layout",
    )
    return _torch(config, "gamma_1", "gamma_2")


# What only timm's ViT has.
_PLAIN: dict[str, object] = {"register_tokens": 0, "qk_norm": False, "pre_norm": False, "swiglu": False}


def _check_distilled(code: str, config: ViTConfig) -> None:
    if config.distillation:
        check_held(code, config, {"prefix_positions": True})


def _check_no_attention_pool(code: str, config: ViTConfig) -> None:
    check(config.pool != "map", f"{code} has no pool by attention, pool='map': use another layout")


_TIMM_POOL: list[Rule | Constant] = [
    token("attention_pool.probe", "attn_pool.latent"),
    *weight_and_bias("attention_pool.query", "attn_pool.q"),
    *weight_and_bias("attention_pool.key_value", "attn_pool.kv"),
    *weight_and_bias("attention_pool.projection.linear", "attn_pool.proj"),
    *weight_and_bias("attention_pool.norm", "attn_pool.norm"),
    *weight_and_bias("attention_pool.mlp.fc1", "attn_pool.mlp.fc1"),
    *weight_and_bias("attention_pool.mlp.fc2", "attn_pool.mlp.fc2"),
]


def _torch(config: ViTConfig, layer_scale1: str, layer_scale2: str) -> list[Rule | Constant]:
    block = [
        *timm_block(),
        *weight_and_bias("attention.query_norm", "attn.q_norm"),
        *weight_and_bias("attention.key_norm", "attn.k_norm"),
        copy("layer_scale1.gamma", layer_scale1),
        copy("layer_scale2.gamma", layer_scale2),
    ]
    return [
        token("class_token", "cls_token"),
        token("distillation_token", "dist_token"),
        token("register_tokens", "reg_token"),
        token("position_embedding", "pos_embed"),
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *weight_and_bias("norm_pre", "norm_pre"),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *weight_and_bias("norm", "fc_norm" if config.norm_after_pool else "norm"),
        *(_TIMM_POOL if config.pool == "map" else []),
        *weight_and_bias("pre_logits", "pre_logits.fc"),
        *weight_and_bias("head", "head"),
        *weight_and_bias("head_dist", "head_dist"),
    ]


def _hf(config: ViTConfig) -> list[Rule | Constant]:
    """transformers 5, and (DeiT) its older names for the second token and head."""
    code = "transformers' ViT"
    check_head_dim(code, config.dim, config.heads, config.dim_head)
    held = {"class_token": True, "prefix_positions": True, "layer_scale": None, "representation_size": None}
    check_held(code, config, _PLAIN | held)
    body = "deit" if config.distillation else "vit"
    block = [
        *weight_and_bias("norm1", "layernorm_before"),
        *fuse("attention.qkv", [f"attention.{name}_proj" for name in "qkv"]),
        *weight_and_bias("attention.projection.linear", "attention.o_proj"),
        *weight_and_bias("norm2", "layernorm_after"),
        *weight_and_bias("mlp.fc1", "mlp.fc1"),
        *weight_and_bias("mlp.fc2", "mlp.fc2"),
    ]
    return [
        *with_prefix(
            "",
            f"{body}.",
            [
                token("class_token", "embeddings.cls_token"),
                token("distillation_token", "embeddings.distillation_token"),
                token("position_embedding", "embeddings.position_embeddings"),
                *patch_embedding("patch_embedding", "embeddings.patch_embeddings.projection", pair(config.patch_size)),
                *stack("blocks", [f"layers.{index}." for index in range(config.depth)], block),
                *weight_and_bias("norm", "layernorm"),
            ],
        ),
        *weight_and_bias("head", "cls_classifier" if config.distillation else "classifier"),
        *weight_and_bias("head_dist", "distillation_classifier"),
    ]


def _flax(config: ViTConfig) -> list[Rule | Constant]:
    code = "google-research's ViT"
    check_head_dim(code, config.dim, config.heads, config.dim_head)
    held = {"qkv_bias": True, "distillation": False, "layer_scale": None}
    check_held(code, config, _PLAIN | held | ({"prefix_positions": True} if config.class_token else {}))
    _check_no_attention_pool(code, config)
    block = linen.block(config.heads)
    return [
        token("class_token", "cls"),
        token("position_embedding", "Transformer/posembed_input/pos_embedding"),
        *linen.patch_embedding("patch_embedding", "embedding", pair(config.patch_size)),
        *stack("blocks", [f"Transformer/encoderblock_{index}/" for index in range(config.depth)], block),
        *linen.layer_norm("norm", "Transformer/encoder_norm"),
        *linen.dense("pre_logits", "pre_logits"),
        *linen.dense("head", "head"),
    ]


# The files on the Hugging Face hub are older than transformers 5, and have the output of a pooler that nobody reads.
_HF: KeyRenames = [
    (r"^(vit|deit)\.encoder\.layer\.", r"\1.layers."),
    (r"\.attention\.attention\.(q)uery\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(k)ey\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(v)alue\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"(vit|deit)\.pooler\.dense\.(weight|bias)", None),
]
_GAMMA: KeyRenames = [(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma")]


def _describe(config: ViTConfig) -> dict[str, object]:
    """transformers' `ViTConfig` or `DeiTConfig`."""
    expressible = ViTConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        mlp_dim=config.mlp_dim,
        channels=config.channels,
        distillation=config.distillation,
        qkv_bias=config.qkv_bias,
        norm_eps=config.norm_eps,
        approximate_gelu=config.approximate_gelu,
        quick_gelu=config.quick_gelu,
    )
    different = find_differences(config, expressible)
    check(not different, f"transformers' ViT cannot have this model's {', '.join(different)}")
    head = "DeiTForImageClassificationWithTeacher" if config.distillation else "ViTForImageClassification"
    return {
        "model_type": "deit" if config.distillation else "vit",
        "architectures": [head],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": name_activation(config),
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def _read(described: Mapping[str, Any]) -> dict[str, object]:
    return read_activation(described, "gelu")


_CHECKPOINTS = Checkpoints(
    names={"timm": _timm, "official": _official, "hf": _hf, "flax": _flax},
    renames={"timm": _GAMMA, "hf": _HF, "flax": linen.RENAMES},
    # facebookresearch/deit is older than antialiasing in PyTorch; google-research uses scipy.ndimage.zoom.
    resize={"official": resize_grid_bicubic, "hf": resize_grid_bicubic, "flax": resize_grid_corners},
    describe=_describe,
    read=_read,
)


def CHECKPOINTS(config: ViTConfig) -> Checkpoints:
    """Those of the family, and in transformers those of the class that the config is of."""
    tower = find_tower(config)
    if tower is None:
        return _CHECKPOINTS
    return replace(
        tower,
        names={**_CHECKPOINTS.names, **tower.names},
        renames={**_CHECKPOINTS.renames, **tower.renames},
        resize={**_CHECKPOINTS.resize, **tower.resize},
    )
