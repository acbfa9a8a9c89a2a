"""What training is fed and told: images and their split, augmentation, settings, model configs; and its figures."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from eqx_vit.registry import MODELS
from eqx_vit.train.augment import (
    AffineAugmentation,
    InputSpec,
    identity_affines,
    prepare_batch,
    random_affines,
    sample_bilinear,
)
from eqx_vit.train.batches import choose_batch_size, draw_batches
from eqx_vit.train.config import SMALL_MODELS, make_model_config, parse_changes
from eqx_vit.train.data import View, channel_statistics, load_data, load_digits, load_image_folder
from eqx_vit.train.image_folder import find_classes, list_names
from eqx_vit.train.inference import evaluate_run
from eqx_vit.train.loop import train_run
from eqx_vit.train.pictures import read_image
from eqx_vit.train.plots import draw_curves, draw_samples
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import EpochMetrics, write_run
from eqx_vit.train.settings import Settings, make_settings
from eqx_vit.train.start import resume_run, start_run

QUIET = ProgressLog(quiet=True)


# --- data


def test_the_digits_are_split_by_class_once_and_for_all() -> None:
    data = load_digits()
    assert data.images.shape == (1797, 8, 8, 1)
    assert (len(data.train), len(data.validation), len(data.test)) == (1259, 179, 359)
    everything = np.concatenate([data.train, data.validation, data.test])
    assert sorted(everything.tolist()) == list(range(1797))
    for part, share in ((data.validation, 0.1), (data.test, 0.2)):
        counts = np.bincount(data.labels[part]) / np.bincount(data.labels)
        assert np.abs(counts - share).max() < 0.005
    assert load_digits().fingerprint == data.fingerprint


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    train = np.arange(100, 137)
    order = draw_batches(train, 3, 5, 10)
    assert order.shape == (3, 10)
    assert len(set(order.ravel())) == 30
    assert set(order.ravel()) <= set(train)
    assert np.array_equal(order, draw_batches(train, 3, 5, 10))
    assert not np.array_equal(order, draw_batches(train, 3, 6, 10))
    assert not np.array_equal(order, draw_batches(train, 4, 5, 10))


def test_a_batch_that_no_step_could_have_is_refused() -> None:
    good = Settings(model="digits", changes={}, epochs=1, learning_rate=1e-3)
    train = np.arange(7, dtype=np.int32)
    assert choose_batch_size(good, train) == 7
    assert choose_batch_size(dataclasses.replace(good, mixup=0.8), train) == 6
    assert choose_batch_size(dataclasses.replace(good, accumulate=4), train) == 4
    with pytest.raises(ValueError, match=r"a batch of 7 \(7 training images\) is too small: .* need 8"):
        choose_batch_size(dataclasses.replace(good, accumulate=8), train)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, dark and bright, of 12 images of different sizes and kinds; one file is not an image, one is cut."""
    random = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 40)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(12):
            height, width = random.integers(9, 40, 2)
            pixels = random.integers(level - 30, level + 30, (height, width, 3)).astype(np.uint8)
            image = Image.fromarray(pixels).convert(("RGB", "L", "RGBA")[index % 3])
            image.save(folder / f"{index:02d}.{('jpg', 'png', 'webp')[index % 3]}")
    (tmp_path / "photos" / "dark" / "notes.txt").write_text("not a picture")
    whole = (tmp_path / "photos" / "bright" / "00.jpg").read_bytes()
    (tmp_path / "photos" / "bright" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos" / ".hidden").mkdir()
    return tmp_path / "photos"


def test_an_image_folder_trains_and_reports_unreadable_files(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "US$5_or_$6_\udcf6ff"  # neither mathematics nor UTF-8
    (photos / "bright").rename(photos / name)
    changes = {"image_size": 16, "patch_size": 8, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    given = {"data": str(photos), "epochs": 15, "batch_size": 8, "changes": changes, "flip": True, "seed": 1}
    run, data = start_run(given, ProgressLog())
    printed = capsys.readouterr().out
    assert "2 of 26 files left out" in printed
    assert "notes.txt is not an image that Pillow can read" in printed
    assert "cut.jpg is damaged" in printed
    assert data.classes == (name, "dark")
    assert run.config.num_classes == 2
    assert data.images.shape == (24, 16, 16, 3)
    write_run(tmp_path / "run", run)
    result = train_run(tmp_path / "run", run, data, QUIET, lambda: False)
    assert result is not None
    assert result.test_accuracy == 1
    assert (tmp_path / "run" / "samples.png").exists()
    assert "\n  US$5_or_$6_\ufffdff  100.00%" in evaluate_run(tmp_path / "run", "best", "test", None)
    (photos / "dark" / "01.png").unlink()
    with pytest.raises(ValueError, match="have changed"):
        resume_run(tmp_path / "run", {}, QUIET)


def test_folders_that_are_no_classes_are_refused(photos: Path, tmp_path: Path) -> None:
    for folder, words in (
        (tmp_path / "nope", "there is no folder"),
        (photos / "dark" / "notes.txt", "is a file"),
        (photos / "dark", "no sub-folders"),
        (tmp_path, "one class only, 'photos'"),
    ):
        with pytest.raises(ValueError, match=words):
            find_classes(folder)
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"3 readable images or more .*: empty \(0\)"):
        load_image_folder(photos, View((8, 8), 3), QUIET)


def fill(folder: Path, *, classes: Sequence[str] = ("cat", "dog"), images: int = 4) -> None:
    """An image folder of small grey squares, each of another shade."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(images):
            shade = 10 * index + 100 * label + len(folder.name)
            Image.new("L", (4, 4), shade).save(folder / name / f"{index}.png")


def test_hidden_files_and_folders_are_no_data(tmp_path: Path) -> None:
    fill(tmp_path)
    data = load_data(str(tmp_path), View((4, 4), 1), QUIET)
    for hidden in (".ipynb_checkpoints", ".thumbnails/deeper", "more/.git/objects", "more/@eaDir", "__MACOSX"):
        fill(tmp_path / "cat" / hidden, classes=["copies"])
    fill(tmp_path / ".cache")
    fill(tmp_path / "__MACOSX")
    (tmp_path / "dog" / "._0.png").write_bytes(b"resource fork")
    after = load_data(str(tmp_path), View((4, 4), 1), QUIET)
    assert (after.fingerprint, len(after.labels), after.unreadable) == (data.fingerprint, 8, ())
    fill(tmp_path / "cat" / "more", classes=["deep"])
    assert len(load_data(str(tmp_path), View((4, 4), 1), QUIET).labels) == 12


def test_what_is_no_file_is_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    fill(photos)
    fill(elsewhere)
    (photos / "cat" / "gone.png").symlink_to("nowhere.png")
    (photos / "cat" / "loop.png").symlink_to("loop.png")
    (photos / "cat" / "linked").symlink_to(elsewhere)
    (photos / "cat" / "one.png").symlink_to(elsewhere / "dog" / "0.png")  # a linked file is read
    (photos / "bird").symlink_to("nowhere")
    os.mkfifo(photos / "dog" / "pipe.png")
    (photos / "dog" / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = load_data(str(photos), View((4, 4), 1), ProgressLog())
    assert len(data.labels) == 9
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "6 of 15 files left out:"
    assert sorted(line.removeprefix(f"  {photos}/") for line in printed[1:]) == [
        "bird is a broken link",
        "cat/gone.png is a broken link",
        "cat/linked is a link to a folder",
        "cat/loop.png is a broken link",
        "dog/locked cannot be listed: Permission denied",
        "dog/pipe.png is not a file that can be read",
    ]


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "validation", "Testing"), ("train", "valid"), ("train", "test")]
)
def test_a_split_that_comes_with_the_data_is_kept(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, (train, *held_out) = tmp_path / "photos", names
    fill(photos / train, images=5)
    for name in held_out:
        fill(photos / name, images=3)
    given = {"data": str(photos), "changes": {"image_size": 16, "patch_size": 8, "dim": 8, "depth": 1, "heads": 2}}
    run, data = start_run(given, ProgressLog())
    assert data.classes == run.classes == ("cat", "dog")
    assert data.split == run.split == names
    printed = capsys.readouterr().out
    assert f"split as given: {', '.join(names)}" in printed
    shades = [sorted({int(image[0, 0, 0]) % 10 for image in data.images[part]}) for part in data[3:6]]
    counts = [np.bincount(data.labels[part]).tolist() for part in data[3:6]]
    if len(names) == 3:
        assert shades == [[len(name) % 10] for name in names]
        assert counts == [[5, 5], [3, 3], [3, 3]]
    else:
        assert shades == [[len(train)], [len(held_out[0])], [len(held_out[0])]]
        assert counts == [[5, 5], [1, 1], [2, 2]]
        assert f"{held_out[0]} is shared between validation and test" in printed
    write_run(tmp_path / "run", run)
    again, same = resume_run(tmp_path / "run", {}, QUIET)
    assert again == run
    assert all(np.array_equal(old, new) for old, new in zip(data[3:6], same[3:6], strict=True))
    # The same pictures, with one moved from training to the next folder: another split.
    (photos / train / "dog" / "4.png").rename(photos / held_out[0] / "dog" / "-.png")
    with pytest.raises(ValueError, match="have changed"):
        resume_run(tmp_path / "run", {}, QUIET)


def test_splits_that_are_none_are_refused_or_said(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    with pytest.raises(ValueError, match=r"one class only, 'train': .* give .*/train"):
        find_classes(tmp_path)
    (tmp_path / "test").mkdir()  # of images without labels
    Image.new("L", (4, 4)).save(tmp_path / "test" / "0.png")
    fill(tmp_path / "annotations", images=0)
    data = load_data(str(tmp_path), View((4, 4), 1), QUIET)
    assert (data.classes, data.split, len(data.labels)) == (("cat", "dog"), (), 8)
    assert any("test has no sub-folders" in line for line in data.unreadable)
    assert any("annotations is no part of the split" in line for line in data.unreadable)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="val has no sub-folders"):
        find_classes(tmp_path)
    fill(tmp_path / "val", classes=["cat", "cow"])
    with pytest.raises(ValueError, match=r"val must have the classes of .*train: missing dog, unknown cow"):
        find_classes(tmp_path)
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "dog")
    for index in range(1, 4):
        (tmp_path / "val" / "cat" / f"{index}.png").unlink()
    with pytest.raises(ValueError, match=r"val needs 2 readable images or more \(validation, test\).*: cat \(1\)"):
        load_data(str(tmp_path), View((4, 4), 1), QUIET)


def test_train_and_test_can_be_things_to_tell_apart(tmp_path: Path) -> None:
    fill(tmp_path, classes=["bus", "test", "train"])
    assert find_classes(tmp_path) == ["bus", "test", "train"]


def test_names_are_listed_within_bounds() -> None:
    assert list_names(["US$5_or_$6", "Fr\udcf6sche", "a\nb"]) == "US$5_or_$6, Fr\ufffdsche, a\ufffdb"
    many = list_names([f"{index:0200}" for index in range(5000)])
    assert many.endswith(" and 4,990 more")
    assert len(many) < 1000


def test_images_of_every_kind_become_the_same_array(tmp_path: Path) -> None:
    grey = np.add.outer(np.arange(12), np.arange(12)).astype(np.uint8) * 8
    images = {
        "grey.png": Image.fromarray(grey),
        "colour.png": Image.fromarray(grey).convert("RGB"),
        "alpha.png": Image.fromarray(grey).convert("RGBA"),
        "both.png": Image.fromarray(grey).convert("LA"),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "wide.tiff": Image.fromarray(grey.astype(np.int32) * 257),
        "palette.gif": Image.fromarray(grey).convert("P"),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        for channels in (1, 3):
            array = read_image(tmp_path / name, (12, 12), channels)
            assert array.shape == (12, 12, channels)
            assert np.abs(array - grey[..., None].astype(int)).max() <= 1, name
    clear = Image.new("RGBA", (5, 9))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", (4, 6), 1).min() == 255
    for path in (tmp_path, tmp_path / "nope.png"):
        with pytest.raises(ValueError, match=str(path)):
            read_image(path, (4, 6), 1)


def test_only_ten_unreadable_files_are_listed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(12):
        (photos / "dark" / f"notes{index}.txt").write_text("not an image")
    data = load_data(str(photos), View((8, 8), 1), ProgressLog())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "14 of 38 files left out:"
    assert len(lines) == 12
    assert lines[-1].strip() == "... and 4 more"
    assert data.images.shape == (24, 8, 8, 1)


def test_channel_statistics_are_those_of_the_training_images() -> None:
    data = load_digits()
    pixels = np.asarray(data.images[data.train]) / 255
    mean, std = channel_statistics(data)
    np.testing.assert_allclose(mean, [pixels.mean()])
    np.testing.assert_allclose(std, [pixels.std()])
    _, std = channel_statistics(data._replace(images=np.full(data.images.shape, 7, dtype=np.uint8)))
    np.testing.assert_allclose(std, [1 / 255])


# --- augmentation


def test_without_augmentation_sampling_is_the_image_or_its_bilinear_enlargement() -> None:
    images = jax.random.randint(jax.random.key(0), (2, 6, 5, 3), 0, 256).astype(jnp.uint8)
    same = prepare_batch(images, InputSpec((6, 5), 3, (0.0,) * 3, (1.0,) * 3), identity_affines(2))
    np.testing.assert_allclose(same, np.asarray(images) / 255, atol=1e-5)
    one = images[0].astype(jnp.float32)
    large = sample_bilinear(one, identity_affines(1)[0], (12, 15))
    expected = jax.image.resize(one, (12, 15, 3), "linear")
    # At the rim ours fades to black, theirs repeats the last pixel.
    np.testing.assert_allclose(large[2:-2, 2:-2], expected[2:-2, 2:-2], rtol=1e-4, atol=1e-3)


def test_augmentation_rotates_shifts_and_mirrors() -> None:
    image = jnp.zeros((9, 9, 1)).at[1, 4, 0].set(1.0)
    quarter = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert float(sample_bilinear(image, quarter, (9, 9))[4, 7, 0]) > 0.99
    affines = random_affines(jax.random.key(1), 1000, AffineAugmentation(0.0, 0.25, 0.0, True))
    np.testing.assert_allclose(jnp.abs(affines[:, :, :2]), jnp.broadcast_to(jnp.eye(2), (1000, 2, 2)), atol=1e-6)
    assert 400 < int(jnp.sum(affines[:, 1, 1] < 0)) < 600
    assert 0.45 < float(jnp.abs(affines[:, :, 2]).max()) <= 0.5
    still = random_affines(jax.random.key(1), 3, AffineAugmentation(0.0, 0.0, 0.0, False))
    np.testing.assert_allclose(still, identity_affines(3), atol=1e-7)


def test_outside_of_the_image_is_black() -> None:
    image = jnp.ones((4, 4, 1))
    half_out = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    sampled = sample_bilinear(image, half_out, (4, 4))[..., 0]
    np.testing.assert_allclose(sampled[:2], 1, atol=1e-6)
    np.testing.assert_allclose(sampled[2:], 0, atol=1e-6)
    far_out = jnp.array([[1.0, 0.0, 9.0], [0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(sample_bilinear(image, far_out, (4, 4)), jnp.zeros((4, 4, 1)))


# --- models and settings


def test_changes_are_parsed_as_python_writes_them() -> None:
    assert parse_changes(["dim=64", "depth=2,3", "pool=cls", "layer_scale=none", "qk_norm=True", "dropout=.5"]) == {
        "dim": 64,
        "depth": (2, 3),
        "pool": "cls",
        "layer_scale": None,
        "qk_norm": True,
        "dropout": 0.5,
    }
    for wrong, words in ((["dim"], "field=value"), (["=3"], "field=value"), (["dim=1", "dim=2"], "twice")):
        with pytest.raises(ValueError, match=words):
            parse_changes(wrong)


def test_models_of_every_kind_get_their_config_and_size() -> None:
    config: Any
    config, size = make_model_config("vit_tiny_patch16_224", {"depth": 2}, None, 10)
    assert (config.num_classes, config.depth, config.channels, size) == (10, 2, 3, (224, 224))
    config, size = make_model_config("levit_128s", {}, (64, 32), 7)
    assert (config.num_classes, config.num_distill_classes, size) == (7, 7, (64, 32))
    config, size = make_model_config("levit", {"dim": (16, 16, 16), "dim_key": 8, "image_size": 32}, None, 7)
    assert (config.num_classes, config.num_distill_classes, size) == (7, None, (32, 32))
    config, size = make_model_config("crossvit_tiny_240", {}, None, 7)
    assert (config.num_classes, size) == (7, (240, 240))
    for name in SMALL_MODELS:
        assert make_model_config(name, {}, None, 10)[0] == SMALL_MODELS[name]
    for arguments, words in (
        (("vit_tinny_patch16_224", {}, None, 10), "did you mean vit_tiny_patch16_224"),
        (("vit", {"dim": 8}, None, 10), "ViTConfig needs image_size, patch_size, depth"),
        (("digits", {"num_classes": 3}, None, 10), "num_classes=3 is too few"),
        (("digits", {"channels": 2}, None, 10), "channels=2"),
        (("digits", {"image_size": 16}, 8, 10), "contradicts"),
        (("digits", {"image_size": 10}, None, 10), "not a multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            make_model_config(*arguments)


def test_models_for_any_size_take_that_of_the_data() -> None:
    name = next(iter(MODELS["twins_svt"].presets))
    assert make_model_config(name, {}, None, 10)[1] == (224, 224)
    assert make_model_config(name, {}, (64, 96), 10)[1] == (64, 96)
    assert make_model_config(name, {"image_size": 64}, None, 10)[1] == (64, 64)
    with pytest.raises(ValueError, match="image_size must be one number of pixels"):
        make_model_config(name, {"image_size": (64, 64, 3)}, None, 10)


def test_defaults_depend_on_the_model() -> None:
    assert (make_settings({}).model, make_settings({"data": "folder"}).model) == ("digits", "photos")
    assert (make_settings({}).epochs, make_settings({"model": "levit_128s"}).epochs) == (40, 5)
    assert make_settings({"model": "levit_128s", "epochs": 2, "seed": 3}).seed == 3


def test_settings_are_checked() -> None:
    good = Settings(model="digits", changes={}, epochs=1, learning_rate=1e-3)
    for name, value in (
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", -1),
        ("learning_rate", float("nan")),
        ("learning_rate", 0.0),
        ("ema", 1.0),
        ("warmup", -0.1),
        ("weight_decay", -1.0),
        ("rotate", 200.0),
        ("seed", -1),
        ("flip", 1),
        ("precision", "float16"),
        ("accumulate", 3),
    ):
        with pytest.raises(ValueError, match=f"Settings.{name}"):
            dataclasses.replace(good, **{name: value})


# --- figures


def test_figures_of_short_runs_and_few_images(tmp_path: Path) -> None:
    metrics = EpochMetrics(1, 4, 0.1, 0.5, 0.5, 0.5, 0.5, 2.0)
    draw_curves(tmp_path / "curves.png", [metrics], "one epoch")
    images = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    labels = np.zeros(1, dtype=np.int32)
    draw_samples(tmp_path / "samples.png", images, labels, np.array([[1.0, 0.0]]), ("yes", "no"), "one image")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "name", ["US$5_or_$6_off", r"$\frac{$", "Fr\udcf6sche", "猫", "two\nlines", "\x1b[31m", "x" * 300]
)
def test_any_class_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4, 1), dtype=np.uint8)
    labels, probabilities = np.array([0, 1], dtype=np.int32), np.array([[0.9, 0.1], [0.6, 0.4]])
    draw_samples(tmp_path / "samples.png", images, labels, probabilities, (name, "other"), name[:20])
    assert (tmp_path / "samples.png").stat().st_size > 1000
