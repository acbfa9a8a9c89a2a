"""Every preset that a class of Hugging Face's transformers can be made to: `nox -s parity`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from eqx_vit import MODELS, CvTConfig, DINOv3Config, LeViTConfig, ViTConfig
from eqx_vit.layers.config import per_stage

pytest.importorskip("torch", reason="run by nox -s parity")
transformers = pytest.importorskip("transformers", reason="run by nox -s parity")

from comparison import Case, compare

pytestmark = pytest.mark.parity


def build(config: Any, reduced: bool = False) -> Any:
    """The classifier of transformers for a config of ours."""
    return getattr(transformers, _class(config))(_DESCRIPTIONS[type(config)](config))


def _class(config: Any) -> str:
    match config:
        case DINOv3Config():
            return "DINOv3ViTModel"
        case ViTConfig(layer_scale=float()):
            return "Dinov2WithRegistersModel" if config.register_tokens else "Dinov2Model"
        case ViTConfig(pre_norm=True):
            return "CLIPVisionModelWithProjection" if config.num_classes else "CLIPVisionModel"
        case ViTConfig(pool="map"):
            return "SiglipVisionModel"
        case ViTConfig():
            return "DeiTForImageClassificationWithTeacher" if config.distillation else "ViTForImageClassification"
        case LeViTConfig():
            return "LevitForImageClassification" + ("WithTeacher" if config.num_distill_classes else "")
        case _:
            return "CvtForImageClassification"


def _vit(config: ViTConfig) -> Any:
    description = transformers.DeiTConfig if config.distillation else transformers.ViTConfig
    return description(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_dim,
        num_labels=config.num_classes,
        layer_norm_eps=config.norm_eps,
    )


def _vit_or_tower(config: ViTConfig) -> Any:
    """`describe` is not asked: the peer must not be made by what it tests."""
    common = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "layer_norm_eps": config.norm_eps,
    }
    activation = "quick_gelu" if config.quick_gelu else "gelu_pytorch_tanh" if config.approximate_gelu else "gelu"
    match _class(config):
        case "Dinov2Model":
            return transformers.Dinov2Config(**common, use_swiglu_ffn=config.swiglu)
        case "Dinov2WithRegistersModel":
            registers = {"num_register_tokens": config.register_tokens}
            return transformers.Dinov2WithRegistersConfig(**common, **registers, use_swiglu_ffn=config.swiglu)
        case "SiglipVisionModel":
            width = {"intermediate_size": config.mlp_dim}
            return transformers.SiglipVisionConfig(**common, **width, hidden_act=activation)
        case "CLIPVisionModel" | "CLIPVisionModelWithProjection":
            width = {"intermediate_size": config.mlp_dim, "projection_dim": config.num_classes}
            return transformers.CLIPVisionConfig(**common, **width, hidden_act=activation)
    return _vit(config)


def _dinov3(config: DINOv3Config) -> Any:
    return transformers.DINOv3ViTConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_dim,
        hidden_act="silu" if config.swiglu else "gelu",
        use_gated_mlp=config.swiglu,
        query_bias=config.qkv_bias,
        value_bias=config.qkv_bias,
        num_register_tokens=config.register_tokens,
    )


def _levit(config: LeViTConfig) -> Any:
    stages = config.stages
    return transformers.LevitConfig(
        hidden_sizes=list(per_stage(config.dim, stages)),
        num_attention_heads=list(per_stage(config.heads, stages)),
        depths=list(per_stage(config.depth, stages)),
        key_dim=list(per_stage(config.dim_key, stages)),
        num_labels=config.num_classes,
    )


def _cvt(config: CvTConfig) -> Any:
    return transformers.CvtConfig(
        embed_dim=[sizes.dim for sizes in config.stages],
        num_heads=[sizes.heads for sizes in config.stages],
        depth=[sizes.depth for sizes in config.stages],
        drop_path_rate=[sizes.drop_path for sizes in config.stages],
        num_labels=config.num_classes,
    )


_DESCRIPTIONS: dict[Any, Any] = {
    ViTConfig: _vit_or_tower,
    DINOv3Config: _dinov3,
    LeViTConfig: _levit,
    CvTConfig: _cvt,
}


def _case(name: str, config: Any, image_size: int = 224) -> Case:
    return Case(name, "hf", _class(config), build, config, (image_size, image_size))


def _cases() -> list[Case]:
    cases: list[Case] = [*_towers()]
    for name, config in MODELS["vit"].presets.items():
        if config.pre_norm or "dinov2" in name:
            continue
        if config.class_token and config.register_tokens == 0 and config.layer_scale is None:
            cases.append(_case(name, dataclasses.replace(config, norm_eps=1e-12)))  # the eps of these models there
    for name, config in MODELS["levit"].presets.items():
        cases.append(_case(name, config))
        cases.append(_case(name, dataclasses.replace(config, num_distill_classes=None)))
    for name, config in MODELS["cvt"].presets.items():
        cases.append(_case(name, dataclasses.replace(config, quick_gelu=False), 384 if "384" in name else 224))
    return cases


def _towers() -> Iterator[Case]:
    mask = ("embeddings.mask_token",)
    for name, config in MODELS["vit"].presets.items():
        if "dinov2" in name:
            returned = _without_position if config.register_tokens else dict
            # With registers, the class token has a position there.
            added = -config.dim if config.register_tokens else 0
            yield Case(name, "hf", _class(config), build, config, fixed=mask, returned=returned, added=added)
        elif "clip" in name:
            tower = dataclasses.replace(config, num_classes=0)
            yield Case(name, "hf", _class(tower), build, tower)
            # The bias of a head is none of the projection's.
            yield Case(f"{name} projected", "hf", _class(config), build, config, added=config.num_classes)
        elif "siglip" in name:
            tower = dataclasses.replace(config, approximate_gelu=True)  # transformers' default
            yield Case(name, "hf", _class(tower), build, tower)
    for name, config in MODELS["dinov3"].presets.items():
        yield Case(name, "hf", _class(config), build, dataclasses.replace(config, pool="cls"), fixed=mask)


def _without_position(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The class token's position is added to it when it is loaded."""
    token, table = "embeddings.cls_token", "embeddings.position_embeddings"
    rest = np.concatenate([np.zeros_like(weights[table][:, :1]), weights[table][:, 1:]], axis=1)
    return {**weights, token: weights[token] + weights[table][:, :1], table: rest}


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_equals_transformers(case: Case, record_property: Any) -> None:
    compare(case, record_property)
