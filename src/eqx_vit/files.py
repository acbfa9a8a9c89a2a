"""Files that are written whole or not at all, and safetensors files that are checked when they are read."""

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import jax
import ml_dtypes  # comes with jax
import numpy as np
from jaxtyping import Array

from eqx_vit.layers.config import list_some, no_type_check, shorten


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file, in one piece or several, so that a kill at any instant leaves either the old content or the new."""
    # In the same folder, as a rename works only within one device; of its own name, as two processes may write at once.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def fill_folder(path: Path) -> Iterator[Path]:
    """Within it, a folder to write to, which appears at the path when all is done; after an error there is nothing.

    **Raises:** `FileExistsError` where there is something at the path already.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already: give another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    unfinished.mkdir()
    try:
        yield unfinished
        os.rename(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray | Array], metadata: dict[str, str]) -> None:
    """Write named arrays, and text beside them, as one safetensors file; atomic.

    Arrays that are sharded over devices are collected one at a time. Where other processes hold parts of them, each
    process has to call this, and the first one writes.

    **Raises:** `ValueError` for an array of a dtype that such files do not have.
    """
    strange = [f"{name} ({array.dtype})" for name, array in arrays.items() if not can_store(array.dtype)]
    if strange:
        raise ValueError(f"safetensors files cannot hold these arrays: {list_some(strange)}")
    # Wide numbers first: each array then lies at a multiple of the width of its numbers, as readers want to map it.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name in names:
        end = position + arrays[name].size * arrays[name].dtype.itemsize
        kind = kinds[np.dtype(arrays[name].dtype)]
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes]:
        yield len(text).to_bytes(8, "little") + text
        yield from (to_host(arrays[name]).tobytes() for name in names)

    if _is_written_here(arrays):
        write_atomically(path, chunks())
    else:
        for _ in chunks():
            pass


def to_host(array: np.ndarray | Array) -> np.ndarray:
    """The whole array, wherever its parts are; in every process that holds one, at the same time."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _is_written_here(arrays: Mapping[str, np.ndarray | Array]) -> bool:
    shared = any(isinstance(array, jax.Array) and not array.is_fully_addressable for array in arrays.values())
    return not shared or jax.process_index() == 0


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file under their names, and the text beside them.

    Nothing in the file is trusted: its header must describe the rest of the file exactly, so that no more memory is
    taken than the file is large.

    **Raises:** `ValueError` for a file that is damaged or not a safetensors file; `FileNotFoundError`.
    """
    check_regular_file(path)
    try:
        with open(path, "rb") as file:
            header, metadata, start = _read_header(file, path.stat().st_size)
            arrays = {}
            for name, (dtype, shape, begin, end) in _read_entries(header, path.stat().st_size - start).items():
                file.seek(start + begin)
                arrays[name] = array_of_bytes(file.read(end - begin), shape, dtype)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged, or not a safetensors file: {reason}") from error
    return arrays, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none for any other file."""
    with open(path, "rb") as file:
        try:
            return _read_header(file, path.stat().st_size)[1]
        except ValueError:
            return {}


def digest_arrays(arrays: Mapping[str, np.ndarray | Array], text: str) -> str:
    """SHA-256 of named arrays, in any order, and the text beside them."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = to_host(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def can_store(dtype: np.dtype) -> bool:
    """Whether `read_arrays` reads back what `write_arrays` writes in this dtype."""
    return dtype in _DTYPES.values()


def is_finite(array: np.ndarray) -> bool:
    """Whether none of its numbers is infinite or NaN."""
    return bool(np.isfinite(array).all())


def cache_folder() -> Path:
    """The user's folder of what can be made or downloaded again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqx_vit"


def check_regular_file(path: Path) -> None:
    """Raise `FileNotFoundError` for a path to nothing, `ValueError` for one to a folder, a pipe, a device.

    `ValueError` too for what Git has in place of a large file until it is fetched.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its repository")


@no_type_check
def array_of_bytes(
    content: bytes, shape: tuple[int, ...], dtype: np.dtype, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """The array that these bytes are.

    **Raises:** `ValueError` where they are too few or too many, and for shapes that numpy cannot have.
    """
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes are not an array of shape {shape} and dtype {dtype}")
    return np.ndarray(shape, dtype, buffer=content, order=order)


_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_HEADER = 16 * 2**20  # of the largest released models it is below one megabyte
_LONGEST_NAME, _MOST_AXES = 500, 32
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, object], dict[str, str], int]:
    """The header's description of each array, its metadata, and where the arrays begin."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"its header would be {length} bytes long, the file has {size}")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_refuse_repeats)
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("its header is not a table of arrays")
    check_names(header)
    return header, {str(name): str(text) for name, text in metadata.items()}, 8 + length


def check_names(names: Iterable[str]) -> None:
    """Raise `ValueError` for a name of an array that no model has: longer, or one that a message could not show."""
    for name in names:
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise ValueError(f"{name[:100]!a} is not the name of an array")


@no_type_check
def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("its header names something twice")
    return dict(pairs)


def _read_entries(header: dict[str, object], size: int) -> dict[str, tuple[np.dtype, tuple[int, ...], int, int]]:
    """(dtype, shape, begin, end) of each array; together they cover the `size` bytes, none of them twice."""
    entries = {name: _read_entry(name, fields) for name, fields in header.items()}
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise ValueError(f"the array {name!r} begins at byte {begin}, the one before it ends at {position}")
        position = end
    if position != size:
        raise ValueError(f"its arrays take {position} bytes, the file has {size} for them")
    return entries


@no_type_check
def _read_entry(name: str, fields: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    match fields:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end]} if kind in _DTYPES:
            numbers = [*shape, begin, end]
            if len(shape) <= _MOST_AXES and all(type(number) is int and 0 <= number < 2**63 for number in numbers):
                if math.prod(shape) * _DTYPES[kind].itemsize == end - begin:
                    return _DTYPES[kind], tuple(shape), begin, end
                raise ValueError(f"the array {name!r} of shape {shape} in {kind} cannot take {end - begin} bytes")
    raise ValueError(f"the array {name!r} has the impossible description {shorten(fields)}")
