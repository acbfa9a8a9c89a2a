"""Every example runs as its text says, and is under 120 lines."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
PRINTS = {
    "finetune": ("digits 0 to 5: 0.9", "6, 7, 8, 9: 0.9", "timm.create_model"),
    "prototyping": ("'tokens dim'", "step 59"),
    "properties": ("60 random configurations",),
    "flax_dropin": ("epoch 12  test accuracy 0.9",),
    "own_architecture": ("test accuracy", "3 classes at 16 x 16: (1, 3)", "all contracts hold"),
    "training_loop": ("epoch 20  test accuracy 0.9",),
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
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    for text in PRINTS[path.stem]:
        assert text in run.stdout
