"""Every example runs as its text says, and is under 120 lines."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "make_mnist_folder")
PRINTS = {
    "finetune": ("digits 0 to 5: 0.9", "6, 7, 8, 9: 0.9", "timm.create_model"),
    "prototyping": ("'tokens dim'", "step 59"),
    "properties": ("60 random configurations",),
    "flax_dropin": ("epoch 12  test accuracy 0.9",),
    "own_architecture": ("test accuracy", "3 classes at 16 x 16: (1, 3)", "all contracts hold"),
    "training_loop": ("epoch 20  test accuracy 0.9",),
    "many_devices": ("{'data': 2, 'fsdp': 4}", "of which a device has (4, 48, 64)", "epoch 12  test accuracy 0.9"),
    "look_inside": ("(5, 4, 17) (images, heads, tokens)", "blocks.7  (4, 4, 48)  0.9"),
}


SLOW = ("finetune", "own_architecture")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else ()) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_example(path: Path) -> None:
    if path.stem.startswith("flax"):
        pytest.importorskip("flax", reason="run by nox -s flax")
    assert len(path.read_text().splitlines()) < 120
    devices = {"JAX_NUM_CPU_DEVICES": "8"} if path.stem == "many_devices" else {}
    run = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=600, check=False, env=os.environ | devices
    )
    assert run.returncode == 0, run.stderr
    for text in PRINTS[path.stem]:
        assert text in run.stdout


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    path.write_bytes(header + array.tobytes())


def test_mnist_becomes_a_folder(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    counts, images = {"train": 5020, "t10k": 30}, {}
    for name, count in counts.items():
        images[name] = random.integers(0, 256, (count, 4, 4)).astype(np.uint8)
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", images[name])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    command = [sys.executable, FOLDER / "make_mnist_folder.py", tmp_path, "--out", tmp_path / "mnist"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = {part: sorted((tmp_path / "mnist" / part).rglob("*.png")) for part in ("train", "val", "test")}
    assert [len(paths) for paths in found.values()] == [20, 5000, 30]
    (path,) = (tmp_path / "mnist" / "test" / "7").glob("*17.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), images["t10k"][17])
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert len(again.stderr.splitlines()) == 1
