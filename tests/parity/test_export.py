"""Folders that travel: what `export` writes opens in timm and transformers, and what they write opens here."""

import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest

import eqx_vit
from eqx_vit.export.to_folder import write_folder
from eqx_vit.registry import change_config, find_preset
from eqx_vit.testing import image_size_of
from eqx_vit.testing.subject import randomise
from eqx_vit.weights import load_state_dict, to_state_dict
from eqx_vit.weights.export import export

torch = pytest.importorskip("torch", reason="run by nox -s parity")
timm = pytest.importorskip("timm", reason="run by nox -s parity")
transformers = pytest.importorskip("transformers", reason="run by nox -s parity")

from comparison import assert_equal, pick_output, randomised, skeleton
from test_transformers import build

pytestmark = pytest.mark.parity
CLASSES = 7

TIMM = {  # one small preset for each name map, and what is changed on both sides
    "vit_tiny_patch16_224": {"image_size": 96},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {"image_size": 64},
    "vit_wee_patch16_reg1_gap_256": {"channels": 1},
    "cait_xxs24_224": {"image_size": 64},
    "crossvit_9_dagger_240": {},
    "levit_128s": {},
    "nest_tiny_jx": {},
    "pit_ti_distilled_224": {},
    "twins_svt_small": {},
    "vit_small_patch16_18x2_224": {},
    "vit_small_patch14_reg4_dinov2": {"image_size": 70},
    "vit_base_patch32_clip_quickgelu_224": {"image_size": 64},
    "vit_base_patch32_siglip_256": {"image_size": 64},
    "vit_small_plus_patch16_dinov3_qkvb": {"image_size": 64},
}
TRANSFORMERS = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "levit_128s", "cvt-13")


@pytest.mark.parametrize("name", TIMM)
def test_timm_opens_an_exported_folder(name: str, tmp_path: Path) -> None:
    config, _ = _config(name, TIMM[name])
    arguments = {"image_size": "img_size", "channels": "in_chans"}
    module = timm.create_model(
        name, num_classes=CLASSES, **{arguments[field]: value for field, value in TIMM[name].items()}
    )
    weights = randomised(module, name)
    model, state = load_state_dict(*skeleton(config), weights, source="timm")
    export(tmp_path / "model", model, state, target="timm", architecture=name)
    opened = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert_equal(_arrays(opened), weights)
    _same_logits(module, opened, config)
    # And timm's own folder here.
    timm.models.save_for_hf(opened, tmp_path / "theirs", safe_serialization="both")
    returned = eqx_vit.create(name, pretrained=tmp_path / "theirs", key=jax.random.key(0), **_changes(TIMM[name]))
    assert returned[0].config == config
    assert_equal(to_state_dict(*returned, "timm"), weights)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_opens_an_exported_folder(name: str, tmp_path: Path) -> None:
    changes = {"norm_eps": 1e-12} if "patch16" in name else {"quick_gelu": False} if name.startswith("cvt") else {}
    config, changes = _config(name, changes)
    module = build(config)
    weights = randomised(module, name)
    model, state = load_state_dict(*skeleton(config), weights, source="hf")
    class_names = [f"class {index}" for index in range(CLASSES)]
    export(tmp_path / "model", model, state, target="hf", class_names=class_names)
    opened, report = type(module).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    assert_equal(_arrays(opened), weights)
    assert list(opened.config.id2label.values()) == class_names
    _same_logits(module, opened, config)
    # And transformers' own folder here: the names in its files are not those of its modules.
    opened.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == opened.config.model_type
    returned = eqx_vit.create(name, pretrained=tmp_path / "theirs", key=jax.random.key(0), **changes)
    assert returned[0].config == config
    assert_equal(to_state_dict(*returned, "hf"), weights)


BACKBONES = {  # what differs from the preset in transformers
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {"depth": 1},
    "vit_base_patch32_clip_quickgelu_224": {},
    "vit_base_patch16_siglip_224": {"approximate_gelu": True},
    "vit_small_plus_patch16_dinov3_qkvb": {"pool": "cls"},
}


@pytest.mark.parametrize("name", BACKBONES)
def test_transformers_opens_an_exported_backbone(name: str, tmp_path: Path) -> None:
    config = change_config(find_preset(name), BACKBONES[name])
    module = build(config).eval()
    weights = randomised(module, name)
    model, state = load_state_dict(*skeleton(config), weights, source="hf")
    export(tmp_path / "model", model, state, target="hf")
    opened, report = type(module).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    _same_logits(module, opened, config)
    # And transformers' own folder here: all that the preset has otherwise is read there.
    opened.save_pretrained(tmp_path / "theirs")
    asked = {"depth": 1} if "giant" in name else {}
    returned = eqx_vit.create(name, pretrained=tmp_path / "theirs", key=jax.random.key(0), **asked)
    assert returned[0].config == config
    assert_equal(to_state_dict(*returned, "hf"), to_state_dict(model, state, "hf"))


@pytest.mark.parametrize("target", ["timm", "hf"])
def test_they_run_the_model_for_its_certificate(target: Literal["timm", "hf"], tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    config, _ = _config(name, {"image_size": 32} | ({"norm_eps": 1e-12} if target == "hf" else {}))
    certificate = write_folder(tmp_path / "made", *randomise(config), target=target, architecture=name)
    assert certificate["runtime"] == f"{'timm' if target == 'timm' else 'transformers'} on cpu"
    assert 0 < float(str(certificate["largest_difference"])) < 1e-5 * float(str(certificate["largest_logit"]))


def _config(name: str, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The preset with the changes and another number of classes, in both heads where there are two."""
    changes = _changes(changes) | ({"num_distill_classes": CLASSES} if name.startswith("levit") else {})
    return change_config(find_preset(name), changes), changes


def _changes(changes: dict[str, Any]) -> dict[str, Any]:
    return changes | {"num_classes": CLASSES}


def _arrays(module: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _same_logits(module: Any, opened: Any, config: Any) -> None:
    """Equal settings too, not only equal weights."""
    height, width = image_size_of(config)
    image = torch.randn(1, config.channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = pick_output(module.eval()(image)), pick_output(opened.eval()(image))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
