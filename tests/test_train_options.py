"""The options of `eqx-vit train` and `evaluate` beside those of plain runs: recipes, trackers, pictures, mistakes."""

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PRNGKeyArray
from PIL import Image
from test_cli import refused, run
from test_train import compiled_once as compiled_once, metrics, weights

import eqx_vit
from eqx_vit.cli import commands
from eqx_vit.registry import AnyModel
from eqx_vit.train import evaluate_preset as evaluate_module
from eqx_vit.train.loop import TRACK_STEPS
from eqx_vit.train.recipes import list_recipes
from eqx_vit.train.run_folder import BEST, LAST, METRICS, TRAINING_STATE, read_run
from eqx_vit.train.show import BATCH
from eqx_vit.weights import preprocessing

SIZES = {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
TINY = ["--batch-size", "256", "--epochs", "2"]
TINY += [word for name, size in SIZES.items() for word in ("--set", f"{name}={size}")]


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """Not all of the eight that the tests have, of which a small batch is no multiple."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(commands, "make_mesh", lambda **_: None)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of colour images, as they come from a camera: of different sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(6):
            pixels = rng.integers(0, 256, (*rng.integers(33, 50, 2), 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run("train", *TINY, "--output", folder) == 0
    return folder


# --- pictures and recipes


def test_show_batch_draws_what_the_model_is_given_and_trains_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    augmentation = ["--crop", "random", "--rand-augment", "rand-m9-mstd0.5", "--cutmix", "1", "--erase", "0.5"]
    arguments = ["--data", photos, *TINY, *augmentation, "--batch-size", "4", "--output", tmp_path / "run"]
    assert run("train", *arguments, "--show-batch") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run" / BATCH)
    with Image.open(tmp_path / "run" / BATCH) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 600
    assert pixels.reshape(-1, 3).std(axis=0).min() > 20
    assert not [name for name in (METRICS, TRAINING_STATE, BEST, LAST) if (tmp_path / "run" / name).exists()]
    assert run("train", "--resume", tmp_path / "run", "--show-batch") == 0
    with Image.open(tmp_path / "run" / BATCH) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_options_change_single_settings_of_a_recipe(photos: Path, tmp_path: Path) -> None:
    recipe = next(recipe for recipe in list_recipes() if recipe.name == "cifar10_sl_vit")
    changed = ["--epochs", "3", "--batch-size", "4", "--drop-path", "0.3", "--set", "depth=1"]
    command = ["train", "--recipe", recipe.name, "--data", photos, *changed, "--output", tmp_path / "run"]
    assert run(*command, "--show-batch") == 0
    settings = read_run(tmp_path / "run").settings
    expected = recipe.settings | {"epochs": 3, "batch_size": 4, "changes": {"drop_path": 0.3, "depth": 1}}
    assert {name: getattr(settings, name) for name in expected} == expected
    assert (settings.recipe, settings.data) == (recipe.name, str(photos))


def test_a_recipe_of_ones_own_trains_and_its_misspelt_field_is_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "".join(f"{name} = {size}\n" for name, size in SIZES.items())
    path = tmp_path / "my.toml"
    path.write_text(f"[settings]\nepochs = 9\nbatch_size = 256\n[settings.changes]\n{sizes}")
    assert run("train", "--recipe", path, "--epochs", "2", "--output", tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(whole)
    path.write_text("[settings]\nepoch = 9\n")
    message = refused(capsys, "train", "--recipe", path, "--output", tmp_path / "other")
    assert "my.toml: [settings] has 'epoch', which it cannot have: did you mean epochs" in message
    path.write_text("[settings]\n[settings.changes]\ndimm = 9\n")
    assert "no field 'dimm': did you mean dim" in refused(capsys, "train", "--recipe", path)
    assert "there is no recipe 'my'" in refused(capsys, "train", "--recipe", "my")
    assert not (tmp_path / "other").exists()


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    assert names >= {recipe.name for recipe in list_recipes()}


# --- trackers and profiles


def fake_tracker(told: list[Any]) -> Any:
    def init(*, project: str, name: str, config: dict[str, Any]) -> None:
        told.append(("init", project, name, config))

    def log(numbers: dict[str, float], *, step: int) -> None:
        told.append(("log", step, numbers))

    def finish() -> None:
        told.append(("finish",))

    module: Any = ModuleType("trackio")
    module.init, module.log, module.finish = init, log, finish
    return module


def test_a_tracker_is_told_the_numbers(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setitem(sys.modules, "trackio", fake_tracker(told))
    assert run("train", *TINY, "--track", "trackio", "--output", tmp_path / "run") == 0
    (_, project, name, config), *logs, last = told
    assert (project, name, config["epochs"], last) == ("eqx_vit", "run", 2, ("finish",))
    assert TRACK_STEPS > 8
    assert [step for _, step, _ in logs] == [1, 4, 8]
    assert logs[0][2]["loss"] == pytest.approx(2.3, abs=0.5)
    assert logs[0][2].keys() == {"loss", "learning_rate", "gradient_norm", "images_per_second", "data_wait"}
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [numbers for *_, numbers in logs[1:]] == lines[:2]
    assert weights(tmp_path / "run") == weights(whole)


def test_a_tracker_is_closed_where_the_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []
    monkeypatch.setitem(sys.modules, "trackio", fake_tracker(told))
    command = ["train", *TINY, "--track", "trackio", "--freeze", "nonsense", "--output", tmp_path / "run"]
    assert "no parameters at nonsense: they are in patch_embedding" in refused(capsys, *command)
    assert told[-1] == ("finish",)
    assert not (tmp_path / "run").exists()


def test_tensorboards_writer_gets_a_scalar_for_each_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: list[tuple[str, float, int]] = []
    closed: list[str] = []

    def make_writer(folder: str) -> SimpleNamespace:
        return SimpleNamespace(add_scalar=lambda *one: scalars.append(one), close=lambda: closed.append(folder))

    module: Any = ModuleType("tensorboardX")
    module.SummaryWriter = make_writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    assert run("train", *TINY, "--track", "tensorboard", "--output", tmp_path / "run") == 0
    accuracies = [(value, step) for name, value, step in scalars if name == "validation_accuracy"]
    assert accuracies == [(line["validation_accuracy"], line["step"]) for line in metrics(tmp_path / "run")[:2]]
    assert closed == [str(tmp_path / "run" / "tensorboard")]


def test_trackers_that_are_missing_or_fail_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("no\nlogin")

    command = ["train", *TINY, "--output", tmp_path / "run", "--track"]
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            assert f"--track {name} needs {package}: pip install {package}" in refused(capsys, *command, name)
    module: Any = ModuleType("wandb")
    module.init = fail
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert "--track wandb failed: no login" in refused(capsys, *command, "wandb")
    assert "invalid choice: 'mlflow'" in refused(capsys, *command, "mlflow")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("span", ["1:2", "6:99"])
def test_a_profile_is_left_of_the_steps_that_there_are(span: str, tmp_path: Path) -> None:
    assert run("train", *TINY, "--profile", span, "--output", tmp_path / "run") == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_resumed_run_may_be_past_its_profile(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--resume", whole, "--profile", "2:8") == 0
    assert not (whole / "profile").exists()
    assert "--profile 8:9: the run has 8 steps" in refused(capsys, "train", "--resume", whole, "--profile", "8:9")


# --- mistakes


def copy_images(photos: Path, folder: Path) -> None:
    for path in sorted(photos.rglob("*.png")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())


def test_folders_that_are_no_data_set_are_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_images(photos, tmp_path / "imagenet" / "train")
    command = ["train", *TINY, "--crop", "random", "--output", tmp_path / "run", "--data", tmp_path / "imagenet"]
    message = refused(capsys, *command)
    assert "one class only, 'train'" in message
    assert f"give {tmp_path / 'imagenet' / 'train'}" in message
    copy_images(photos, tmp_path / "imagenet" / "val")
    (tmp_path / "imagenet" / "val" / "emu").mkdir()
    assert "missing none, unknown emu" in refused(capsys, *command)
    (tmp_path / "imagenet" / "train" / "emu").mkdir()
    assert "needs a readable image (training), these have fewer: emu (0)" in refused(capsys, *command)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_one_line_and_leave_nothing(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("hello")
    for arguments, words in (
        (["--workers", "-1"], "takes a number of processes, 0 for none; given '-1'"),
        (["--workers", "many"], "--workers"),
        (["--profile", "3"], "takes FIRST:LAST"),
        (["--profile", "3:3"], "takes FIRST:LAST"),
        (["--profile", "8:9", *TINY], "the run has 8 steps"),
        (["--resume", whole, "--seeds", "2"], "--resume goes on with the runs as they are"),
        (["--resume", whole, "--learning-rate", "1e-3,2e-3"], "--resume goes on with the runs as they are"),
        (["--seeds", "2", "--track", "wandb", *TINY], "are for single runs: give them without --seeds and lists"),
        (["--seeds", "2", "--profile", "1:2", *TINY], "are for single runs: give them without --seeds and lists"),
        (["--seeds", "0"], "takes a whole number from 1 up"),
        (["--seed", str(2**32 - 1), "--seeds", "2"], "--seed must be from 0 to"),
        (["--learning-rate", "1e-3,"], "takes a number, or several with commas"),
        (["--learning-rate", "1e-3,-1"], "--learning-rate must be above 0"),
        (["--drop-path", "0,1"], "drop_path must be"),
        (["--drop-path", "0.1,x"], "takes a number, or several with commas"),
        (["--weight-decay", "0,inf"], "--weight-decay must be float"),
        (["--pretrained", *TINY], "there are no released weights of digits"),
        (["--pretrained", whole, "--set", "dim=16"], "holds another model than --model digits"),
        (["--pretrained", "nowhere", *TINY], "nowhere"),
        (["--pretrained", tmp_path / "text.safetensors", *TINY], "text.safetensors"),
        (["--teacher", whole, "--data", photos, *TINY], "tells 10 classes apart, the run 2"),
        (["--teacher", "nobody", *TINY], "neither a run's folder nor a preset"),
        (["--freeze", "nonsense", *TINY], "no parameters at nonsense"),
        (["--freeze", "", *TINY], "no parameters at"),
        (["--layer-decay", "2"], "--layer-decay must be from 0 to 1"),
        (["--head-learning-rate", "0"], "--head-learning-rate must be above 0"),
        (["--rand-augment", "magic"], "magic"),
        (["--rand-augment", "rand-m9", "--three-augment"], "--rand-augment and --three-augment exclude each other"),
        (["--mixup", "1", "--batch-size", "31"], "--batch-size must be even"),
        (["--crop-fraction", "0"], "--crop-fraction must be above 0"),
        (["--optimiser", "adam"], "invalid choice: 'adam'"),
    ):
        assert words in refused(capsys, "train", *arguments), arguments
        left = [path for path in tmp_path.iterdir() if path.name != "text.safetensors"]
        assert not [path for path in left if path.name != "runs" or list(path.iterdir())], arguments


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[bytes] = []
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == TRAINING_STATE and target.exists():
            states.append(target.read_bytes())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        message = refused(capsys, "train", *TINY, "--output", folder)
    assert message == "eqx-vit train: No space left on device\n"
    assert states == [(folder / TRAINING_STATE).read_bytes()]
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    assert len(metrics(folder)) == 2
    assert run("train", "--resume", folder) == 0
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)


# --- the accuracy of presets


def test_a_preset_is_evaluated_as_its_authors_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, classes = "vit_tiny_patch16_224", [f"class {number}" for number in range(7)]
    model: Any
    model, state = eqx_vit.create(name, depth=1, num_classes=7, image_size=32, key=jax.random.key(0))
    head = jax.random.normal(jax.random.key(1), model.head.weight.shape)  # a fresh one is zero
    model = eqx.tree_at(lambda model: model.head.weight, model, head)

    def create(asked: str, *, pretrained: bool, key: PRNGKeyArray) -> tuple[AnyModel, eqx.nn.State]:
        assert (asked, pretrained) == (name, True)
        return model, state

    expected = dataclasses.replace(preprocessing(name), classes=7, image_size=(32, 32))
    monkeypatch.setattr(evaluate_module, "create", create)
    monkeypatch.setattr(evaluate_module, "preprocessing", lambda asked: expected)
    rng, images, labels = np.random.default_rng(0), [], []
    for label, folder in enumerate(classes):
        (tmp_path / "val" / folder).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
            pixels[..., rng.integers(3)] //= 4
            Image.fromarray(pixels).save(tmp_path / "val" / folder / f"{number}.png")
            images.append(expected.apply(Image.fromarray(pixels)))
            labels.append(label)
    logits, _ = eqx_vit.forward(eqx_vit.inference_mode(model), state, jnp.asarray(np.stack(images)))
    ranking = np.argsort(-np.asarray(logits), axis=1)
    first = np.mean(ranking[:, 0] == labels)
    five = np.mean([label in ranks[:5] for label, ranks in zip(labels, ranking, strict=True)])
    assert 0 < first < five < 1
    assert run("evaluate", name, "--data", tmp_path / "val") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{name} on 70 images of {tmp_path / 'val'}: top-1 {first:.2%}, top-5 {five:.2%}" in lines
    assert any(line.startswith("reported for ImageNet-1k: top-1 75.45% (") for line in lines)

    (tmp_path / "val" / classes[0] / "note.txt").write_text("no image")
    damaged = tmp_path / "val" / classes[1] / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert run("evaluate", name, "--data", tmp_path / "val") == 0
    assert "on 69 images" in (line := capsys.readouterr().out)
    assert "(2 files could not be read)" in line

    (tmp_path / "train").mkdir()
    for folder in classes:
        (tmp_path / "train" / folder).mkdir()
    assert f"holds train and val: give one of them, such as {tmp_path / 'val'}" in refused(
        capsys, "evaluate", name, "--data", tmp_path
    )
    (tmp_path / "val" / "one more").mkdir()
    message = refused(capsys, "evaluate", name, "--data", tmp_path / "val")
    assert f"has 8 classes, and {name} tells 7 apart" in message
    assert "needs --data FOLDER" in refused(capsys, "evaluate", name)
    assert "there is no folder" in refused(capsys, "evaluate", name, "--data", tmp_path / "nowhere")
