"""Every preset that a class of Hugging Face's transformers can be made to: `nox -s parity`."""

import dataclasses
from typing import Any

import pytest

from eqx_vit import MODELS
from eqx_vit.layers.config import per_stage

pytest.importorskip("torch", reason="run by nox -s parity")
transformers = pytest.importorskip("transformers", reason="run by nox -s parity")

from comparison import Case, compare  # noqa: E402

pytestmark = pytest.mark.parity


def _vit(config: Any, reduced: bool) -> Any:
    name = "DeiT" if config.distillation else "ViT"
    theirs = getattr(transformers, f"{name}Config")(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_dim,
        num_labels=config.num_classes,
        layer_norm_eps=config.norm_eps,
    )
    return getattr(transformers, _vit_class(config))(theirs)


def _vit_class(config: Any) -> str:
    return "DeiTForImageClassificationWithTeacher" if config.distillation else "ViTForImageClassification"


def _levit(config: Any, reduced: bool) -> Any:
    stages = config.stages
    theirs = transformers.LevitConfig(
        hidden_sizes=list(per_stage(config.dim, stages)),
        num_attention_heads=list(per_stage(config.heads, stages)),
        depths=list(per_stage(config.depth, stages)),
        key_dim=list(per_stage(config.dim_key, stages)),
        num_labels=config.num_classes,
    )
    return getattr(transformers, _levit_class(config))(theirs)


def _levit_class(config: Any) -> str:
    return "LevitForImageClassification" + ("WithTeacher" if config.num_distill_classes else "")


def _cvt(config: Any, reduced: bool) -> Any:
    theirs = transformers.CvtConfig(
        embed_dim=[sizes.dim for sizes in config.stages],
        num_heads=[sizes.heads for sizes in config.stages],
        depth=[sizes.depth for sizes in config.stages],
        drop_path_rate=[sizes.drop_path for sizes in config.stages],
        num_labels=config.num_classes,
    )
    return transformers.CvtForImageClassification(theirs)


def _cases() -> list[Case]:
    cases: list[Case] = []
    for name, config in MODELS["vit"].presets.items():
        if config.class_token and config.register_tokens == 0 and config.layer_scale is None:
            # The eps that transformers gives these models.
            config = dataclasses.replace(config, norm_eps=1e-12)
            cases.append(Case(name, "hf", _vit_class(config), _vit, config))
    for name, config in MODELS["levit"].presets.items():
        cases.append(Case(name, "hf", _levit_class(config), _levit, config))
        config = dataclasses.replace(config, num_distill_classes=None)
        cases.append(Case(name, "hf", _levit_class(config), _levit, config))
    for name, config in MODELS["cvt"].presets.items():
        size = 384 if "384" in name else 224
        config = dataclasses.replace(config, quick_gelu=False)
        cases.append(Case(name, "hf", "CvtForImageClassification", _cvt, config, image_size=(size, size)))
    return cases


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_equals_transformers(case: Case, record_property: Any) -> None:
    compare(case, record_property)
