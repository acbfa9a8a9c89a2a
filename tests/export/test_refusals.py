"""What ONNX cannot express is refused by name, and the command line's formats."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from tiny import TINY

import eqx_vit
from eqx_vit.cli import main
from eqx_vit.registry import MODELS
from eqx_vit.testing.subject import randomise

pytest.importorskip("jax2onnx", reason="run by nox -s export")

# jax2onnx and what it imports warn of things of their own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

peculiar = Primitive("peculiar")
peculiar.def_abstract_eval(lambda x: x)
mlir.register_lowering(peculiar, lambda context, x: [x])
batching.defvectorized(peculiar)


@dataclass(frozen=True, kw_only=True)
class PeculiarConfig(eqx_vit.ImageModelConfig):
    num_classes: int = 3


class PeculiarModel(eqx_vit.StatelessImageModel[PeculiarConfig]):
    weight: jax.Array

    def __init__(self, config: PeculiarConfig, *, key: jax.Array) -> None:
        self.config = config
        self.weight = jax.random.normal(key, (config.channels, config.num_classes))

    def embed(self, image: jax.Array, *, key: jax.Array | None) -> jax.Array:
        return image

    def encode(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        return peculiar.bind(x)

    def classify(self, features: jax.Array) -> jax.Array:
        return jnp.mean(features, axis=(0, 1)) @ self.weight


@pytest.fixture
def peculiar_model() -> Any:
    eqx_vit.register(eqx_vit.Architecture("peculiar", PeculiarModel, PeculiarConfig))
    yield eqx_vit.create(PeculiarConfig(), key=jax.random.key(0))
    MODELS.pop("peculiar")


def test_an_operation_without_a_form_in_onnx_is_named_and_nothing_is_left(peculiar_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PeculiarModel has the operation peculiar, which jax2onnx cannot convert"):
        eqx_vit.export.onnx(tmp_path / "onnx", *peculiar_model, image_size=8)
    assert list(tmp_path.iterdir()) == []
    assert eqx_vit.export.stablehlo(tmp_path / "stablehlo", *peculiar_model, image_size=8)["format"] == "StableHLO"


def test_what_onnx_runtime_cannot_run_is_refused(tmp_path: Path) -> None:
    model, state = randomise(TINY["vit"])
    with pytest.raises(ValueError, match="opset must be 18 or higher, given 9"):
        eqx_vit.export.onnx(tmp_path / "onnx", model, state, opset=9)
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot run|differs from the model"):
        eqx_vit.export.onnx(tmp_path / "onnx", eqx_vit.cast(model, jnp.bfloat16), state)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_exported_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    run = tmp_path / "run"
    tiny = ["--epochs", "1", "--set", "dim=16", "--set", "depth=1", "--set", "heads=2", "--set", "mlp_dim=16"]
    assert main(["train", *tiny, "--output", str(run)]) == 0
    capsys.readouterr()
    made = tmp_path / "made"
    command = ["export", str(run), "--output", str(made), "--opset", "20", "--to"]
    assert main([*command, "onnx,stablehlo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{made}/onnx/model.onnx",
        f"{made}/stablehlo/model.stablehlo",
    ]
    assert json.loads((made / "onnx" / "certificate.json").read_text())["opset"] == 20
    model, state = eqx_vit.load(run / "best.safetensors")
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 1), dtype=np.float32)
    expected = eqx_vit.forward(eqx_vit.inference_mode(model), state, images)[0]
    session = onnxruntime.InferenceSession(made / "onnx" / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(eqx_vit.export.load(made / "stablehlo")(images), expected, rtol=0, atol=1e-4)

    assert main([*command, "onnx"]) == 2
    assert "exists already" in capsys.readouterr().err
    command[3] = str(tmp_path / "other")
    assert main([*command, "onnx,timm"]) == 2
    assert "eqx-vit export: timm has no digits" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
