"""DINOv3's names in timm's `Eva`, in transformers and in the official code (facebookresearch/dinov3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eqx_vit.layers.config import check, pair
from eqx_vit.models.dinov3 import DINOv3Config
from eqx_vit.weights.checkpoints import Arrays, Checkpoints, Regrouping, check_held
from eqx_vit.weights.rules import (
    Constant,
    KeyRenames,
    Rule,
    copy,
    fuse,
    patch_embedding,
    stack,
    token,
    weight_and_bias,
)


def _timm(config: DINOv3Config) -> list[Rule | Constant]:
    block = [
        *weight_and_bias("norm1", "norm1"),
        copy("attention.qkv.weight", "attn.qkv.weight"),
        copy("attention.query_bias", "attn.q_bias"),
        copy("attention.value_bias", "attn.v_bias"),
        *weight_and_bias("attention.projection.linear", "attn.proj"),
        copy("layer_scale1.gamma", "gamma_1"),
        *weight_and_bias("norm2", "norm2"),
        *_mlp(config, ("mlp.fc1_g", "mlp.fc1_x"), ("mlp.fc1", "mlp.fc2")),
        copy("layer_scale2.gamma", "gamma_2"),
    ]
    return _around(config, "reg_token", block)


def _official(config: DINOv3Config) -> list[Rule | Constant]:
    check_held("the official DINOv3", config, {"num_classes": 0})
    block = [
        *weight_and_bias("norm1", "norm1"),
        copy("attention.qkv.weight", "attn.qkv.weight"),
        copy("attention.query_bias", "attn.q_bias"),
        copy("attention.value_bias", "attn.v_bias"),
        *weight_and_bias("attention.projection.linear", "attn.proj"),
        copy("layer_scale1.gamma", "ls1.gamma"),
        *weight_and_bias("norm2", "norm2"),
        *_mlp(config, ("mlp.w1", "mlp.w2"), ("mlp.fc1", "mlp.w3" if config.swiglu else "mlp.fc2")),
        copy("layer_scale2.gamma", "ls2.gamma"),
    ]
    mask = Constant("mask_token", np.zeros((1, config.dim), np.float32))  # of pre-training
    return [mask, *_around(config, "storage_tokens", block)]


def _around(config: DINOv3Config, registers: str, block: list[Rule | Constant]) -> list[Rule | Constant]:
    return [
        token("class_token", "cls_token"),
        token("register_tokens", registers),
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *weight_and_bias("norm", "norm"),
        *weight_and_bias("head", "head"),
    ]


_REGISTERS = "embeddings.register_tokens"


def _hf(config: DINOv3Config) -> list[Rule | Constant]:
    """`DINOv3ViTModel`."""
    check_held("transformers' DINOv3ViTModel", config, {"num_classes": 0})
    check(config.layer_scale is not None, "transformers' DINOv3ViTModel has layer_scale: use another layout")
    block = [
        *weight_and_bias("norm1", "norm1"),
        *fuse("attention.qkv", [f"attention.{name}_proj" for name in "qkv"])[:1],
        copy("attention.query_bias", "attention.q_proj.bias"),
        copy("attention.value_bias", "attention.v_proj.bias"),
        *weight_and_bias("attention.projection.linear", "attention.o_proj"),
        copy("layer_scale1.gamma", "layer_scale1.lambda1"),
        *weight_and_bias("norm2", "norm2"),
        *_mlp(config, ("mlp.gate_proj", "mlp.up_proj"), ("mlp.up_proj", "mlp.down_proj")),
        copy("layer_scale2.gamma", "layer_scale2.lambda1"),
    ]
    none = [] if config.register_tokens else [Constant(_REGISTERS, np.zeros((1, 0, config.dim), np.float32))]
    return [
        token("class_token", "embeddings.cls_token"),
        token("register_tokens", _REGISTERS),
        *none,
        Constant("embeddings.mask_token", np.zeros((1, 1, config.dim), np.float32)),  # of pre-training
        *patch_embedding("patch_embedding", "embeddings.patch_embeddings", pair(config.patch_size)),
        *stack("blocks", [f"model.layer.{index}." for index in range(config.depth)], block),
        *weight_and_bias("norm", "norm"),
    ]


def _mlp(config: DINOv3Config, gate_and_value: tuple[str, str], linear: tuple[str, str]) -> list[Rule | Constant]:
    """The perceptron: gate and value are two maps in all of these codes, `linear` are the names of the others."""
    first = fuse("mlp.fc1", gate_and_value) if config.swiglu else weight_and_bias("mlp.fc1", linear[0])
    return [*first, *weight_and_bias("mlp.fc2", linear[1])]


# Buffers of the official code, and the norm that the 7B model has for the crops of its training.
_OFFICIAL: KeyRenames = [(r"rope_embed\.periods|.*\.bias_mask|local_cls_norm\..*", None)]
_HF: KeyRenames = [(r"^layer\.", "model.layer.")]


def _split_biases(config: DINOv3Config, given: Arrays) -> dict[str, np.ndarray]:
    """The official code's bias of queries, keys and values, of which it masks the keys'."""
    arrays = dict(given)
    for name in [name for name in given if name.endswith("attn.qkv.bias")]:
        place = name.removesuffix("qkv.bias")
        arrays[f"{place}q_bias"], _, arrays[f"{place}v_bias"] = np.split(arrays.pop(name), 3)
    return arrays


def _join_biases(config: DINOv3Config, given: Arrays) -> dict[str, np.ndarray]:
    """The way back, with the mask."""
    arrays = dict(given)
    for name in [name for name in given if name.endswith("attn.q_bias")]:
        place = name.removesuffix("q_bias")
        query, value = arrays.pop(name), arrays.pop(f"{place}v_bias")
        arrays[f"{place}qkv.bias"] = np.concatenate([query, np.zeros_like(query), value])
        arrays[f"{place}qkv.bias_mask"] = np.repeat(np.array([1, 0, 1], query.dtype), len(query))
    return arrays


def _describe(config: DINOv3Config) -> dict[str, object]:
    """transformers' `DINOv3ViTConfig`."""
    check(config.pool == "cls", "transformers' DINOv3ViTModel pools by its class token, this model's pool is 'mean'")
    return {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "silu" if config.swiglu else "gelu",
        "use_gated_mlp": config.swiglu,
        "num_register_tokens": config.register_tokens,
        "query_bias": config.qkv_bias,
        "value_bias": config.qkv_bias,
        "key_bias": False,
        "layerscale_value": config.layer_scale,
        "rope_theta": config.rotary_base,
        "layer_norm_eps": config.norm_eps,
        "attention_dropout": config.dropout,
        "drop_path_rate": config.drop_path,
    }


def _read(described: Mapping[str, Any]) -> dict[str, object]:
    """What transformers' models differ in from timm's: they have biases, and read the class token."""
    return {"num_classes": 0, "pool": "cls", "qkv_bias": described.get("query_bias", True)}


CHECKPOINTS = Checkpoints(
    names={"timm": _timm, "official": _official, "hf": _hf},
    renames={"official": _OFFICIAL, "hf": _HF},
    regroup={"official": Regrouping(_split_biases, _join_biases)},
    describe=_describe,
    read=_read,
)
