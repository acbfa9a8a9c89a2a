"""Peak memory and speed of `eqx-vit train` over growing numbers of JPEGs of 224 pixels and more.

    python tests/benchmarks/memory_of_training.py            # 5,000 and 20,000 files, some minutes
    python tests/benchmarks/memory_of_training.py 1000 4000  # others

The model is a small one, so that the images are the work. Prints a line for each number of files; the memory is the
largest resident set of the main process, as the operating system counts it.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
OPTIONS = (
    "--model vit_tiny_patch16_224 --set depth=1 --set dim=32 --set heads=2 --set mlp_dim=32 --epochs 1 --batch-size 64 "
    "--crop random --flip --rotate 0 --shift 0 --zoom 0 --rand-augment rand-m9-mstd0.5-inc1 --mixup 0.8 --cutmix 1.0"
)


def make_folder(folder: Path, files: int) -> None:
    """Smooth pictures with noise, 256 x 240, of which nine in ten are for training."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize((256, 240))
        pixels = np.asarray(coarse) + random.integers(-20, 20, (240, 256, 3))
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    for number in range(files):
        place = folder / ("val" if number % 10 == 9 else "train") / f"class{number // 10 % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        pictures[number % len(pictures)].save(place / f"{number:06d}.jpg", quality=85)


def main(counts: list[int]) -> None:
    """Train once for each number of files."""
    for files in counts:
        with tempfile.TemporaryDirectory() as scratch:
            make_folder(Path(scratch, "data"), files)
            command = [
                sys.executable,
                "-m",
                "eqx_vit",
                "train",
                "--data",
                f"{scratch}/data",
                "--output",
                f"{scratch}/run",
            ]
            subprocess.run([*command, *shlex.split(OPTIONS)], check=True, capture_output=True)
            epoch = json.loads(Path(scratch, "run", "metrics.jsonl").read_text().splitlines()[0])
        print(
            f"{files:7,} files: peak memory {epoch['memory_gib']:.2f} GiB, {epoch['images_per_second']:.0f} images/s, "
            f"{epoch['data_wait']:.0%} of the time waiting for them",
            flush=True,
        )


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [5000, 20000])
