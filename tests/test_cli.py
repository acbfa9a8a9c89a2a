"""The command line: what each command prints, and one clear line with exit code 2 for every stupid input."""

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

import eqx_vit
from eqx_vit.cli import main
from eqx_vit.cli.arguments import make_parser
from eqx_vit.cli.cache import keep_compiled
from eqx_vit.cli.commands import catch_signals
from eqx_vit.train import inference
from eqx_vit.train.settings import Settings

TINY = ["--batch-size", "64", "--set", "dim=16", "--set", "depth=1", "--set", "heads=2", "--set", "mlp_dim=16"]


def run(*arguments: str | Path) -> int:
    """The exit code of a command line."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's way
        return int(stop.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run("train", *TINY, "--epochs", "6", "--learning-rate", "0.01", "--output", folder) == 0
    return folder


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """A handwritten zero as a PNG of another size."""
    images = np.asarray(datasets.load_digits(return_X_y=True)[0]).reshape(-1, 8, 8)
    pixels = (images[0] * 15.9).astype(np.uint8)
    path = tmp_path / "zero.png"
    Image.fromarray(pixels).resize((90, 120), Image.Resampling.BICUBIC).save(path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on standard error of a command that must fail."""
    capsys.readouterr()
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1, output.err
    assert output.err.startswith("eqx-vit")
    assert "Traceback" not in output.err + output.out
    return output.err


def test_evaluate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained, "--checkpoint", "last", "--split", "validation") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"last\.safetensors on 179 validation images: accuracy [\d.]+%, loss [\d.]+", lines[0])
    assert len(lines) == 11


def test_evaluate_repeats_the_result_of_training(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained) == 0
    found = re.search(r"accuracy ([\d.]+)%", capsys.readouterr().out)
    assert found
    expected = float((trained / "metrics.jsonl").read_text().splitlines()[-1].rpartition(": ")[2].strip("}"))
    assert float(found[1]) == pytest.approx(100 * expected, abs=0.01)


def test_evaluation_finds_data_that_have_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for shade, name in enumerate(("cat", "dog")):
        (old / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), 100 * shade + number).save(old / name / f"{number}.png")
    assert run("train", *TINY, "--data", old, "--image-size", "8", "--epochs", "1", "--output", tmp_path / "run") == 0
    old.rename(new)
    assert f"there is no folder {old}" in refused(capsys, "evaluate", tmp_path / "run")
    assert run("evaluate", tmp_path / "run", "--data", new) == 0
    assert "on 2 test images" in capsys.readouterr().out
    (new / "cat" / "0.png").unlink()
    assert "needs 3 readable images" in refused(capsys, "evaluate", tmp_path / "run", "--data", new)


