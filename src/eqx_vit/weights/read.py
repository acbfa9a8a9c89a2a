"""Weight files to named arrays. Nothing in a file is trusted, and none takes more memory than its size explains."""

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np

from eqx_vit.files import array_of_bytes, check_regular_file, read_arrays

_PICKLES = (".pt", ".pth", ".bin", ".tar", ".pkl", ".ckpt")
# Real weights never compress by more; an archive that claims at most the second number of bytes does no harm.
_LARGEST_RATIO, _HARMLESS_SIZE = 20, 64 * 2**20

# What zipfile and numpy raise for damaged input. OSError: a place before the file's start. RuntimeError: encryption.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` or `.npz` file, under the names that they have there.

    **Raises:** `ValueError` for a damaged or hostile file, and for PyTorch's pickles, which can run any code when they
    are read: convert them first. `FileNotFoundError` for a missing file.
    """
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


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    check_regular_file(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = _check_members(archive.infolist(), path.stat().st_size)
                return {name: _read_array(archive, name, member) for name, member in members.items()}
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged, or not an .npz file of weights: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> Mapping[str, zipfile.ZipInfo]:
    """The members under the names of their arrays; `ValueError` for any that numpy would not write."""
    total = sum(member.file_size for member in members)
    if total > max(_HARMLESS_SIZE, _LARGEST_RATIO * size):
        raise ValueError(f"its {size} bytes claim to hold {total}")
    named: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        parts = name.split("/")
        if name == member.filename or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
            raise ValueError(f"its member {member.filename!r} is not the name of an array")
        if name in named:
            raise ValueError(f"it has {name!r} twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member {name!r} is compressed in a way that numpy does not use")
        named[name] = member
    return named


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


def _read_npy_header(file: IO[bytes] | zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether the first axis is the fastest, dtype)."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its arrays have version {version} of numpy's format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, columns_first, dtype = read(file)
    except (TypeError, SyntaxError, MemoryError) as error:  # numpy evaluates the header as a Python literal
        raise ValueError(f"the header of an array does not describe one: {error}") from error
    if any(length < 0 for length in shape):
        raise ValueError(f"an array cannot have shape {shape}")
    return shape, columns_first, dtype
