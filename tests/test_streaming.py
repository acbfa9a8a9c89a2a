"""Images that stay in their files: the same batches as from memory, whoever reads them, and whatever is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_train import QUIET, compiled_once as compiled_once, metrics, train, weights

import eqx_vit
from eqx_vit.cli import commands, main
from eqx_vit.train import data as data_module
from eqx_vit.train.batches import Batch, EvaluationExamples, TrainingExamples, make_changes, read_batches
from eqx_vit.train.data import Data, View, load_data
from eqx_vit.train.file_images import FileImages
from eqx_vit.train.inference import evaluate
from eqx_vit.train.loop import make_examples
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import METRICS, TRAINING_STATE, Run
from eqx_vit.train.settings import make_settings
from eqx_vit.train.start import start_run

CHANGES = {"image_size": 16, "patch_size": 8, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
AUGMENTED: dict[str, Any] = {"crop": "random", "crop_scale": 0.3, "rand_augment": "rand-m9-mstd0.5"}


def given(folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a tiny run: 18 images to train on, so nine steps an epoch."""
    return {"data": str(folder), "epochs": 2, "batch_size": 2, "changes": CHANGES} | more


def make_photos(folder: Path) -> Path:
    """Two classes of twelve images of different sizes."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 40)):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            height, width = rng.integers(17, 40, 2)
            pixels = rng.integers(level - 40, level + 40, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the images were more than the memory should hold."""
    monkeypatch.setattr(data_module, "IN_MEMORY", 0)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its images in memory."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder, given(photos)) is not None
    return folder


def read(
    examples: TrainingExamples | EvaluationExamples, batch_size: int = 2, start: int = 0, workers: int = 0
) -> list[Batch]:
    with read_batches(examples, batch_size, start, workers) as batches:
        return [Batch(*map(np.asarray, batch)) for batch in batches]


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two) > 0
    for own, other in zip(one, two, strict=True):
        for part, same in zip(own, other, strict=True):
            assert part.dtype == same.dtype
            np.testing.assert_array_equal(part, same)


def start(folder: Path, **more: Any) -> tuple[Run, Data, TrainingExamples]:
    run, data = start_run(given(folder, **more), QUIET)
    return run, data, make_examples(run, data)


# --- the same batches