def test_predict(trained: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = Image.open(digit)
    pixels = np.asarray(grey)
    variants = {"colour.jpg": grey.convert("RGB"), "alpha.png": grey.convert("RGBA")}
    variants["deep.png"] = Image.fromarray(pixels.astype(np.uint16) * 257)
    for name, image in variants.items():
        image.save(tmp_path / name)
    assert run("predict", trained, digit, *(tmp_path / name for name in variants)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * 6
    for first in range(0, 24, 6):
        shares = [float(line.split("%")[0]) for line in lines[first + 1 : first + 6]]
        assert shares == sorted(shares, reverse=True)
        assert lines[first + 1].split() == pytest.approx(lines[first + 1].split())
        assert lines[first + 1].endswith("  0")
    Image.fromarray(255 - pixels).save(tmp_path / "ink.png")
    assert run("predict", trained, tmp_path / "ink.png", "--invert", "--top", "1") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("  0")


def test_look(trained: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "other" / digit.name  # of the same name: neither picture may replace the other
    copy.parent.mkdir()
    Image.fromarray(255 - np.asarray(Image.open(digit))).save(copy)
    folder = tmp_path / "looks"
    assert run("look", trained, digit, copy, "--class", "3", "--layer", "0", "--output", folder) == 0
    names = [f"{digit.stem}.look.png", f"{digit.stem}-2.look.png"]
    assert capsys.readouterr().out.splitlines() == [str(folder / name) for name in names]
    assert run("look", trained, digit, copy, "--features", "--output", folder) == 0
    names += [f"{digit.stem}.features.png", f"{digit.stem}-2.features.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    pictures = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]
    assert all(picture.std() > 10 for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "levit_128*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "multiply-adds", "image", "size", "weights"]
    # The paper counts 305 M.
    assert lines[1].split() == [
        "levit_128s",
        "7,777,058",
        "0.30",
        "G",
        "224",
        "x",
        "224",
        "timm/levit_128s.fb_dist_in1k",
    ]
    assert len(lines) == 3


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["look"], ["models"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 120


def test_resuming_a_finished_run_repeats_its_result(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "metrics.jsonl").read_text()
    assert run("train", "--resume", trained, "--epochs", "6") == 0
    assert "test accuracy" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_text() == before


def test_every_setting_has_an_option() -> None:
    options = vars(make_parser().parse_args(["train"]))
    for field in dataclasses.fields(Settings):
        assert ("set" if field.name == "changes" else field.name) in options
    options = vars(make_parser().parse_args(["train", "--image-size", "32x64", "--data", "photos", "--flip"]))
    assert (options["image_size"], options["data"], options["flip"]) == ((32, 64), str(Path("photos").resolve()), True)


def test_the_first_signal_stops_after_the_step_and_the_second_at_once() -> None:
    lines: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with catch_signals(lines.append) as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        assert "once more" in lines[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "vitt"], "there is no model 'vitt': did you mean vit"),
        (["--model", "vit"], "ViTConfig needs image_size"),
        (["--model", ""], "there is no model"),
        (["--set", "dimm=3"], "no field 'dimm': did you mean dim?"),
        (["--set", "dim=many"], "ViTConfig.dim must be int, given 'many'"),
        (["--set", "dim"], "--set takes field=value"),
        (["--set", "dim=-4"], "ViTConfig.dim must be at least 1"),
        (["--set", "patch_size=3"], "not a multiple of 3"),
        (["--set", "num_classes=2"], "too few"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--learning-rate", "nan"], "--learning-rate must be"),
        (["--learning-rate", "-1"], "--learning-rate must be"),
        (["--ema", "2"], "--ema must be"),
        (["--seed", "-1"], "--seed must be"),
        (["--image-size", "0"], "--image-size"),
        (["--image-size", "8x8x8"], "--image-size"),
        (["--data", "nowhere"], "there is no folder"),
        (["--data", "."], "has no sub-folders"),
        (["--resume"], "there is no run to resume"),
        (["--resume", "nowhere"], "there is no run folder nowhere"),
        (["--resume", "."], "is not a run folder"),
        (["--resume", "a", "--output", "b"], "two folders"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_stupid_training(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "train", *arguments)
    assert not list(tmp_path.iterdir())


def test_existing_folders_and_changed_settings(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "already holds a run" in refused(capsys, "train", "--output", trained)
    message = refused(capsys, "train", "--resume", trained, "--epochs", "9", "--set", "dim=32")
    assert "epochs is 6, not 9" in message
    assert "'dim': 32" in message


def test_stupid_folders_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "broken.png").write_bytes(b"nothing")
    message = refused(capsys, "train", "--data", tmp_path / "data", "--output", tmp_path / "run")
    assert "cat (0), dog (0); 2 left out, such as" in message
    (tmp_path / "data" / "dog" / "broken.png").unlink()
    (tmp_path / "data" / "dog").rmdir()
    assert "one class only" in refused(capsys, "train", "--data", tmp_path / "data")


def test_stupid_evaluation_and_prediction(
    trained: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(digit.read_bytes()[:60])
    text = tmp_path / "text.png"
    text.write_text("hello")
    for arguments, words in (
        (["evaluate"], "required: RUN"),
        (["evaluate", tmp_path / "nope"], "there is no run folder"),
        (["evaluate", tmp_path], "is not a run folder: it has no config.json"),
        (["evaluate", trained, "--checkpoint", "middle"], "invalid choice: 'middle'"),
        (["evaluate", trained, "--split", "all"], "invalid choice: 'all'"),
        (["predict", trained], "required: IMAGE"),
        (["predict", trained, tmp_path / "nope.png"], "there is no file"),
        (["predict", trained, tmp_path], "is a folder"),
        (["predict", trained, digit, broken, text], "text.png is not an image"),
        (["predict", trained, digit, "--top", "0"], "--top"),
        (["predict", tmp_path, digit], "is not a run folder"),
        (["predict", tmp_path / "nope", digit], "is neither the folder of a run nor a preset"),
        (["look", trained], "required: IMAGE"),
        (["look", trained, tmp_path / "nope.png"], "there is no file"),
        (["look", trained, digit, "--class", "nine"], "the model has no class 'nine': use one of 10, such as 0, 1"),
        (["look", trained, digit, "--layer", "9"], "--layer 9: the model has"),
        (["look", trained, digit, "--features", "--layer", "9"], "there is no feature 9: the model has"),
        (["look", trained, digit, "--features", "--class", "3"], "--features shows no class"),
        (["look", trained, digit, "--output", digit], "File exists"),
        (["models", "gpt*"], "no model matches 'gpt*'"),
        (["models", "vit", "cait"], "unrecognized arguments: cait"),
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
    ):
        assert words in refused(capsys, *arguments)


def test_damaged_checkpoints(trained: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    assert "has no best.safetensors yet" in refused(capsys, "predict", tmp_path, digit)
    (tmp_path / "best.safetensors").write_bytes((trained / "best.safetensors").read_bytes()[:-1])
    assert "best.safetensors is damaged, or not a safetensors file" in refused(capsys, "evaluate", tmp_path)
    eqx_vit.save(tmp_path / "best.safetensors", *eqx_vit.load(trained / "best.safetensors"))
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in refused(capsys, "evaluate", tmp_path)


def test_batch_norm_needs_two_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("stages=2", "dim=16", "depth=1", "heads=2", "dim_key=4", "dim_value=8", "image_size=32")
    changes = [text for size in sizes for text in ("--set", size)]
    message = refused(capsys, "train", "--model", "levit", *changes, "--batch-size", "1", "--output", tmp_path / "run")
    assert "a batch of at least 2 images" in message
    assert not list(tmp_path.iterdir())


def test_a_platform_without_a_device_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise AssertionError  # what JAX does for cuda, where its plugin is not installed

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert "JAX finds no device for JAX_PLATFORMS=cuda" in refused(capsys, "train")


@pytest.mark.parametrize(
    ("module", "platform", "code", "words"),
    [
        ("eqx_vit", "cpu", 0, "levit_128s "),
        ("eqx_vit.cli", "nowhere", 2, "eqx-vit models: JAX finds no device for JAX_PLATFORMS=nowhere"),
    ],
)
def test_the_modules_run(module: str, platform: str, code: int, words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(eqx_vit.__file__).parents[1]), "JAX_PLATFORMS": platform}
    command = [sys.executable, "-m", module, "models", "levit_128s"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (done.stderr if code else done.stdout).splitlines()[-1].startswith(words)


@pytest.mark.parametrize(
    "interrupt",
    [
        "gc.callbacks.append(interrupt)",  # where Python drops what is raised
        "sys.meta_path.insert(0, type('Finder', (), {'find_spec': interrupt}))",
    ],
)
def test_an_interrupt_during_the_imports_ends_them(interrupt: str) -> None:
    program = (
        "import eqx_vit_command, gc, signal, sys\n"
        "def interrupt(*_): signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"{interrupt}\n"
        "sys.exit(eqx_vit_command.main())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(eqx_vit.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program, "models"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_screen_need_not_know_every_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "evaluate_run", lambda *_: "Fr\u00f6sche and Fr\udcf6sche")
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert run("evaluate", "somewhere") == 0
    assert content.getvalue() == b"Fr?sche and Fr?sche\n"


def test_a_reader_may_leave_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "evaluate_run", lambda *_: "a line")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run("evaluate", "somewhere") == 0


def test_a_missing_extra_is_named_and_models_needs_none(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('optax', 'safetensors', 'sklearn', 'PIL', 'rich', 'matplotlib'): sys.modules[name] = None\n"
        "from eqx_vit.cli import main\n"
        "print(main(['models', 'levit_128s']), main(['train']), main(['evaluate', '.']), main(['predict', '.', 'x']))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(eqx_vit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "0 2 2 2", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all("pip install 'eqx_vit[train]'" in line for line in lines)


def test_what_was_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's cache folder, and by commands alone: afterwards JAX has no cache again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("eqx_vit.cli.cache.SHORTEST", 0)
    jax.config.update("jax_enable_compilation_cache", True)
    try:
        with keep_compiled():
            jax.jit(lambda x: 3 * x + 1)(1.0)
        kept = list((tmp_path / "eqx_vit" / "compiled").glob("*-cache"))
        assert kept
        assert jax.config.values["jax_compilation_cache_dir"] is None
        jax.jit(lambda x: 5 * x - 1)(1.0)
        assert list((tmp_path / "eqx_vit" / "compiled").glob("*-cache")) == kept
    finally:
        jax.config.update("jax_enable_compilation_cache", False)


@pytest.mark.parametrize(
    "command", [["train"], ["evaluate", "run"], ["predict", "run", "a.png"], ["look", "run", "a.png"]]
)
def test_the_cache_can_be_left_out(command: list[str]) -> None:
    assert make_parser().parse_args(command).cache
    assert not make_parser().parse_args([*command, "--no-cache"]).cache
