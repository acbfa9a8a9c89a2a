"""DINOv2, CLIP's and SigLIP's image towers in transformers: members of ViT that have classes of their own there."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eqx_vit.layers import resize_grid
from eqx_vit.layers.config import check, pair
from eqx_vit.models.vit import ViTConfig
from eqx_vit.weights.checkpoints import (
    Arrays,
    Checkpoints,
    Regrouping,
    check_head_dim,
    check_held,
    resize_grid_bicubic,
)
from eqx_vit.weights.rules import (
    Constant,
    KeyRenames,
    Rule,
    copy,
    fuse,
    patch_embedding,
    relayout,
    stack,
    token,
    weight_and_bias,
)

# What none of these classes has.
_PLAIN: dict[str, object] = {
    "distillation": False,
    "qkv_bias": True,
    "qk_norm": False,
    "pool_norm": None,
    "representation_size": None,
}


def find_tower(config: ViTConfig) -> Checkpoints | None:
    """What transformers says of a ViT that is none of its `ViTModel`; None for others.

    Its DINOv2 alone has layer scale, its CLIP a norm before the blocks, its SigLIP a pool by attention.
    """
    if config.layer_scale is not None and config.pool == "cls":
        return _DINOV2_REGISTERS if config.register_tokens else _DINOV2
    if config.pre_norm:
        return _CLIP
    return _SIGLIP if config.pool == "map" else None


def _dinov2_names(config: ViTConfig) -> list[Rule | Constant]:
    """`Dinov2Model`, and with registers `Dinov2WithRegistersModel`."""
    code = "transformers' DINOv2"
    check_head_dim(code, config.dim, config.heads, config.dim_head)
    check_held(code, config, {"class_token": True, "pool": "cls", "pre_norm": False, "num_classes": 0, **_PLAIN})
    check_held(code, config, {"prefix_positions": config.register_tokens == 0})
    mlp = ["mlp.gate_proj", "mlp.up_proj"]
    block = [
        *weight_and_bias("norm1", "norm1"),
        *fuse("attention.qkv", [f"attention.{name}_proj" for name in "qkv"]),
        *weight_and_bias("attention.projection.linear", "attention.o_proj"),
        copy("layer_scale1.gamma", "layer_scale1.lambda1"),
        *weight_and_bias("norm2", "norm2"),
        *(fuse("mlp.fc1", mlp) if config.swiglu else weight_and_bias("mlp.fc1", "mlp.fc1")),
        *weight_and_bias("mlp.fc2", "mlp.down_proj" if config.swiglu else "mlp.fc2"),
        copy("layer_scale2.gamma", "layer_scale2.lambda1"),
    ]
    return [
        token("class_token", "embeddings.cls_token"),
        token("register_tokens", "embeddings.register_tokens"),
        Constant("embeddings.mask_token", np.zeros((1, config.dim), np.float32)),  # of pre-training
        token("position_embedding", "embeddings.position_embeddings"),
        *patch_embedding("patch_embedding", "embeddings.patch_embeddings.projection", pair(config.patch_size)),
        *stack("blocks", [f"encoder.layer.{index}." for index in range(config.depth)], block),
        *weight_and_bias("norm", "layernorm"),
    ]


def _clip_names(config: ViTConfig) -> list[Rule | Constant]:
    """`CLIPVisionModel`, and with its projection as the head `CLIPVisionModelWithProjection`."""
    code = "transformers' CLIP"
    check_head_dim(code, config.dim, config.heads, config.dim_head)
    held = {"class_token": True, "pool": "cls", "register_tokens": 0, "prefix_positions": True, "swiglu": False}
    check_held(code, config, {"layer_scale": None, **held, **_PLAIN})
    return [
        relayout("class_token", "embeddings.class_embedding", "(one dim) -> one dim", {"one": 1}),
        copy("position_embedding", "embeddings.position_embedding.weight"),
        *patch_embedding("patch_embedding", "embeddings.patch_embedding", pair(config.patch_size)),
        *weight_and_bias("norm_pre", "pre_layrnorm"),
        *stack("blocks", [f"encoder.layers.{index}." for index in range(config.depth)], _block()),
        *weight_and_bias("norm", "post_layernorm"),
        *weight_and_bias("head", "visual_projection"),
    ]


def _siglip_names(config: ViTConfig) -> list[Rule | Constant]:
    """`SiglipVisionModel`, whose queries, keys and values are one array in the pool alone."""
    code = "transformers' SigLIP"
    check_head_dim(code, config.dim, config.heads, config.dim_head)
    held = {"class_token": False, "register_tokens": 0, "pre_norm": False, "num_classes": 0, "swiglu": False}
    check_held(code, config, {"layer_scale": None, **held, **_PLAIN})
    return [
        copy("position_embedding", "embeddings.position_embedding.weight"),
        *patch_embedding("patch_embedding", "embeddings.patch_embedding", pair(config.patch_size)),
        *stack("blocks", [f"encoder.layers.{index}." for index in range(config.depth)], _block()),
        *weight_and_bias("norm", "post_layernorm"),
        token("attention_pool.probe", "head.probe"),
        *weight_and_bias("attention_pool.query", "head.attention.q_proj"),
        *weight_and_bias("attention_pool.key_value", "head.attention.kv_proj"),
        *weight_and_bias("attention_pool.projection.linear", "head.attention.out_proj"),
        *weight_and_bias("attention_pool.norm", "head.layernorm"),
        *weight_and_bias("attention_pool.mlp.fc1", "head.mlp.fc1"),
        *weight_and_bias("attention_pool.mlp.fc2", "head.mlp.fc2"),
    ]


def _block() -> list[Rule | Constant]:
    return [
        *weight_and_bias("norm1", "layer_norm1"),
        *fuse("attention.qkv", [f"self_attn.{name}_proj" for name in "qkv"]),
        *weight_and_bias("attention.projection.linear", "self_attn.out_proj"),
        *weight_and_bias("norm2", "layer_norm2"),
        *weight_and_bias("mlp.fc1", "mlp.fc1"),
        *weight_and_bias("mlp.fc2", "mlp.fc2"),
    ]


_CLASS_TOKEN, _TABLE = "embeddings.cls_token", "embeddings.position_embeddings"


def _add_position(config: ViTConfig, given: Arrays) -> dict[str, np.ndarray]:
    """With registers, the class token has a position, which no register has: added to it once and for all."""
    arrays = _split_gates(config, given)
    if _TABLE in arrays and _CLASS_TOKEN in arrays:
        arrays[_CLASS_TOKEN] = arrays[_CLASS_TOKEN] + arrays[_TABLE][:, :1]
        arrays[_TABLE] = arrays[_TABLE][:, 1:]
    return arrays


def _no_position(config: ViTConfig, given: Arrays) -> dict[str, np.ndarray]:
    """A position of 0 for the class token."""
    return {**given, _TABLE: np.pad(given[_TABLE], ((0, 0), (1, 0), (0, 0)))}


def _split_gates(config: ViTConfig, given: Arrays) -> dict[str, np.ndarray]:
    """In the released files gate and value of the gated MLP are one array."""
    arrays = dict(given)
    for name in [name for name in given if ".mlp.weights_in." in name]:
        gate, value = (name.replace("weights_in", part) for part in ("gate_proj", "up_proj"))
        arrays[gate], arrays[value] = np.split(arrays.pop(name), 2)
    return arrays


_PROJECTION, _PROJECTION_BIAS = "visual_projection.weight", "visual_projection.bias"


def _add_bias(config: ViTConfig, given: Arrays) -> dict[str, np.ndarray]:
    """CLIP's projection has no bias, as a head here has."""
    arrays = dict(given)
    if _PROJECTION in arrays:
        arrays[_PROJECTION_BIAS] = np.zeros(len(arrays[_PROJECTION]), arrays[_PROJECTION].dtype)
    return arrays


