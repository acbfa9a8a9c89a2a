"""The training program: exact resumption, equal numbers for equal seeds, image folders, checkpoints, pictures."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import TINY

import eqx_vit
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.train.data import class_names, digits, epoch_order, image_folder
from eqx_vit.train.loop import train_run
from eqx_vit.train.models import SMALL, model_config, parse_changes
from eqx_vit.train.optimiser import learning_rate, make_optimiser
from eqx_vit.train.pictures import read_picture
from eqx_vit.train.pixels import Moves, Pixels, identity_maps, moves_of, prepare, random_maps, sample
from eqx_vit.train.plots import draw_curves, draw_samples
from eqx_vit.train.report import Report
from eqx_vit.train.run import BEST, LAST, METRICS, TRAINING_STATE, check_free, read_run, write_run
from eqx_vit.train.settings import Settings
from eqx_vit.train.start import new_run, resumed_run
from eqx_vit.train.step import initial_state, make_train_step

GIVEN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 256,
    "changes": {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "dropout": 0.1},
}
QUIET = Report(quiet=True)


def train(folder: Path, given: dict[str, Any] = GIVEN, stopped: Any = lambda: False) -> dict[str, Any] | None:
    """Start a run in the folder, or go on with the one that is there."""
    if folder.exists():
        run, data = resumed_run(folder, {}, QUIET)
    else:
        run, data = new_run(given, QUIET)
        write_run(folder, run)
    return train_run(folder, run, data, QUIET, stopped)


def weights(folder: Path) -> list[str]:
    """Digests of all that training computed. Of the training state without its header, whose metrics hold seconds."""
    contents = [(folder / name).read_bytes() for name in (BEST, LAST, TRAINING_STATE)]
    contents[2] = contents[2][8 + int.from_bytes(contents[2][:8], "little") :]
    return [hashlib.sha256(content).hexdigest() for content in contents]


def metrics(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled steps on disk: most runs here repeat the same one."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder) is not None
    return folder


def test_a_run_leaves_all_that_is_promised(whole: Path) -> None:
    entries = metrics(whole)
    assert [entry.get("epoch") for entry in entries[:2]] == [1, 2]
    assert entries[0]["validation_loss"] > entries[1]["validation_loss"]
    assert 0 <= entries[-1]["test_accuracy"] <= 1
    config = json.loads((whole / "config.json").read_text())
    assert config["settings"]["epochs"] == 2
    for name, least in (("curves.png", (800, 250)), ("samples.png", (800, 400))):
        with Image.open(whole / name) as image:
            assert image.size >= least
            assert len(np.unique(np.asarray(image.convert("L")))) > 30
    for name in (BEST, LAST):
        model, state = eqx_vit.load(whole / name)
        logits, _ = eqx_vit.forward(eqx_vit.inference_mode(model), state, jnp.zeros((3, 8, 8, 1)))
        assert logits.shape == (3, 10)
    assert not [path for path in whole.iterdir() if path.suffix == ".tmp"]


def test_equal_seeds_give_equal_numbers_and_other_seeds_others(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "again")
    assert weights(tmp_path / "again") == weights(whole)
    assert metrics(tmp_path / "again") == metrics(whole)
    train(tmp_path / "other", GIVEN | {"seed": 1, "epochs": 1})
    assert metrics(tmp_path / "other")[0] != metrics(whole)[0]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


# Four writes end each epoch: best, last, metrics, training state. The config is the first write of all.
@pytest.mark.parametrize("write", [1, 5, 8])
def test_a_kill_at_any_write_is_mended_by_resuming(
    write: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def killed(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == write + 1:
            raise Killed
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        train(tmp_path / "run")
    monkeypatch.setattr(os, "replace", replace)
    train(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(whole)
    assert metrics(tmp_path / "run") == metrics(whole)


def test_stopping_within_an_epoch_is_exact(whole: Path, tmp_path: Path) -> None:
    steps = iter(range(100))
    assert train(tmp_path / "run", stopped=lambda: next(steps) >= 2) is None
    assert train(tmp_path / "run") is not None
    assert weights(tmp_path / "run") == weights(whole)
    assert metrics(tmp_path / "run") == metrics(whole)


def test_sigkill_then_resume_reaches_the_same_bits(tmp_path: Path) -> None:
    given = GIVEN | {"epochs": 30, "batch_size": 64}
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]; import conftest\n"  # which fixes how everything compiles
        "from pathlib import Path; from test_train import train\n"
        f"train(Path(sys.argv[1]), {given!r})"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "killed"), str(Path(__file__).parent)]
    source = str(Path(eqx_vit.__file__).parents[1])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": source})
    state = tmp_path / "killed" / TRAINING_STATE
    while process.poll() is None and not state.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(metrics(tmp_path / "killed"))
    assert 1 <= done < 30
    train(tmp_path / "killed")
    train(tmp_path / "whole", given)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_a_model_with_batch_norm_trains_and_resumes(tmp_path: Path) -> None:
    changes = {"stages": 2, "dim": (16, 16), "depth": 1, "heads": 2, "dim_key": 4, "dim_value": 8, "image_size": 32}
    given = {"model": "levit", "epochs": 2, "batch_size": 256, "changes": changes | {"channels": 1}}
    steps = iter(range(100))
    assert train(tmp_path / "run", given, lambda: next(steps) >= 3) is None
    train(tmp_path / "run")
    train(tmp_path / "whole", given)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    model, state = eqx_vit.load(tmp_path / "whole" / BEST)
    statistics = named_statistics(model, state)
    assert statistics
    assert all(float(jnp.abs(array).max()) > 0 for array in statistics.values())


def test_diverging_says_so_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    given = GIVEN | {"learning_rate": 1e30, "warmup": 0.0, "clip_norm": 1e30}
    with pytest.raises(ValueError, match="--learning-rate"):
        train(tmp_path / "run", given)


def test_resuming_refuses_other_settings_and_damaged_states(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs is 2, not 3; seed is 0, not 5"):
        resumed_run(whole, {"epochs": 3, "seed": 5, "batch_size": 256}, QUIET)
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", BEST, LAST, METRICS):
        (folder / name).write_bytes((whole / name).read_bytes())
    (folder / TRAINING_STATE).write_bytes((whole / TRAINING_STATE).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"training_state\.safetensors is no safetensors file, or a damaged one"):
        train(folder)
    (folder / TRAINING_STATE).write_bytes((whole / BEST).read_bytes())
    with pytest.raises(ValueError, match="is no training state"):
        train(folder)
    (folder / "config.json").write_text('{"settings": {}}')
    with pytest.raises(ValueError, match="is damaged"):
        read_run(folder)


def test_nothing_is_overwritten(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run"):
        check_free(whole)
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        check_free(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        check_free(tmp_path / "precious.txt")
    check_free(tmp_path / "new")


def test_the_step_is_compiled_once() -> None:
    run, data = new_run(GIVEN, QUIET)
    optimiser = make_optimiser(run.config, run.settings, 10)
    step = make_train_step(run.config, optimiser, run.settings, run.pixels, moves_of(run.settings))
    state = initial_state(run.config, optimiser, 0)
    for chosen in epoch_order(data.train, 0, 0, 256):
        state, loss = step(state, data.images, data.labels, chosen)
    assert np.isfinite(float(loss))
    assert int(state.step) == 4
    assert step._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["vit", "levit"])
def test_bf16_computes_in_bfloat16_and_keeps_float32(name: str) -> None:
    changes = {"image_size": 32} if name == "levit" else GIVEN["changes"]
    given = GIVEN | {"model": "levit_128s" if name == "levit" else "digits", "changes": changes, "precision": "bf16"}
    run, data = new_run(given, QUIET)
    optimiser = make_optimiser(run.config, run.settings, 10)
    state = jax.eval_shape(lambda: initial_state(run.config, optimiser, 0))
    step = make_train_step(run.config, optimiser, run.settings, run.pixels, moves_of(run.settings))
    traced = step.trace(state, data.images, data.labels, np.arange(4))  # type: ignore[attr-defined]
    assert jax.tree.map(lambda leaf: leaf.dtype, traced.out_info[0]) == jax.tree.map(lambda leaf: leaf.dtype, state)
    products = re.findall(r":(\w+)\[[^\n]*\] = (?:dot_general|conv_general_dilated)\[", str(traced.jaxpr))
    assert products
    assert products.count("bf16") > len(products) / 2  # the others move the pixels, and score attention in float32


# --- data


def test_the_digits_are_split_by_class_once_and_for_all() -> None:
    data = digits()
    assert data.images.shape == (1797, 8, 8, 1)
    assert (len(data.train), len(data.validation), len(data.test)) == (1259, 179, 359)
    everything = np.concatenate([data.train, data.validation, data.test])
    assert sorted(everything.tolist()) == list(range(1797))
    for part, share in ((data.validation, 0.1), (data.test, 0.2)):
        counts = np.bincount(data.labels[part]) / np.bincount(data.labels)
        assert np.abs(counts - share).max() < 0.005
    assert digits().fingerprint == data.fingerprint


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    train = np.arange(100, 137)
    order = epoch_order(train, 3, 5, 10)
    assert order.shape == (3, 10)
    assert len(set(order.ravel())) == 30
    assert set(order.ravel()) <= set(train)
    assert np.array_equal(order, epoch_order(train, 3, 5, 10))
    assert not np.array_equal(order, epoch_order(train, 3, 6, 10))
    assert not np.array_equal(order, epoch_order(train, 4, 5, 10))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, dark and bright, of 12 pictures of different sizes and kinds; one file is no picture, one cut."""
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
    changes = {"image_size": 16, "patch_size": 8, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    given = {"data": str(photos), "epochs": 15, "batch_size": 8, "changes": changes, "flip": True, "seed": 1}
    run, data = new_run(given, Report())
    said = capsys.readouterr().out
    assert "2 of 26 files left out" in said
    assert "notes.txt is no picture that Pillow can read" in said
    assert "cut.jpg is damaged" in said
    assert data.classes == ("bright", "dark")
    assert run.config.num_classes == 2
    assert data.images.shape == (24, 16, 16, 3)
    write_run(tmp_path / "run", run)
    result = train_run(tmp_path / "run", run, data, QUIET, lambda: False)
    assert result is not None
    assert result["test_accuracy"] == 1
    (photos / "dark" / "01.png").unlink()
    with pytest.raises(ValueError, match="have changed"):
        resumed_run(tmp_path / "run", {}, QUIET)


def test_folders_that_are_no_classes_are_refused(photos: Path, tmp_path: Path) -> None:
    for folder, words in (
        (tmp_path / "nope", "there is no folder"),
        (photos / "dark" / "notes.txt", "is a file"),
        (photos / "dark", "no sub-folders"),
        (tmp_path, "one class only, 'photos'"),
    ):
        with pytest.raises(ValueError, match=words):
            class_names(folder)
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"3 readable images or more .*: empty \(0\)"):
        image_folder(photos, (8, 8), 3, lambda done, total: None)


