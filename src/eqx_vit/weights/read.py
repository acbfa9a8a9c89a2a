"""Weight files to named arrays. Nothing in a file is trusted, and none takes more memory than its size explains."""

import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np

from eqx_vit.arguments import check_arguments
from eqx_vit.files import array_of_bytes, check_names, check_regular_file, read_arrays
from eqx_vit.layers.config import list_some, no_type_check, shorten

_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors")  # a plain name: nothing outside the folder is read
_PICKLES = (".pt", ".pth", ".bin", ".tar", ".pkl", ".ckpt")
# Real weights never compress by more; an archive that claims at most the second number of bytes does no harm.
_LARGEST_RATIO, _HARMLESS_SIZE = 20, 64 * 2**20


@check_arguments
def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` or `.npz` file, or of a folder, under the names that they have there.

    In a folder it is `model.safetensors`, or the files that `model.safetensors.index.json` names.

    **Raises:** `ValueError` for a damaged or hostile file, and for PyTorch's pickles, which can run any code when they
    are read: convert them first. `FileNotFoundError` for a missing file, with all that an index misses.
    """
    path = Path(path)
    path = find_in_folder(path, "model.safetensors") if path.is_dir() else path
    if path.name.endswith(".safetensors.index.json"):
        return _read_shards(path)
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle: run python -m eqx_vit.weights.convert {path} {path.name.split('.')[0]}.safetensors "
            "and use what it writes, as pretrained= of eqx_vit.create for example"
        )
    if path.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"{path} is neither a .safetensors nor a .npz file")
    if path.suffix == ".npz":
        return _read_npz(path)
    arrays, metadata = read_arrays(path)
    if any(name.startswith("eqx_vit.") for name in metadata):
        raise ValueError(f"{path} was written by eqx_vit.save: eqx_vit.load({str(path)!r}) reads it")
    return arrays


def find_in_folder(folder: Path, file: str) -> Path:
    """The file of a folder, or the index of those that hold it in parts."""
    index = folder / f"{file}.index.json"
    return index if index.exists() and not (folder / file).exists() else folder / file


def read_index(path: Path) -> dict[str, list[str]]:
    """The files that an index names, all beside it, each with the names of the arrays that it should have.

    **Raises:** `ValueError` for anything but such an index; `FileNotFoundError`.
    """
    check_regular_file(path)
    files: dict[str, list[str]] = {}
    try:
        if path.stat().st_size > _HARMLESS_SIZE:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        match json.loads(path.read_bytes()):
            case {"weight_map": dict(places)}:
                for name, file in places.items():
                    if not isinstance(file, str) or not _SHARD.fullmatch(file):
                        raise ValueError(f"{str(file)[:200]!r} is not the name of a .safetensors file beside it")
                    files.setdefault(file, []).append(name)
            case _:
                raise ValueError("it has no weight_map")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or not an index of .safetensors files: {error}") from error
    return files


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    files = read_index(path)
    missing = [file for file in files if not (path.parent / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(files)} files, of which {len(missing)} are not beside it: {list_some(missing)}"
        )
    arrays: dict[str, np.ndarray] = {}
    for file, names in files.items():
        found = read_weights(path.parent / file)
        if found.keys() != set(names):
            different = sorted(found.keys() ^ set(names))
            raise ValueError(f"{path.parent / file} has not the arrays that {path.name} says: {list_some(different)}")
        arrays |= found
    return arrays


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    check_regular_file(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = _check_members(archive.infolist(), path.stat().st_size)
                return {name: _read_array(archive, name, member) for name, member in members.items()}
        except Exception as error:  # zipfile and numpy, which evaluates a header as Python, may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path} is damaged, or not an .npz file of weights: {reason[:500]}") from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> Mapping[str, zipfile.ZipInfo]:
    """The members under the names of their arrays; `ValueError` for any that numpy would not write."""
    check_names(member.filename for member in members)
    total = sum(member.file_size for member in members)
    if total > max(_HARMLESS_SIZE, _LARGEST_RATIO * size):
        raise ValueError(f"its {size} bytes claim to hold {total}")
    named: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        parts = name.split("/")
        if name == member.filename or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
            raise ValueError(f"its member {shorten(member.filename)} is not the name of an array")
        if name in named:
            raise ValueError(f"it has {name!r} twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member {name!r} is compressed in a way that numpy does not use")
        named[name] = member
    return named


@no_type_check
def _read_array(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        shape, columns_first, dtype = _read_npy_header(file)
        if dtype == np.dtype("V2"):  # how numpy saves a dtype that it does not know
            dtype = np.dtype(ml_dtypes.bfloat16)
        if dtype.kind not in "fiub" and dtype != np.dtype(ml_dtypes.bfloat16):
            raise ValueError(f"the array {name!r} has dtype {dtype}, which is not a number's")
        count = math.prod(shape) * dtype.itemsize
        if file.tell() + count != member.file_size:
            raise ValueError(
                f"the array {name!r} of shape {shape} and dtype {dtype} cannot take {member.file_size} bytes"
            )
        return array_of_bytes(file.read(), shape, dtype, order="F" if columns_first else "C")


@no_type_check
def _read_npy_header(file: IO[bytes] | zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether the first axis is the fastest, dtype)."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its arrays have version {version} of numpy's format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if any(length < 0 for length in shape):
        raise ValueError(f"an array cannot have shape {shape}")
    return shape, columns_first, dtype
