"""ONNX files in ONNX Runtime: every architecture gives the model's logits, at any batch size."""

import json
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest
from tiny import TINY, tiny_size

import eqx_vit
from eqx_vit.testing.subject import randomise

pytest.importorskip("jax2onnx", reason="run by nox -s export")
import onnx
import onnxruntime

# jax2onnx and what it imports warn of things of their own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize("name", TINY)
def test_onnx_runtime_gives_the_logits_of_every_architecture(name: str, tmp_path: Path) -> None:
    model, state = randomise(TINY[name])
    certificate = eqx_vit.export.onnx(tmp_path / "onnx", model, state, image_size=tiny_size(name))
    shape = (5, *tiny_size(name), TINY[name].channels)
    images = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    expected = np.asarray(eqx_vit.forward(eqx.nn.inference_mode(model), state, images)[0])
    scale = np.abs(expected).max()
    assert scale > 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        (found,) = session.run(["logits"], {"images": images[:batch]})
        np.testing.assert_allclose(found, expected[:batch], rtol=0, atol=1e-5 * scale)
    assert json.loads((tmp_path / "onnx" / "certificate.json").read_text()) == certificate
    assert certificate["largest_difference"] <= 1e-5 * scale
    file = onnx.load(tmp_path / "onnx" / "model.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", certificate["opset"])]
    # Separate blocks: no loop, and as little about shapes as need be.
    operations = [node.op_type for node in file.graph.node]
    assert not {"Loop", "Scan", "If"} & set(operations)
    assert operations.count("Shape") < 20