def test_pictures_of_every_kind_become_the_same_array(tmp_path: Path) -> None:
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
            array = read_picture(tmp_path / name, (12, 12), channels)
            assert array.shape == (12, 12, channels)
            assert np.abs(array - grey[..., None].astype(int)).max() <= 1, name
    clear = Image.new("RGBA", (5, 9))
    clear.save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png", (4, 6), 1).min() == 255
    for path in (tmp_path, tmp_path / "nope.png"):
        with pytest.raises(ValueError, match=str(path)):
            read_picture(path, (4, 6), 1)


# --- pixels


def test_without_moves_sampling_is_the_image_or_its_bilinear_enlargement() -> None:
    images = jax.random.randint(jax.random.key(0), (2, 6, 5, 3), 0, 256).astype(jnp.uint8)
    same = prepare(images, Pixels((6, 5), 3, (0.0,) * 3, (1.0,) * 3), identity_maps(2))
    np.testing.assert_allclose(same, np.asarray(images) / 255, atol=1e-5)
    one = images[0].astype(jnp.float32)
    large = sample(one, identity_maps(1)[0], (12, 15))
    expected = jax.image.resize(one, (12, 15, 3), "linear")
    # At the rim ours fades to black, theirs repeats the last pixel.
    np.testing.assert_allclose(large[2:-2, 2:-2], expected[2:-2, 2:-2], rtol=1e-4, atol=1e-3)


