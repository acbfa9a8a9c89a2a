"""PyTorch's pickles to safetensors: `python -m eqx_vit.weights.convert FILE.pth OUT.safetensors`.

The one place that reads a pickle, and only with `weights_only=True`, which runs no code out of the file.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from eqx_vit.files import check_regular_file, write_arrays

Tensor = TypeVar("Tensor")

# Where training programs keep the weights, in what they save.
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0, or 2 after an error, which is one line."""
    parser = argparse.ArgumentParser(
        prog="python -m eqx_vit.weights.convert", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("file", type=Path, help="a .pt, .pth, .bin or .pth.tar file")
    parser.add_argument("out", type=Path, help="the .safetensors file to write, which must not exist")
    parser.add_argument("--key", help="where in the file the weights are, if there are several: " + ", ".join(WRAPPERS))
    options = parser.parse_args(arguments)
    try:
        count = convert(options.file, options.out, options.key)
    except ImportError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        message = str(error) if error.name == "safetensors" else "reading pickles needs PyTorch: pip install torch"
    except (OSError, ValueError) as error:
        message = str(error)
    else:
        print(f"{options.out}: {count} arrays")
        return 0
    print(f"{parser.prog}: {message}", file=sys.stderr)
    return 2


def convert(file: Path, out: Path, key: str | None = None) -> int:
    """Write the weights in a pickle as a safetensors file, whole or not at all, and return the number of arrays.

    **Raises:** `ValueError` for a file that PyTorch cannot read, one without weights or with several sets of them (of
    which `key` picks one), and for an `out` of another kind; `FileExistsError` rather than to overwrite.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} must end in .safetensors")
    if out.exists():
        raise FileExistsError(f"{out} exists already: give another name, or delete it first")
    check_regular_file(file)
    torch = importlib.import_module("torch")  # not a dependency of this package
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} is not a file of weights that PyTorch can read safely: {reason}") from error
    arrays = {name: _to_numpy(tensor, torch) for name, tensor in weights_in(content, torch.Tensor, key).items()}
    write_arrays(out, arrays, {"converted_from": file.name})
    return len(arrays)


def weights_in(content: object, tensor: type[Tensor], key: str | None = None) -> dict[str, Tensor]:
    """The named tensors in what a training program saved.

    **Raises:** `ValueError` where there are none, or several sets.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a dict of weights in the file, found a {type(content).__name__}")
    found = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
    if key is not None and not isinstance(content.get(key), Mapping):
        raise ValueError(f"the file has no weights under {key!r}; it has {', '.join(map(str, content))}")
    if key is None and len(found) > 1:
        raise ValueError(f"the file holds several sets of weights: choose with --key, one of {', '.join(found)}")
    weights = content
    for name in [key] if key is not None else found:
        weights = weights[name]
    other = [name for name, value in weights.items() if not isinstance(value, tensor)]
    if other or not weights:
        raise ValueError(f"the file holds more than weights: {', '.join(map(str, other[:5])) or 'nothing'}")
    return {str(name): value for name, value in weights.items()}


def _to_numpy(tensor: Any, torch: ModuleType) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has no such dtype: the bits are carried over
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


if __name__ == "__main__":
    sys.exit(main())
