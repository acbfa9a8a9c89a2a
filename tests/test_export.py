"""Models that leave the library as StableHLO. ONNX has a session of its own: tests/export."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from tiny import TINY, slow_but_for, tiny_size

import eqx_vit
from eqx_vit.cli import main
from eqx_vit.cli.export import Subject, export_formats
from eqx_vit.export.certificate import Measured, certify
from eqx_vit.export.flatten import flatten
from eqx_vit.export.forms import FORMS
from eqx_vit.export.program import make_program
from eqx_vit.files import fill_folder, read_metadata
from eqx_vit.paths import with_named_leaves
from eqx_vit.registry import find_preset
from eqx_vit.serialization import METADATA, save
from eqx_vit.testing.subject import randomise
from eqx_vit.weights.preprocessing import Preprocessing

# What the documentation shows, where neither the library nor Equinox can be imported.
ELSEWHERE = """
import sys
sys.modules["eqx_vit"] = sys.modules["equinox"] = None

import jax.export, numpy as np
logits = jax.export.deserialize(open(sys.argv[1], "rb").read()).call(np.load(sys.argv[2]))
np.save(sys.argv[3], logits)
"""


def make_images(name: str, batch: int) -> np.ndarray:
    shape = (batch, *tiny_size(name), TINY[name].channels)
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


@slow_but_for("levit")
def test_stablehlo_gives_the_logits_without_the_library(name: str, tmp_path: Path) -> None:
    model, state = randomise(TINY[name])
    certificate = eqx_vit.export.stablehlo(tmp_path / "made", model, state, image_size=tiny_size(name))
    images = make_images(name, 5)
    expected = np.asarray(eqx_vit.forward(eqx.nn.inference_mode(model), state, images)[0])
    scale = np.abs(expected).max()
    assert scale > 1e-3
    call = eqx_vit.export.load(tmp_path / "made")
    for batch in (1, 5):
        np.testing.assert_allclose(call(images[:batch]), expected[:batch], rtol=0, atol=1e-5 * scale)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["certificate.json", "model.stablehlo"]
    made = json.loads((tmp_path / "made" / "certificate.json").read_text())
    assert made == certificate
    assert [list(made[key]) for key in ("difference_by_batch", "latency_ms")] == [["1", "3"]] * 2
    assert made["largest_difference"] <= 1e-5 * scale
    assert certificate["parameters"] == eqx_vit.count_params(model)
    assert certificate["platforms"] == ["cpu", "cuda", "tpu"]

    np.save(tmp_path / "images.npy", images)
    places = [tmp_path / name for name in ("made/model.stablehlo", "images.npy", "logits.npy")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *places], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-5 * scale)


def test_the_certificate_names_the_checkpoint_and_a_fixed_batch_is_the_only_one(tmp_path: Path) -> None:
    model, state = randomise(TINY["vit"])
    certificate = eqx_vit.export.stablehlo(tmp_path / "made", model, state, 2, ("cpu",))
    save(tmp_path / "model.safetensors", model, state)
    described = read_metadata(tmp_path / "model.safetensors")[METADATA]
    assert certificate["checkpoint_sha256"] == json.loads(described)["digest"]
    assert certificate["difference_by_batch"] == {"2": certificate["largest_difference"]}
    call = eqx_vit.export.load(tmp_path / "made" / "model.stablehlo")
    assert call(make_images("vit", 2)).shape == (2, TINY["vit"].num_classes)
    with pytest.raises(ValueError, match="shape"):
        call(make_images("vit", 3))


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model, state = randomise(TINY["vit"])
    path = tmp_path / "made"
    skeleton = eqx_vit.create_abstract(TINY["vit"])
    broken = with_named_leaves(model, {"norm.weight": jnp.full(TINY["vit"].dim, jnp.nan)})
    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]) if eqx.is_array(leaf) else leaf, model)
    narrow = eqx_vit.cast(model, jnp.bfloat16)
    refused: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("batch must be 'dynamic' or a number from 1 on, given 0", (model, state, 0), {}),
        ("takes arrays with values", skeleton, {}),
        ("infinite or NaN weights: norm.weight", (broken, state), {}),
        ("an ensemble of 2", (ensemble, state), {}),
        ("takes images of", (model, state), {"image_size": 7}),
        ("platforms must be some of", (model, state), {"platforms": ("gpu",)}),
        ("none of the platforms tpu", (model, state), {"platforms": ("tpu",)}),
        ("allowed: nothing is written", (narrow, state), {"platforms": ("cpu",)}),
        ("model must be a model of this library", (state, state), {}),
    ]
    for message, arguments, options in refused:
        with pytest.raises(ValueError, match=message):
            eqx_vit.export.stablehlo(path, *arguments, **options)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError, match="exists already"):
        eqx_vit.export.stablehlo(tmp_path, model, state)


def test_what_is_no_exported_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.stablehlo"):
        eqx_vit.export.load(tmp_path)
    (tmp_path / "model.stablehlo").write_bytes(b"not a program")
    with pytest.raises(ValueError, match="damaged, or not a program"):
        eqx_vit.export.load(tmp_path)


def test_a_file_that_differs_is_refused(tmp_path: Path) -> None:
    model, state = randomise(TINY["vit"])
    program = make_program("export", model, state, 1, None)
    (own,) = program.compute(program.make_examples())
    wrong = {
        "differs from the model by": own * 1.001,
        "differs from the model by nan": own * np.nan,
        "of shape": own[0],
    }
    for message, logits in wrong.items():
        with pytest.raises(ValueError, match=message):
            certify(tmp_path, program, Measured([logits], [[1.0]]), tolerance=1e-4, packages=(), details={})
        assert list(tmp_path.iterdir()) == []
    made = certify(tmp_path, program, Measured([own], [[1.0, 3.0, 2.0]]), tolerance=1e-4, packages=(), details={})
    assert (made["largest_difference"], made["latency_ms"]) == (0, {"1": 2000.0})


@slow_but_for("cait")
def test_a_flat_program_has_separate_blocks_and_the_same_numbers(name: str) -> None:
    model, state = randomise(TINY[name])
    program = make_program("export", model, state, 2, tiny_size(name))
    images = make_images(name, 2)
    flat = flatten(jax.make_jaxpr(lambda images: program(images))(images), FORMS)
    names = {equation.primitive.name for equation in flat.jaxpr.eqns}
    assert not names & {"jit", "scan", "while", "cond", "remat2", "custom_jvp_call", "platform_index", "pad", "iota"}
    (found,) = jaxpr_as_fun(flat)(jnp.asarray(images))
    expected = program(jnp.asarray(images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_operations_written_as_others_are_the_same() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 6, 3), dtype=np.float32))

    def run(x: jax.Array) -> list[jax.Array]:
        padded = jax.lax.pad(x, 2.0, ((0, 0, 0), (1, 2, 0), (-1, 3, 0), (0, -1, 0)))
        least = np.array(-np.inf, dtype=np.float32)
        pooled = jax.lax.reduce_window(
            x, least, jax.lax.max, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 1), (0, 0))
        )
        carry, rows = jax.lax.scan(lambda sum, row: (sum + row, sum * row), x[0], x[1:], reverse=True)
        return [padded, pooled, carry, rows, jnp.where(jnp.arange(3) > 1, x, 0.0)]

    flat = flatten(jax.make_jaxpr(run)(x), FORMS)
    assert not {"pad", "reduce_window_max", "scan", "iota", "gt"} & {eqn.primitive.name for eqn in flat.jaxpr.eqns}
    for found, expected in zip(jaxpr_as_fun(flat)(x), run(x), strict=True):
        np.testing.assert_array_equal(found, expected)
    for name, hole in {
        "pad": lambda x: jax.lax.pad(x, 0.0, ((0, 0, 1), *[(0, 0, 0)] * 3)),
        "reduce_window": lambda x: jax.lax.reduce_window(
            x, -np.inf, jax.lax.max, (1, 2, 1, 1), (1,) * 4, "VALID", window_dilation=(1, 2, 1, 1)
        ),
    }.items():
        with pytest.raises(ValueError, match=name):
            flatten(jax.make_jaxpr(hole)(x), FORMS)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), fill_folder(tmp_path / "deep" / "made") as folder:
        folder.write_text("half")
    assert list((tmp_path / "deep").iterdir()) == []
    with fill_folder(tmp_path / "made") as folder:
        assert not (tmp_path / "made").exists()
        (folder / "file").write_text("whole")
    assert (tmp_path / "made" / "file").read_text() == "whole"
    with pytest.raises(FileExistsError), fill_folder(tmp_path / "made"):
        pass


def test_several_formats_are_one_folder(tmp_path: Path) -> None:
    config = dataclasses.replace(find_preset("vit_tiny_patch16_224"), image_size=16, num_classes=2)
    model, state = eqx_vit.create(config, key=jax.random.key(0))
    spec = Preprocessing(
        image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop=1.0, classes=2
    )
    subject = Subject(model, state, "vit_tiny_patch16_224", spec, ("cat", "dog"))
    options = {"batch": "dynamic", "opset": None, "platforms": None}
    lines = list(export_formats(subject, ("timm", "hf"), tmp_path / "made", **options))
    assert [line.split(":")[0] for line in lines] == [
        str(tmp_path / f"made/{name}/model.safetensors") for name in ("timm", "hf")
    ]
    for name in ("timm", "hf"):
        certificate = json.loads((tmp_path / "made" / name / "certificate.json").read_text())
        assert certificate["parameters"] == eqx_vit.count_params(model)
    assert json.loads((tmp_path / "made/timm/config.json").read_text())["label_names"] == ["cat", "dog"]
    wrong = subject._replace(preset="vit_small_patch16_224")
    with pytest.raises(ValueError, match="is not a vit_small"):
        list(export_formats(wrong, ("hf", "timm"), tmp_path / "other", **options))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "made")
    assert main(["export", str(tmp_path / "nowhere"), "--to", "stablehlo", "--output", output]) == 2
    assert "is neither the folder of a run nor a preset" in capsys.readouterr().err
    for name, value, message in (("--to", "coreml", "onnx, stablehlo, timm, hf"), ("--batch", "0", "from 1 up")):
        with pytest.raises(SystemExit, match="2"):
            main(["export", "digits", "--to", "stablehlo", "--output", output, name, value])
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_flatbuffers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eqx_vit.export.to_stablehlo.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"flatbuffers: pip install 'eqx_vit\[export\]'"):
        eqx_vit.export.stablehlo(tmp_path / "made", *eqx_vit.create(TINY["vit"], key=jax.random.key(0)))
    with pytest.raises(ImportError, match="flatbuffers"):
        eqx_vit.export.load(tmp_path / "made")
    assert not (tmp_path / "made").exists()