def test_moves_turn_shift_and_mirror() -> None:
    image = jnp.zeros((9, 9, 1)).at[1, 4, 0].set(1.0)
    quarter = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert float(sample(image, quarter, (9, 9))[4, 7, 0]) > 0.99
    maps = random_maps(jax.random.key(1), 1000, Moves(0.0, 0.25, 0.0, True))
    np.testing.assert_allclose(jnp.abs(maps[:, :, :2]), jnp.broadcast_to(jnp.eye(2), (1000, 2, 2)), atol=1e-6)
    assert 400 < int(jnp.sum(maps[:, 1, 1] < 0)) < 600
    assert 0.45 < float(jnp.abs(maps[:, :, 2]).max()) <= 0.5
    still = random_maps(jax.random.key(1), 3, Moves(0.0, 0.0, 0.0, False))
    np.testing.assert_allclose(still, identity_maps(3), atol=1e-7)


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
    config, size = model_config("vit_tiny_patch16_224", {"depth": 2}, None, 10)
    assert (config.num_classes, config.depth, config.channels, size) == (10, 2, 3, (224, 224))
    config, size = model_config("levit_128s", {}, (64, 32), 7)
    assert (config.num_classes, config.num_distill_classes, size) == (7, 7, (64, 32))
    config, size = model_config("levit", {"dim": (16, 16, 16), "dim_key": 8, "image_size": 32}, None, 7)
    assert (config.num_classes, config.num_distill_classes, size) == (7, None, (32, 32))
    for name in SMALL:
        assert model_config(name, {}, None, 10)[0] == SMALL[name]
    for arguments, words in (
        (("vit_tinny_patch16_224", {}, None, 10), "did you mean vit_tiny_patch16_224"),
        (("vit", {"dim": 8}, None, 10), "ViTConfig needs image_size, patch_size, depth"),
        (("digits", {"num_classes": 3}, None, 10), "num_classes=3 is too few"),
        (("digits", {"channels": 2}, None, 10), "channels=2"),
        (("digits", {"image_size": 16}, 8, 10), "contradicts"),
        (("digits", {"image_size": 10}, None, 10), "not a multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            model_config(*arguments)


def test_settings_are_checked() -> None:
    good = {"model": "digits", "changes": {}, "epochs": 1, "learning_rate": 1e-3}
    Settings(**good)
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
    ):
        with pytest.raises(ValueError, match=f"Settings.{name}"):
            Settings(**(good | {name: value}))


def test_the_learning_rate_warms_up_and_falls() -> None:
    rate = learning_rate(Settings(model="digits", changes={}, epochs=1, learning_rate=0.5, warmup=0.2), 100)
    assert float(rate(0)) == 0
    assert float(rate(20)) == pytest.approx(0.5)
    assert float(rate(10)) == pytest.approx(0.25)
    assert float(rate(100)) == pytest.approx(0.005)


# --- checkpoints


@pytest.mark.parametrize("name", ["vit", "levit"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_save_and_load_keep_every_bit(name: str, dtype: Any, tmp_path: Path) -> None:
    model, state = eqx_vit.create(TINY[name], key=jax.random.key(0))
    size = TINY[name].image_size
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    _, state = eqx_vit.forward(model, state, images)  # so that BatchNorm has seen something
    model = eqx_vit.cast(model, dtype)
    eqx_vit.save(tmp_path / "model.safetensors", model, state)
    loaded, loaded_state = eqx_vit.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    expected = named_leaves(model) | named_statistics(model, state)
    found = named_leaves(loaded) | named_statistics(loaded, loaded_state)
    assert expected.keys() == found.keys()
    for key, array in expected.items():
        assert (array.dtype, array.tobytes()) == (found[key].dtype, found[key].tobytes()), key
    inference = eqx.nn.inference_mode
    np.testing.assert_array_equal(
        eqx_vit.forward(inference(loaded), loaded_state, images)[0].astype(jnp.float32),
        eqx_vit.forward(inference(model), state, images)[0].astype(jnp.float32),
    )


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    model, state = eqx_vit.create(TINY["vit"], key=jax.random.key(0))
    path = tmp_path / "model.safetensors"
    eqx_vit.save(path, model, state)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-1], whole[: len(whole) // 2], whole[4:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no safetensors file, or a damaged one"):
            eqx_vit.load(path)
    save_file({"weight": np.zeros(3, dtype=np.float32)}, path)
    with pytest.raises(ValueError, match=r"was not written by eqx_vit\.save"):
        eqx_vit.load(path)
    path.write_bytes(whole.replace(b'\\"dim\\": 16', b'\\"dim\\": 18'))
    with pytest.raises(ValueError, match=r"does not fit its own config: .*class_token has shape"):
        eqx_vit.load(path)
    path.write_bytes(whole.replace(b'\\"vit\\"', b'\\"vot\\"'))
    with pytest.raises(ValueError, match="there is no architecture 'vot'"):
        eqx_vit.load(path)
    with pytest.raises(ValueError, match="is a folder"):
        eqx_vit.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        eqx_vit.load(tmp_path / "nope.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = eqx_vit.create(TINY["vit"], key=jax.random.key(0))
    path = tmp_path / "model.safetensors"
    eqx_vit.save(path, model, state)
    whole = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        eqx_vit.save(path, model, state)
    assert path.read_bytes() == whole


# --- pictures


def test_pictures_of_short_runs_and_few_images(tmp_path: Path) -> None:
    entry = {"epoch": 1, "learning_rate": 0.1} | {
        f"{part}_{name}": 0.5 for part in ("train", "validation") for name in ("loss", "accuracy")
    }
    draw_curves(tmp_path / "curves.png", [entry], "one epoch")
    images = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    labels = np.zeros(1, dtype=np.int32)
    draw_samples(tmp_path / "samples.png", images, labels, np.array([[1.0, 0.0]]), ("yes", "no"), "one image")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "samples.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_default_run_is_accurate(tmp_path: Path) -> None:
    result = train(tmp_path / "run", {})
    assert result is not None
    assert result["test_accuracy"] >= 0.975
