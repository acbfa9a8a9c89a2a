"""Files that are written whole or not at all, and safetensors files that are checked when they are read."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill at any instant leaves either the old content or the new."""
    unfinished = path.with_name(f".{path.name}.tmp")  # in the same folder: a rename across devices is no rename
    with open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_arrays(path: Path, arrays: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write named arrays, and text beside them, as one safetensors file; atomic.

    **Raises:** `ImportError` where safetensors is not installed.
    """
    # safetensors writes the memory as it lies: a transposed view would be stored transposed.
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, _safetensors().numpy.save(plain, metadata=metadata))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file under their names, and the text beside them.

    **Raises:** `ValueError` for what is no readable safetensors file, `FileNotFoundError` for a missing one,
    `ImportError` where safetensors is not installed.
    """
    safetensors = _safetensors()
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a safetensors file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from error


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("model files need safetensors: pip install 'eqx_vit[weights]'", name="safetensors") from error
    return safetensors
