"""A model as a folder that timm or transformers opens, with a certificate; run by them where they are installed."""

# timm, transformers and torch need not be installed.
# pyright: reportMissingImports=false

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from equinox.nn import State

from eqx_vit.export.certificate import TOLERANCE, Measured, certify, measure
from eqx_vit.export.program import Program, make_program
from eqx_vit.files import fill_folder
from eqx_vit.layers.config import Size
from eqx_vit.registry import AnyModel
from eqx_vit.weights.export import export
from eqx_vit.weights.preprocessing import Preprocessing

PACKAGES = {"timm": "timm", "hf": "transformers"}


def write_folder(
    path: str | os.PathLike[str],
    model: AnyModel,
    state: State,
    *,
    target: Literal["timm", "hf"],
    architecture: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    image_size: Size | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, object]:
    """What `eqx_vit.weights.export` writes, whole or not at all, with a certificate.

    Where timm, or transformers, is installed, it opens the folder and runs the model before that; else the certificate
    says that nobody has.

    **Raises:** what `eqx_vit.weights.export` raises; `ValueError` for a difference above the tolerance.
    """
    program = make_program("export", model, state, "dynamic", image_size)
    with fill_folder(Path(path)) as folder:
        export(
            folder,
            model,
            state,
            target=target,
            architecture=architecture,
            preprocessing=preprocessing if target == "timm" else None,
            class_names=class_names,
        )
        package = PACKAGES[target]
        there = importlib.util.find_spec("torch") is not None and importlib.util.find_spec(package) is not None
        return certify(
            folder,
            program,
            _run(folder, program, target) if there else None,
            tolerance=tolerance,
            packages=("jax", package, "torch"),
            details={
                "format": f"a folder for {package}",
                "file": "model.safetensors",
                "runtime": f"{package} on cpu" if there else f"none: {package} is not installed here",
            },
        )


def _run(folder: Path, program: Program, target: Literal["timm", "hf"]) -> Measured:
    import torch

    call = _open_with_timm(folder) if target == "timm" else _open_with_transformers(folder)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(call(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))))

    return measure(run, program.make_examples())


def _open_with_timm(folder: Path) -> Callable[..., object]:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _open_with_transformers(folder: Path) -> Callable[..., object]:
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    return lambda images: model(images).logits
