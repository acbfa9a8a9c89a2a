"""A model as StableHLO, by `jax.export`: a file that JAX alone runs, on processors and versions of JAX to come."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from equinox.nn import State
from jax import export as jax_export
from jaxtyping import Array

from eqx_vit.arguments import check_arguments
from eqx_vit.export.certificate import TOLERANCE, Measured, certify
from eqx_vit.export.program import Batch, make_program
from eqx_vit.files import check_regular_file, fill_folder
from eqx_vit.layers.config import Size
from eqx_vit.registry import AnyModel

STABLEHLO = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
RUNNER = Path(__file__).with_name("run_stablehlo.py")


@check_arguments
def stablehlo(
    path: str | os.PathLike[str],
    model: AnyModel,
    state: State,
    batch: Batch = "dynamic",
    platforms: Sequence[str] = PLATFORMS,
    *,
    image_size: Size | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, object]:
    """Write a model in inference mode, its weights inside, as a new folder: `model.stablehlo` and `certificate.json`.

    `jax.export.deserialize(file.read()).call(images)` runs it, without this library and Equinox; images are float32, of
    (batch, height, width, channels). It is run in a fresh process before the folder appears, whole or not at all.

    **Arguments:** `batch` is "dynamic", for any, or the only one; `platforms` where it shall run; `image_size` for
    models that take any size (None: 224); `tolerance` the largest difference of a logit from the model's in float32, as
    a share of the largest logit.

    **Returns:** what the certificate says.

    **Raises:** `ImportError` without flatbuffers, which `pip install 'eqx_vit[export]'` brings and JAX does not;
    `ValueError` for a model that cannot be run, an unknown platform, platforms none of which is here to
    try, and a difference above the tolerance; `FileExistsError` where there is something at the path.
    """
    _check_installed()
    program = make_program("export.stablehlo", model, state, batch, image_size)
    here = _find_platform_here(platforms)
    with fill_folder(Path(path)) as folder:
        exported = jax_export.export(jax.jit(lambda images: program(images)), platforms=tuple(platforms))(
            program.describe_images()
        )
        (folder / STABLEHLO).write_bytes(exported.serialize())
        return certify(
            folder,
            program,
            _run_in_fresh_process(folder / STABLEHLO, program.make_examples(), here),
            tolerance=tolerance,
            packages=("jax", "jaxlib", "equinox", "numpy"),
            details={
                "format": "StableHLO",
                "file": STABLEHLO,
                "runtime": f"jax {jax.__version__} on {here}, in a process without eqx_vit and equinox",
                "platforms": list(platforms),
                "calling_convention": exported.calling_convention_version,
            },
        )


@check_arguments
def load(path: str | os.PathLike[str]) -> Callable[[Array | np.ndarray], Array]:
    """The function that `stablehlo` wrote: a batch of float32 images to logits, compiled at the first call of a size.

    **Arguments:** `path` is the folder, or the file inside it.

    **Raises:** `ValueError` for another file; `FileNotFoundError`; `ImportError` without flatbuffers.
    """
    _check_installed()
    file = Path(path) / STABLEHLO if Path(path).is_dir() else Path(path)
    check_regular_file(file)
    try:
        exported = jax_export.deserialize(bytearray(file.read_bytes()))
    except Exception as error:  # of its reader, which says nothing of what it was given
        raise ValueError(f"{file} is damaged, or not a program that jax.export wrote: {error}") from error
    return jax.jit(exported.call)


def _check_installed() -> None:
    if find_spec("flatbuffers") is None:
        raise ImportError("jax.export needs flatbuffers: pip install 'eqx_vit[export]'", name="flatbuffers")


def _find_platform_here(platforms: Sequence[str]) -> str:
    """A platform of those asked for on which this machine can try the program: the CPU, if it is among them.

    **Raises:** `ValueError` where there is none.
    """
    unknown = [name for name in platforms if name not in ("cpu", "cuda", "rocm", "tpu")]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        raise ValueError(f"platforms must be some of 'cpu', 'cuda', 'rocm', 'tpu', each once, given {tuple(platforms)}")
    backend = jax.default_backend()
    own = {"gpu": ("cuda", "rocm")}.get(backend, (backend,))
    here = [name for name in ("cpu", *own) if name in platforms]
    if not here:
        raise ValueError(
            "what is exported is run at once, and this machine has none of the platforms "
            f"{', '.join(platforms)}: add 'cpu'"
        )
    return here[0]


def _run_in_fresh_process(file: Path, examples: Sequence[np.ndarray], platform: str) -> Measured:
    with tempfile.TemporaryDirectory() as place:
        given, results = Path(place) / "images.npz", Path(place) / "logits.npz"
        np.savez(given, *examples)
        # -P: what lies beside the runner is this library's.
        command = [sys.executable, "-P", str(RUNNER), str(file), str(given), str(results)]
        environment = os.environ | {"JAX_PLATFORMS": platform}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1]
            raise ValueError(f"the exported program does not run in a process of its own: {last}")
        with np.load(results) as arrays:
            found = [arrays[f"arr_{index}"] for index in range(len(examples))]
    return Measured(found, json.loads(ended.stdout.splitlines()[-1]))
