"""The training program: exact resumption, equal numbers for equal seeds, and what a run leaves behind."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PRNGKeyArray
from PIL import Image

import eqx_vit
from eqx_vit.files import read_arrays, write_arrays
from eqx_vit.functional import to_dicts
from eqx_vit.paths import named_statistics
from eqx_vit.registry import AnyModel
from eqx_vit.train import loop, predict, predictor
from eqx_vit.train.batches import EvaluationExamples, draw_batches
from eqx_vit.train.checkpoint import METADATA
from eqx_vit.train.inference import evaluate
from eqx_vit.train.loop import train_run
from eqx_vit.train.optimiser import learning_rate, make_optimiser
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import (
    BEST,
    LAST,
    METRICS,
    SAMPLES,
    TRAINING_STATE,
    FinalMetrics,
    check_free,
    claim_folder,
    lock_folder,
    read_run,
    write_run,
)
from eqx_vit.train.settings import Settings
from eqx_vit.train.start import resume_run, start_run
from eqx_vit.train.step import initial_state, make_eval_step, make_train_step

GIVEN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 256,
    "changes": {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "dropout": 0.1},
}
QUIET = ProgressLog(quiet=True)


def train(
    folder: Path,
    given: dict[str, Any] = GIVEN,
    stopped: Callable[[], bool] = lambda: False,
    log: ProgressLog = QUIET,
) -> FinalMetrics | None:
    """Start a run in the folder, or go on with the one that is there."""
    with ExitStack() as held:
        if folder.exists():
            held.enter_context(lock_folder(folder))
            run, data = resume_run(folder, {}, log)
        else:
            run, data = start_run(given, log)
            held.enter_context(claim_folder(folder, run))
        return train_run(folder, run, data, log, stopped)


def copy_run(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", BEST, LAST, METRICS, TRAINING_STATE):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def weights(folder: Path) -> list[str]:
    """Digests of all that training computed. Of the training state without its header, whose metrics hold seconds."""
    contents = [(folder / name).read_bytes() for name in (BEST, LAST, TRAINING_STATE)]
    contents[2] = contents[2][8 + int.from_bytes(contents[2][:8], "little") :]
    return [hashlib.sha256(content).hexdigest() for content in contents]


def metrics(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    measured = ("seconds", "images_per_second", "data_wait", "memory_gib")
    return [{name: value for name, value in entry.items() if name not in measured} for entry in entries]


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
    """Stands for SIGKILL: no handler of the library catches it."""


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
    with pytest.raises(ValueError, match="another process is training"), lock_folder(tmp_path / "killed"):
        pass
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
    assert all(np.abs(np.asarray(array)).max() > 0 for array in statistics.values())


def test_diverging_says_so_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    given = GIVEN | {"learning_rate": 1e30, "warmup": 0.0, "clip_norm": 1e30}
    with pytest.raises(ValueError, match="--learning-rate"):
        train(tmp_path / "run", given)
    assert not (tmp_path / "run").exists()  # there was no good state


def test_resuming_refuses_other_settings_and_damaged_states(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs is 2, not 3; seed is 0, not 5"):
        resume_run(whole, {"epochs": 3, "seed": 5, "batch_size": 256}, QUIET)
    folder = copy_run(whole, tmp_path / "run")
    (folder / TRAINING_STATE).write_bytes((whole / TRAINING_STATE).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"training_state\.safetensors is damaged, or not a safetensors file"):
        train(folder)
    (folder / TRAINING_STATE).write_bytes((whole / BEST).read_bytes())
    with pytest.raises(ValueError, match="is not a training state"):
        train(folder)
    (folder / "config.json").write_text('{"settings": {}}')
    with pytest.raises(ValueError, match="is damaged"):
        read_run(folder)


def test_a_flipped_byte_and_a_damaged_history_are_found(whole: Path, tmp_path: Path) -> None:
    folder = copy_run(whole, tmp_path / "run")
    state = folder / TRAINING_STATE
    content = state.read_bytes()
    for place in (-1, -5000, content.index(b"learning_rate") + 17):  # two weights and a number of the history
        flipped = bytearray(content)
        flipped[place] ^= 1
        state.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"training_state\.safetensors is damaged"):
            train(folder)
    state.write_bytes(content)
    arrays, metadata = read_arrays(state)
    kept = json.loads(metadata[METADATA])
    del kept["history"][0]["seconds"]
    write_arrays(state, arrays, {METADATA: json.dumps(kept)})
    with pytest.raises(ValueError, match=r"is damaged: .*seconds"):
        train(folder)


@pytest.mark.parametrize("output", [None, Path("run")])
def test_runs_that_start_at_one_moment_each_have_a_folder(
    output: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = start_run(GIVEN, QUIET)
    barrier, claimed, refused = threading.Barrier(8), {}, []

    def claim(seed: int) -> None:
        own = run._replace(settings=dataclasses.replace(run.settings, seed=seed))
        barrier.wait()
        try:
            with claim_folder(output, own) as folder:
                claimed[seed] = folder
                barrier.wait()
        except ValueError as error:
            refused.append(str(error))
            barrier.wait()

    threads = [threading.Thread(target=claim, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(claimed.values())) == len(claimed) == (1 if output else 8)
    for seed, folder in claimed.items():
        assert read_run(folder).settings.seed == seed
    assert len(refused) == 8 - len(claimed)
    assert all("another process" in line or "already holds a run" in line for line in refused)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    unfinished = tmp_path / ".last.safetensors.tmp"
    unfinished.touch()
    with lock_folder(tmp_path):
        assert not unfinished.exists()
        with pytest.raises(ValueError, match="another process is training the run in"), lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path):
        pass
    check_free(tmp_path)


def test_data_that_have_moved_are_known_by_their_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "old" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "old" / name / f"{number}.png")
    folder, new = tmp_path / "run", str(tmp_path / "new")
    run, data = start_run({"data": str(tmp_path / "old"), "image_size": 8}, QUIET)
    write_run(folder, run)
    (tmp_path / "old").rename(new)
    with pytest.raises(ValueError, match=r"there is no folder .*old: .* give --data FOLDER"):
        resume_run(folder, {}, QUIET)
    moved, again = resume_run(folder, {"data": new, "image_size": 8}, QUIET)
    np.testing.assert_array_equal(again.images, data.images)
    assert moved == read_run(folder) == run._replace(settings=dataclasses.replace(run.settings, data=new))
    Image.new("RGB", (8, 8)).save(tmp_path / "new" / "cat" / "0.png")
    with pytest.raises(ValueError, match="have changed since the run was started, or are others"):
        resume_run(folder, {}, QUIET)


def test_a_log_that_nobody_reads_stops_the_run_with_its_state(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        log = ProgressLog()
        assert not log.closed
        log.write("the line that finds out")
        assert log.closed
        assert train(tmp_path / "run", log=log) is None
    train(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(whole)


def test_a_picture_that_cannot_be_drawn_costs_no_result(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such\nfont")

    monkeypatch.setattr(loop, "draw_samples", fail)
    folder = copy_run(whole, tmp_path / "run")
    assert train(folder, log=ProgressLog()) is not None
    assert "samples.png could not be drawn: no such font" in capsys.readouterr().out
    assert (folder / "curves.png").exists()
    assert not (folder / SAMPLES).exists()


def test_the_steps_are_functions_without_jit_too() -> None:
    run, data = start_run(GIVEN, QUIET)
    optimiser = make_optimiser(run.config, run.settings, 10)
    images, labels = data.images[data.train[:4]], data.labels[data.train[:4]]
    train_step = make_train_step(run.config, optimiser, run.settings, run.input_spec)
    eval_step = make_eval_step(run.config, run.input_spec)
    with jax.disable_jit():  # where numpy's arrays reach the functions as they are
        state = jax.eval_shape(lambda: initial_state(run.config, optimiser, 0))
        after, numbers = jax.eval_shape(lambda state: train_step(state, images, labels), state)
        logits = jax.eval_shape(lambda state: eval_step(state.params, state.state, data.images[data.test[:3]]), state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert (numbers.loss.shape, logits.shape) == ((), (3, 10))


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
    run, data = start_run(GIVEN, QUIET)
    optimiser = make_optimiser(run.config, run.settings, 10)
    step: Any = make_train_step(run.config, optimiser, run.settings, run.input_spec)
    state = initial_state(run.config, optimiser, 0)
    loss = np.nan
    for indices in draw_batches(data.train, 0, 0, 256):
        state, numbers = step(state, data.images[indices], data.labels[indices])
        loss = float(numbers.loss)
    assert np.isfinite(loss)
    assert int(state.step) == 4
    assert step.compiled._cache_size() == 1


@pytest.mark.parametrize("name", ["vit", "levit"])
def test_bf16_computes_in_bfloat16_and_keeps_float32(name: str) -> None:
    changes = {"image_size": 32} if name == "levit" else GIVEN["changes"]
    given = GIVEN | {"model": "levit_128s" if name == "levit" else "digits", "changes": changes, "precision": "bf16"}
    run, data = start_run(given, QUIET)
    optimiser = make_optimiser(run.config, run.settings, 10)
    state = jax.eval_shape(lambda: initial_state(run.config, optimiser, 0))
    step: Any = make_train_step(run.config, optimiser, run.settings, run.input_spec)
    traced = step.compiled.trace(state, data.images[data.train[:4]], data.labels[:4], None)
    assert jax.tree.map(lambda leaf: leaf.dtype, traced.out_info[0]) == jax.tree.map(lambda leaf: leaf.dtype, state)
    products = re.findall(r":(\w+)\[[^\n]*\] = (?:dot_general|conv_general_dilated)\[", str(traced.jaxpr))
    assert products
    assert products.count("bf16") > len(products) / 2  # the others sample the pixels, and score attention in float32


def test_evaluation_does_not_depend_on_the_batch_size(whole: Path) -> None:
    run, data = resume_run(whole, {}, QUIET)
    model = to_dicts(*eqx_vit.load(whole / BEST))
    step = make_eval_step(run.config, run.input_spec)
    examples = EvaluationExamples(data.images, data.labels, data.validation[:10])
    one = evaluate(step, model, examples, 10)
    two = evaluate(step, model, examples, 4)
    np.testing.assert_allclose(one.probabilities, two.probabilities, rtol=1e-5)
    np.testing.assert_allclose(one.probabilities.sum(axis=1), 1, rtol=1e-6)
    targets = data.labels[data.validation[:10]]
    assert one.loss == pytest.approx(-np.log(one.probabilities[np.arange(10), targets]).mean())
    assert one.accuracy == pytest.approx((one.probabilities.argmax(axis=1) == targets).mean())


def test_a_preset_predicts_with_its_own_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, *, pretrained: bool, key: PRNGKeyArray) -> tuple[AnyModel, eqx.nn.State]:
        assert (name, pretrained) == ("vit_tiny_patch16_224", True)
        return eqx_vit.create(name, depth=1, key=key)

    monkeypatch.setattr(predictor, "create", create)
    monkeypatch.setattr(predictor, "read_class_names", lambda name, classes: [f"class {i}" for i in range(classes)])
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(255 - pixels).save(tmp_path / "negative.png")
    loaded = predictor.load_predictor(Path("vit_tiny_patch16_224"), "best")
    (one,) = predict.predict_files(loaded, [tmp_path / "image.png"], invert=False)
    (two,) = predict.predict_files(loaded, [tmp_path / "negative.png"], invert=True)
    assert one.path == tmp_path / "image.png"
    assert one.ranking == two.ranking
    assert len(one.ranking) == 1000
    assert sum(probability for _, probability in one.ranking) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=r"no file .*a\.png; there is no file .*b\.png"):
        predict.predict_files(loaded, [tmp_path / "a.png", tmp_path / "b.png"], invert=False)


def test_the_learning_rate_warms_up_and_falls() -> None:
    rate = learning_rate(Settings(model="digits", changes={}, epochs=1, learning_rate=0.5, warmup=0.2), 100)
    assert float(rate(0)) == 0
    assert float(rate(20)) == pytest.approx(0.5)
    assert float(rate(10)) == pytest.approx(0.25)
    assert float(rate(100)) == pytest.approx(0.005)


@pytest.mark.slow
def test_the_default_run_is_accurate(tmp_path: Path) -> None:
    result = train(tmp_path / "run", {})
    assert result is not None
    assert result.test_accuracy >= 0.975