def _leave_out_bias(config: ViTConfig, given: Arrays) -> dict[str, np.ndarray]:
    arrays = dict(given)
    bias = arrays.pop(_PROJECTION_BIAS, np.zeros(1))
    check(not np.any(bias), "transformers' CLIP has a projection without a bias: that of this model's head must be 0")
    if _PROJECTION not in arrays:
        return arrays
    # Beside its projection the tower is a part.
    tower = {f"vision_model.{name}": array for name, array in arrays.items() if name != _PROJECTION}
    return {**tower, _PROJECTION: arrays[_PROJECTION]}


# Queries, keys and values of the pool, which are one array as `torch.nn.MultiheadAttention` has it.
_FUSED, _QUERY, _KEY_VALUE = "head.attention.in_proj_", "head.attention.q_proj.", "head.attention.kv_proj."


def _split_pool(config: ViTConfig, given: Arrays) -> dict[str, np.ndarray]:
    arrays = dict(given)
    for kind in ("weight", "bias"):
        fused = arrays.pop(_FUSED + kind, None)
        if fused is not None:
            arrays[_QUERY + kind], arrays[_KEY_VALUE + kind] = np.split(fused, [len(fused) // 3])
    return arrays


def _join_pool(config: ViTConfig, given: Arrays) -> dict[str, np.ndarray]:
    arrays = dict(given)
    for kind in ("weight", "bias"):
        arrays[_FUSED + kind] = np.concatenate([arrays.pop(_QUERY + kind), arrays.pop(_KEY_VALUE + kind)])
    return arrays


def _describe_dinov2(config: ViTConfig) -> dict[str, object]:
    """`Dinov2Config`, or `Dinov2WithRegistersConfig`."""
    ratio = config.mlp_dim // config.dim
    # Its SwiGLU keeps two thirds of `mlp_ratio * dim`, rounded up to a multiple of 8.
    width = (int(4 * config.dim * 2 / 3) + 7) // 8 * 8 if config.swiglu else ratio * config.dim
    check(width == config.mlp_dim, f"transformers' DINOv2 cannot have this model's mlp_dim {config.mlp_dim}")
    registers = {"num_register_tokens": config.register_tokens} if config.register_tokens else {}
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        **_sizes(config),
        **registers,
        "mlp_ratio": 4 if config.swiglu else ratio,
        "use_swiglu_ffn": config.swiglu,
        "layerscale_value": config.layer_scale,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def _describe_clip(config: ViTConfig) -> dict[str, object]:
    """`CLIPVisionConfig`."""
    return {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModelWithProjection" if config.num_classes else "CLIPVisionModel"],
        **_sizes(config),
        "intermediate_size": config.mlp_dim,
        "projection_dim": config.num_classes or 512,
        "attention_dropout": config.dropout,
    }


def _describe_siglip(config: ViTConfig) -> dict[str, object]:
    """`SiglipVisionConfig`."""
    return {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        **_sizes(config),
        "intermediate_size": config.mlp_dim,
        "attention_dropout": config.dropout,
    }


def _sizes(config: ViTConfig) -> dict[str, object]:
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": name_activation(config),
        "layer_norm_eps": config.norm_eps,
    }


def name_activation(config: ViTConfig) -> str:
    """What transformers calls the activation of a config."""
    return "quick_gelu" if config.quick_gelu else "gelu_pytorch_tanh" if config.approximate_gelu else "gelu"


def read_activation(described: Mapping[str, Any], default: str) -> dict[str, object]:
    """The fields of a config that say it."""
    name = described.get("hidden_act", default)
    return {"quick_gelu": name == "quick_gelu", "approximate_gelu": name in ("gelu_pytorch_tanh", "gelu_new")}


def _read_dinov2(described: Mapping[str, Any]) -> dict[str, object]:
    return {"num_classes": 0}


def _read_clip(described: Mapping[str, Any]) -> dict[str, object]:
    """With the texts' tower beside it the projection is there; a tower alone says whether it has one."""
    whole = "vision_config" in described
    projects = whole or "CLIPVisionModelWithProjection" in (described.get("architectures") or ())
    sizes = _read_sizes(described.get("vision_config", described), "quick_gelu", 1e-5)
    return {**sizes, "num_classes": described.get("projection_dim", 512) if projects else 0}


def _read_siglip(described: Mapping[str, Any]) -> dict[str, object]:
    sizes = _read_sizes(described.get("vision_config", described), "gelu_pytorch_tanh", 1e-6)
    return {**sizes, "num_classes": 0}


def _read_sizes(vision: Mapping[str, Any], activation: str, norm_eps: float) -> dict[str, object]:
    """transformers writes no value that is its default. What is beyond the last whole patch is not read."""
    sizes: dict[str, object] = {"norm_eps": vision.get("layer_norm_eps", norm_eps)}
    size, patch_size = vision.get("image_size"), vision.get("patch_size")
    if isinstance(size, int) and isinstance(patch_size, int):
        sizes["image_size"] = size // patch_size * patch_size
    return sizes | read_activation(vision, activation)


_RENAMES: KeyRenames = [
    # A tower's names in a file that holds the texts' too.
    (r"^vision_model\.", ""),
    (r"text_model\..*|text_projection\.weight|logit_scale|logit_bias|.*embeddings\.position_ids", None),
    # Before transformers 5.
    (r"\.attention\.attention\.(q)uery\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(k)ey\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(v)alue\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.weights_out\.", ".mlp.down_proj."),
]
_DINOV2 = Checkpoints(
    names={"hf": _dinov2_names},
    renames={"hf": _RENAMES},
    resize={"hf": resize_grid_bicubic},
    regroup={"hf": Regrouping(_split_gates, lambda config, arrays: dict(arrays))},
    describe=_describe_dinov2,
    read=_read_dinov2,
)
_DINOV2_REGISTERS = Checkpoints(
    names={"hf": _dinov2_names},
    renames={"hf": _RENAMES},
    resize={"hf": resize_grid},  # antialiased, as without registers it is not
    regroup={"hf": Regrouping(_add_position, _no_position)},
    describe=_describe_dinov2,
    read=_read_dinov2,
)
_CLIP = Checkpoints(
    names={"hf": _clip_names},
    renames={"hf": _RENAMES},
    resize={"hf": resize_grid_bicubic},
    regroup={"hf": Regrouping(_add_bias, _leave_out_bias)},
    describe=_describe_clip,
    read=_read_clip,
)
_SIGLIP = Checkpoints(
    names={"hf": _siglip_names},
    renames={"hf": _RENAMES},
    resize={"hf": resize_grid_bicubic},
    regroup={"hf": Regrouping(_split_pool, _join_pool)},
    describe=_describe_siglip,
    read=_read_siglip,
)
