"""`eqx-vit probe`: features computed once, classifiers that are chosen by the validation images."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from test_cli import TINY, refused, run

import eqx_vit
from eqx_vit import Source, ViTConfig
from eqx_vit.registry import MODELS
from eqx_vit.train import frozen, probe
from eqx_vit.train.frozen import Features
from eqx_vit.weights import export

PRESET = "probed_vit"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on the digits."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    assert run("train", *TINY, "--epochs", "1", "--learning-rate", "0.01", "--output", folder) == 0
    return folder


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights in timm's format for a tiny preset of ViT."""
    config = ViTConfig(
        image_size=16, patch_size=8, num_classes=0, dim=16, depth=1, heads=2, mlp_dim=16, layer_scale=1.0
    )
    row = MODELS["vit"]
    source = Source(hub=str(tmp_path / "weights"), classes=0, crop=1.0)
    presets, weights = {**row.presets, PRESET: config}, {**row.weights, PRESET: source}
    monkeypatch.setitem(MODELS, "vit", dataclasses.replace(row, presets=presets, weights=weights))
    model, state = eqx_vit.create(config, key=jax.random.key(0))
    export(tmp_path / "weights", model, state, target="timm", architecture=PRESET)
    return tmp_path / "weights"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 images each, dark and bright, of two sizes."""
    random = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(20):
            pixels = random.integers(level - 50, level + 50, (24 + index % 2, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "photos"


def accuracies(output: str) -> list[float]:
    return [float(share) for share in re.findall(r"test accuracy ([\d.]+)%", output)]


def test_a_run_is_probed_on_its_own_data(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run("probe", trained) == 0
    first = capsys.readouterr().out
    assert "16 features of 8 x 8 pixels, on digits, 10 classes: 1,259 training, 179 validation" in first
    assert min(accuracies(first)) > 30
    (file,) = (tmp_path / "probes").iterdir()
    assert file.name.startswith("run-")
    # A second time nothing is computed.
    monkeypatch.setattr(frozen, "compute_features", None)
    assert run("probe", trained) == 0
    second = capsys.readouterr().out
    assert second == first.replace("are now in", "were in")


def test_a_preset_is_probed_on_a_folder(
    preset: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.safetensors"
    options = ("--data", photos, "--output", kept, "--batch-size", "16")
    assert run("probe", PRESET, *options) == 0
    output = capsys.readouterr().out
    assert "16 features of 16 x 16 pixels, on photos, 2 classes: 28 training, 4 validation and 8 test images" in output
    assert accuracies(output) == [100, 100]
    # The same weights from elsewhere are the same model; another size is another one.
    assert run("probe", PRESET, *options, "--pretrained", preset) == 0
    assert "were in" in capsys.readouterr().out
    assert "has other features" in refused(capsys, "probe", PRESET, *options, "--image-size", "24")
    assert run("probe", PRESET, "--data", photos, "--image-size", "24", "--output", tmp_path / "larger") == 0
    assert "16 features of 24 x 24 pixels" in capsys.readouterr().out


def test_wrong_input_is_one_line(trained: Path, preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither the folder of a run nor a preset" in refused(capsys, "probe", "vit_huge_patch99")
    assert "--pretrained is for presets" in refused(capsys, "probe", trained, "--pretrained", preset)
    assert "--image-size is for presets" in refused(capsys, "probe", trained, "--image-size", "16")
    assert "there is no folder" in refused(capsys, "probe", PRESET, "--data", preset / "nothing")
    assert "is not a multiple of 8: use 16 or 24" in refused(capsys, "probe", PRESET, "--image-size", "20")


def test_without_a_head_features_are_looked_at_and_no_classes(
    preset: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / "dark" / "0.png"
    assert "has no head to tell classes apart" in refused(capsys, "predict", PRESET, photo)
    assert run("look", PRESET, photo, "--output", tmp_path / "looks") == 0
    assert run("look", PRESET, photo, "--features", "--output", tmp_path / "looks") == 0
    assert {path.name for path in (tmp_path / "looks").iterdir()} == {"0.look.png", "0.features.png"}


def test_features_are_those_of_the_model(preset: Path, photos: Path) -> None:
    from eqx_vit.train.progress import ProgressLog

    with ProgressLog(quiet=True) as log:
        found = frozen.freeze_preset(PRESET, True, str(photos), None, log)
        features = frozen.compute_features(found, 16, 0, log)
    expected = eqx_vit.weights.preprocessing(PRESET)
    model, _ = eqx_vit.create(PRESET, pretrained=True, key=jax.random.key(1), num_classes=0)
    paths = sorted(photos.glob("bright/*.png"))
    assert features.features.shape == (40, 16)
    assert list(features.labels) == [0] * 20 + [1] * 20
    for row in (0, 7):
        image = expected.apply(Image.open(paths[row]))
        np.testing.assert_allclose(features.features[row], eqx_vit.inference_mode(model)(image), atol=1e-5)


def blobs(spread: float, **parts: int) -> Features:
    """Three classes about the corners of a triangle, each with so many images in each part."""
    random = np.random.default_rng(0)
    corners = 3 * np.eye(3)
    counts = [3 * parts[name] for name in ("train", "validation", "test")]
    labels = np.concatenate([np.arange(count) % 3 for count in counts]).astype(np.int32)
    features = (corners[labels] + spread * random.standard_normal((len(labels), 3))).astype(np.float32)
    ends = np.cumsum(counts)
    train, validation, test = np.split(np.arange(len(labels)), ends[:2])
    return Features(features, labels, train, validation, test)


def test_classifiers_tell_what_can_be_told_apart() -> None:
    easy, hard = (blobs(spread, train=40, validation=10, test=40) for spread in (0.1, 30.0))
    for classify in (probe.classify_by_neighbours, probe.classify_by_regression):
        assert classify(easy).accuracy == 1
        assert classify(hard).accuracy < 0.6


def test_the_test_images_choose_nothing() -> None:
    """Other labels of the test images change what is found, and not what is chosen."""
    given = blobs(2.0, train=40, validation=40, test=40)
    other: Any = given.labels.copy()
    other[given.test] = (other[given.test] + 1) % 3
    for classify in (probe.classify_by_neighbours, probe.classify_by_regression):
        first, second = classify(given), classify(given._replace(labels=other))
        assert first.chosen == second.chosen
        assert first.accuracy > second.accuracy


def test_near_neighbours_weigh_more() -> None:
    cosines = np.array([[0.99, 0.5, 0.5]])
    assert list(probe._vote(cosines, np.array([[2, 1, 1]]))) == [2]
    assert list(probe._vote(np.full((1, 3), 0.5), np.array([[2, 1, 1]]))) == [1]