@pytest.mark.parametrize("more", [{}, {"rand_augment": "rand-m9-mstd0.5", "three_augment": False, "repeats": 3}])
def test_files_give_the_batches_that_memory_gives(
    more: dict[str, Any], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data, examples = start(photos, **more)
    monkeypatch.setattr(data_module, "IN_MEMORY", 0)
    streamed_run, streamed, streamed_examples = start(photos, **more)
    assert isinstance(data.images, np.ndarray)
    assert isinstance(streamed.images, FileImages)
    assert streamed.images.shape == data.images.shape
    assert streamed_run.input_spec == run.input_spec
    assert_same(read(streamed_examples), read(examples))
    held_out = [EvaluationExamples(one.images, one.labels, one.test) for one in (data, streamed)]
    assert len(data.test) == 4
    assert_same(read(held_out[0], 3), read(held_out[1], 3))


@pytest.mark.usefixtures("in_files")
def test_files_give_the_weights_that_memory_gives(photos: Path, whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", given(photos))
    assert weights(tmp_path / "run") == weights(whole)
    assert metrics(tmp_path / "run") == metrics(whole)


def test_reading_from_a_step_on_is_the_end_of_reading_all(photos: Path) -> None:
    for more in (AUGMENTED, {"rand_augment": "rand-m9-mstd0.5"}, {}):  # in files, and twice in memory
        _, _, examples = start(photos, **more)
        everything = read(examples)
        assert len(everything) == 18
        for first in (1, 9, 17):
            assert_same(read(examples, start=first), everything[first:])
        assert read(examples, start=18) == []


def test_worker_processes_give_the_batches_that_threads_give(photos: Path) -> None:
    _, data, examples = start(photos, **AUGMENTED)
    assert_same(read(examples, start=5, workers=2), read(examples, start=5))
    assert not multiprocessing.active_children()
    held_out = EvaluationExamples(data.images, data.labels, data.test)
    assert_same(read(held_out, 3, workers=1), read(held_out, 3))


def coordinates(folder: Path, order: list[int]) -> TrainingExamples:
    """Images whose red and green say where a pixel lies, and whose blue says which image it is."""
    y, x = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    paths = []
    for number in order:
        paths.append(folder / f"{number}.png")
        Image.fromarray(np.stack([4 * x, 4 * y, 0 * x + 20 * number], -1).astype(np.uint8)).save(paths[-1])
    images = FileImages(np.array([os.fsencode(path) for path in paths]), (16, 16), 3, 1.0)
    changes = make_changes(make_settings({"crop": "random", "crop_scale": 0.3}), (0.0, 0.0, 0.0))
    labels = np.zeros(len(order), dtype=np.int32)
    return TrainingExamples(images, labels, np.arange(len(order)), changes, 7, 2, 1, 9, np.arange(2))


def test_a_crop_depends_on_seed_step_and_place_alone(tmp_path: Path) -> None:
    examples, others = coordinates(tmp_path, [1, 2, 3, 4, 5, 6]), coordinates(tmp_path, [7, 8, 9, 10, 11, 12])
    places = range(18)
    forwards = {place: examples[place][0] for place in places}
    backwards = {place: examples[place][0] for place in reversed(places)}
    elsewhere = {place: others[place][0] for place in places}
    for place in places:
        np.testing.assert_array_equal(forwards[place], backwards[place])
        np.testing.assert_array_equal(forwards[place][..., :2], elsewhere[place][..., :2])
        assert forwards[place][0, 0, 2] < elsewhere[place][0, 0, 2]
    assert len({image[..., :2].tobytes() for image in forwards.values()}) == 18
    reseeded = TrainingExamples(
        examples.images, examples.labels, examples.train, examples.changes, 8, 2, 1, examples.total, np.arange(2)
    )
    assert all((reseeded[place][0][..., :2] != forwards[place][..., :2]).any() for place in places)


def test_repeats_put_each_image_three_times_with_different_crops(photos: Path) -> None:
    _, data, examples = start(photos, **AUGMENTED, repeats=3, batch_size=6)
    assert examples.total == 2 * 3
    for epoch in range(2):
        rows = np.concatenate([examples.rows(3 * epoch + step) for step in range(3)])
        values, counts = np.unique(rows, return_counts=True)
        assert (len(values), set(counts)) == (6, {3})
        assert set(values) <= set(data.train)
    first = read(examples, 6)[0]
    np.testing.assert_array_equal(first.labels, data.labels[examples.rows(0)])
    assert len({image.tobytes() for image in first.images}) == 6


# --- what is killed


PROGRAM = """\
import multiprocessing, os, signal, sys
sys.path[:0] = sys.argv[3:]
import conftest
from pathlib import Path
from eqx_vit.train import data, loop
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import claim_folder
from eqx_vit.train.start import start_run
from test_streaming import given

data.IN_MEMORY, loop.SAVE_SECONDS = 0, 0.0
log, steps = ProgressLog(quiet=True), []

def stopped():
    steps.append(None)
    if len(steps) == 13:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return False

run, images = start_run(given(Path(sys.argv[1])), log)
with claim_folder(Path(sys.argv[2]), run) as folder:
    loop.train_run(folder, run, images, log, stopped, workers=1)
"""


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.usefixtures("in_files")
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
def test_sigkill_within_an_epoch_leaves_no_worker_and_resumes_to_the_same_bits(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    source = str(Path(eqx_vit.__file__ or "").parents[1])
    command = [sys.executable, "-c", PROGRAM, str(photos), str(tmp_path / "run"), str(Path(__file__).parent)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": source}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = [int(word) for word in killed.stdout.split()]
    assert workers
    assert wait_for(lambda: not any(map(is_alive, workers)))
    assert len(metrics(tmp_path / "run")) == 1  # of the first epoch; the second had come to step 13 of 18
    train(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(whole)
    assert metrics(tmp_path / "run") == metrics(whole)


@pytest.mark.usefixtures("in_files")
def test_a_killed_worker_ends_the_run_with_one_line_and_the_run_resumes(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "make_mesh", lambda **_: None)  # a batch of two is for one device

    def kill_worker(_log: ProgressLog, step: int, *_: object) -> None:
        if step == 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    sizes = [word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")]
    run = ["--data", str(photos), "--epochs", "2", "--batch-size", "2", *sizes, "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr(ProgressLog, "show_step", kill_worker)
        assert main(["train", *run, "--workers", "1"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("eqx-vit train: a worker that reads images has ended; --resume goes on")
    assert captured.err.count("\n") == 1
    assert (tmp_path / "run" / TRAINING_STATE).exists()
    assert not (tmp_path / "run" / METRICS).exists()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run") == weights(whole)
    assert metrics(tmp_path / "run") == metrics(whole)


# --- what is damaged


def damage(path: Path, kept: float = 0.5) -> Path:
    """Leave the header, and a part of the body."""
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    return path


@pytest.mark.usefixtures("in_files")
def test_damaged_files_are_skipped_the_same_each_time_and_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(tmp_path / "photos")
    _, data, _ = start(photos)
    assert isinstance(data.images, FileImages)
    damaged = [int(data.train[0]), int(data.train[17]), int(data.validation[0]), int(data.test[2])]
    paths = [damage(data.images.path(index)) for index in damaged]
    run, data, examples = start(photos)
    assert data.unreadable == ()
    batches = read(examples)
    assert_same(read(examples), batches)
    next_one = int(data.train[1])  # after the first, and after the last the first again, which is damaged too
    seen = set[int]()
    for step, batch in enumerate(batches):
        for place, wanted in enumerate(examples.rows(step).tolist()):
            chosen = next_one if wanted in damaged else wanted
            np.testing.assert_array_equal(batch.images[place], data.images[chosen])
            assert batch.labels[place] == data.labels[chosen]
            assert batch.unreadable[place] == (wanted if wanted in damaged else -1)
            seen.add(wanted)
    assert seen >= set(damaged[:2])

    found = evaluate(
        lambda *_: jnp.zeros((3, 2)),
        ({}, {}),
        EvaluationExamples(data.images, data.labels, data.test),
        3,
    )
    assert set(data.test) - set(found.indices.tolist()) == {damaged[3]}
    assert found.accuracy == pytest.approx(np.mean(data.labels[found.indices] == 0))
    capsys.readouterr()
    result = train(tmp_path / "run", given(photos), log=ProgressLog())
    assert result is not None
    assert run.fingerprint == data.fingerprint
    lines = capsys.readouterr().out.splitlines()
    for path in paths[:2]:
        (line,) = [line for line in lines if str(path) in line]
        assert "cannot be read" in line


@pytest.mark.usefixtures("in_files")
def test_where_no_training_image_can_be_read_one_line_says_so(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    _, data, examples = start(photos)
    assert isinstance(data.images, FileImages)
    for index in data.train:
        damage(data.images.path(int(index)))
    for workers in (0, 1):
        with pytest.raises(ValueError, match="none of the training images can be read"):
            read(examples, workers=workers)
    with pytest.raises(ValueError, match="none of the training images can be read"):
        start(photos)


@pytest.mark.usefixtures("in_files")
def test_files_without_a_header_are_listed_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "dark" / "notes.txt").write_text("no picture")
    damage(photos / "bright" / "03.png", 0.01)
    data = load_data(str(photos), View((8, 8), 3), ProgressLog())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 of 25 files left out:"
    assert "bright/03.png" in lines[1]
    assert "dark/notes.txt is not an image" in lines[2]
    assert len(data.labels) == 23


@pytest.mark.usefixtures("in_files")
def test_the_fingerprint_notices_an_added_file_and_another_length(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")

    def fingerprint() -> str:
        return load_data(str(photos), View((8, 8), 3), QUIET).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    Image.new("RGB", (9, 9)).save(photos / "dark" / "new.png")
    added = fingerprint()
    (photos / "dark" / "new.png").write_bytes((photos / "dark" / "new.png").read_bytes() + b"\0")
    longer = fingerprint()
    (photos / "dark" / "new.png").rename(photos / "dark" / "newer.png")
    assert len({first, added, longer, fingerprint()}) == 4
    (photos / "dark" / "newer.png").unlink()
    assert fingerprint() == first


def test_two_readers_of_a_batch_read_what_one_would(photos: Path) -> None:
    run, data, examples = start(photos, **AUGMENTED, batch_size=4)
    shares = [make_examples(run, data, lambda size, part=part: np.arange(size)[part::2]) for part in (0, 1)]
    for whole, *parts in zip(read(examples, 4, 1), *(read(share, 2, 1) for share in shares), strict=True):
        for part, batch in enumerate(parts):
            np.testing.assert_array_equal(batch.images, whole.images[part::2])
            np.testing.assert_array_equal(batch.labels, whole.labels[part::2])
