"""Every preset that a class of Hugging Face's transformers can be made to: `nox -s parity`."""

import dataclasses
from typing import Any

import pytest

from eqx_vit import MODELS, CvTConfig, LeViTConfig, ViTConfig
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


_DESCRIPTIONS: dict[Any, Any] = {ViTConfig: _vit, LeViTConfig: _levit, CvTConfig: _cvt}


def _case(name: str, config: Any, image_size: int = 224) -> Case:
    return Case(name, "hf", _class(config), build, config, (image_size, image_size))


def _cases() -> list[Case]:
    cases: list[Case] = []
    for name, config in MODELS["vit"].presets.items():
        if config.class_token and config.register_tokens == 0 and config.layer_scale is None:
            cases.append(_case(name, dataclasses.replace(config, norm_eps=1e-12)))  # the eps of these models there
    for name, config in MODELS["levit"].presets.items():
        cases.append(_case(name, config))
        cases.append(_case(name, dataclasses.replace(config, num_distill_classes=None)))
    for name, config in MODELS["cvt"].presets.items():
        cases.append(_case(name, dataclasses.replace(config, quick_gelu=False), 384 if "384" in name else 224))
    return cases


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_equals_transformers(case: Case, record_property: Any) -> None:
    compare(case, record_property)
