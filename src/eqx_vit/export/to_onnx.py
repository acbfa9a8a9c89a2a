"""A model as ONNX, by jax2onnx, for ONNX Runtime, OpenVINO, TensorRT and browsers."""

# The extra `export` need not be installed where types are checked.
# pyright: reportMissingImports=false

import importlib
import importlib.metadata
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from equinox.nn import State
from jax.extend.core import JaxprEqn, jaxpr_as_fun

from eqx_vit.arguments import check_arguments
from eqx_vit.export.certificate import TOLERANCE, Measured, certify, measure
from eqx_vit.export.flatten import flatten
from eqx_vit.export.forms import FORMS
from eqx_vit.export.program import Batch, Program, make_program
from eqx_vit.files import fill_folder
from eqx_vit.layers.config import Size
from eqx_vit.registry import AnyModel

if TYPE_CHECKING:
    import onnx_ir as ir

ONNX, WEIGHTS = "model.onnx", "model.onnx.data"
OPSET = 18
LARGEST_FILE = 2**31 - 2**20  # of one file: protobuf's limit; beyond it, the weights lie in a file of their own


@check_arguments
def onnx(
    path: str | os.PathLike[str],
    model: AnyModel,
    state: State,
    batch: Batch = "dynamic",
    *,
    opset: int = OPSET,
    image_size: Size | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, object]:
    """Write a model in inference mode, its weights inside, as a new folder: `model.onnx` and `certificate.json`.

    Its input is `images`, float32 of (batch, height, width, channels), its output `logits`. Operators are ONNX's own;
    stacks of blocks are written out. ONNX Runtime runs it before the folder appears, whole or not at all. Above 2 GB
    the weights are in `model.onnx.data`.

    **Arguments:** `batch` is "dynamic", for any, or the only one; `opset` from 18 on; `image_size` for models that take
    any size (None: 224); `tolerance` the largest difference of a logit from the model's in float32, as a share of the
    largest logit.

    **Returns:** what the certificate says.

    **Raises:** `ImportError` without `pip install 'eqx_vit[export]'`; `ValueError` for a model that cannot be run, one
    that ONNX cannot express, with the operation, and a difference above the tolerance; `FileExistsError` where there is
    something at the path.
    """
    if opset < OPSET:
        raise ValueError(f"export.onnx: opset must be {OPSET} or higher, given {opset}")
    program = make_program("export.onnx", model, state, batch, image_size)
    _check_installed()
    with fill_folder(Path(path)) as folder:
        _write(folder, convert(program, opset))
        return certify(
            folder,
            program,
            _run_in_onnx_runtime(folder / ONNX, program.make_examples()),
            tolerance=tolerance,
            packages=("jax", "jax2onnx", "onnx", "onnxscript", "onnxruntime", "numpy"),
            details={
                "format": "ONNX",
                "file": ONNX,
                "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')} on cpu",
                "opset": opset,
            },
        )


def _check_installed() -> None:
    for name in ("jax2onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"export.onnx needs {error.name}: pip install 'eqx_vit[export]'", name=error.name
            ) from error


def convert(program: Program, opset: int) -> "ir.Model":
    """The program in ONNX.

    **Raises:** `ValueError` that names the operation which cannot be converted.
    """
    import jax2onnx

    from eqx_vit.export.rules import simplify

    images = program.describe_images()
    flat = flatten(jax.make_jaxpr(lambda images: program(images))(images), FORMS)
    try:
        model = jax2onnx.to_onnx(
            jaxpr_as_fun(flat),
            inputs=[images],
            model_name=type(program.model).__name__,
            opset=opset,
            return_mode="ir",
            input_names=["images"],
            output_names=["logits"],
        )
    except Exception as error:  # of whatever kind: its plug-ins are many
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{type(program.model).__name__} has the operation {_find_operation(error)}, which jax2onnx cannot convert "
            f"({reason}): write it with others, or export to StableHLO"
        ) from error
    return simplify(model)


def _find_operation(error: Exception) -> str:
    """The JAX primitive at which the conversion failed."""
    equations = [frame.f_locals.get("eqn") for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [equation.primitive.name for equation in equations if isinstance(equation, JaxprEqn)]
    return names[-1] if names else "(unknown)"


def _write(folder: Path, model: "ir.Model") -> None:
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, folder / ONNX, external_data=WEIGHTS if size > LARGEST_FILE else None)


def _run_in_onnx_runtime(file: Path, examples: Sequence[np.ndarray]) -> Measured:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return measure(lambda images: np.asarray(session.run(["logits"], {"images": images})[0]), examples)
    except Exception as error:  # its own types, which have no common base but this
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"ONNX Runtime cannot run the exported model: {reason}") from error
