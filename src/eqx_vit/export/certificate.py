"""What is known of a file that was exported: how far it is from the model, its cost, its size, its speed here."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np

from eqx_vit.counting import multiply_adds
from eqx_vit.export.program import Program
from eqx_vit.files import digest_arrays, write_atomically
from eqx_vit.parameters import count_params
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.registry import config_to_json

CERTIFICATE = "certificate.json"
TOLERANCE = 1e-4  # of the largest logit


def check_and_certify(
    folder: Path,
    program: Program,
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    seconds: Sequence[Sequence[float]],
    *,
    tolerance: float,
    packages: Sequence[str],
    details: Mapping[str, object],
) -> dict[str, object]:
    """Write `certificate.json` beside what was exported to a folder, and return what it holds.

    **Arguments:** `expected` and `found` are the logits of each batch, of the model and of the file in its own runtime;
    `seconds` how long that took, a few times each; `packages` those whose versions matter; `details` what is particular
    to the format.

    **Raises:** `ValueError` where the file differs from the model by more than `tolerance` of the largest logit.
    """
    scale = max(float(np.abs(logits).max(initial=0)) for logits in expected)
    differences = {}
    for theirs, own in zip(found, expected, strict=True):
        if theirs.shape != own.shape:
            raise ValueError(f"the exported file gives {theirs.shape} where the model gives {own.shape}: this is a bug")
        differences[str(len(own))] = float(np.abs(theirs.astype(np.float32) - own).max(initial=0))
    largest = max(differences.values())
    if not largest <= tolerance * (scale or 1):  # NaN too
        raise ValueError(
            f"the exported file differs from the model by {largest:.2g}, which is {largest / (scale or 1):.2g} of its "
            f"largest logit and more than tolerance={tolerance:g}: nothing is written; a model in bfloat16 or float16 "
            "needs a higher tolerance, or eqx_vit.cast(model, jnp.float32)"
        )
    arrays = {
        name: np.asarray(array)
        for name, array in (named_leaves(program.model) | named_statistics(program.model, program.state)).items()
    }
    plain = config_to_json(program.model.config)
    certificate: dict[str, object] = {
        **details,
        "model": plain,
        "checkpoint_sha256": digest_arrays(arrays, json.dumps(plain)),
        "image": [*program.image_size, program.model.config.channels],
        "batch": program.batch,
        "largest_difference": largest,
        "difference_by_batch": differences,
        "largest_logit": scale,
        "tolerance": tolerance,
        "parameters": count_params(program.model),
        "multiply_adds": multiply_adds(program.model.config, program.image_size),
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "latency_ms": {
            str(len(own)): round(1e3 * median(times), 3) for own, times in zip(expected, seconds, strict=True)
        },
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in ("eqx_vit", *packages)},
    }
    text = json.dumps(certificate, indent=2) + "\n"
    write_atomically(folder / CERTIFICATE, text.encode())
    return json.loads(text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"
