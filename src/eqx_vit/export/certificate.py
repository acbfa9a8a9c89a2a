"""What is known of a file that was exported: how far it is from the model, its cost, its size, its speed here."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqx_vit.counting import multiply_adds_in
from eqx_vit.export.program import Program
from eqx_vit.files import digest_arrays, write_atomically
from eqx_vit.parameters import count_params
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.registry import config_to_json

CERTIFICATE = "certificate.json"
TOLERANCE = 1e-4  # of the largest logit


class Measured(NamedTuple):
    """What the file gave in its own runtime: the logits of each batch, and how many seconds that took, a few times."""

    logits: list[np.ndarray]
    seconds: list[list[float]]


def measure(run: Callable[[np.ndarray], np.ndarray], examples: Sequence[np.ndarray]) -> Measured:
    """Run each batch, and a few times more."""
    logits, seconds = [], []
    for images in examples:
        logits.append(np.asarray(run(images)))
        times: list[float] = []
        while len(times) < 10 and sum(times) < 2:
            start = time.perf_counter()
            run(images)
            times.append(time.perf_counter() - start)
        seconds.append(times)
    return Measured(logits, seconds)


def certify(
    folder: Path,
    program: Program,
    measured: Measured | None,
    *,
    tolerance: float,
    packages: Sequence[str],
    details: Mapping[str, object],
) -> dict[str, object]:
    """Write `certificate.json` beside what was exported to a folder, and return what it holds.

    **Arguments:** `measured` of `program.make_examples()`; None where the runtime is not here. `packages` are those
    whose versions matter, `details` what is particular to the format.

    **Raises:** `ValueError` where the file differs from the model by more than `tolerance` of the largest logit.
    """
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
        **({} if measured is None else _compare(program, measured, tolerance)),
        "parameters": count_params(program.model),
        "multiply_adds": _count_multiply_adds(program),
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in ("eqx_vit", *packages)},
    }
    text = json.dumps(certificate, indent=2) + "\n"
    write_atomically(folder / CERTIFICATE, text.encode())
    return json.loads(text)


def _count_multiply_adds(program: Program) -> int | None:
    """Those of one image, parts that a user has exchanged included; None for a loop of unknown length."""
    image = jax.ShapeDtypeStruct((1, *program.image_size, program.model.config.channels), jnp.float32)
    try:
        return multiply_adds_in(jax.make_jaxpr(lambda images: program(images))(image).jaxpr)
    except ValueError:
        return None


def _compare(program: Program, measured: Measured, tolerance: float) -> dict[str, object]:
    expected = program.compute(program.make_examples())
    scale = max(float(np.abs(logits).max(initial=0)) for logits in expected)
    differences = {}
    for found, own in zip(measured.logits, expected, strict=True):
        if found.shape != own.shape:
            raise ValueError(f"the exported file gives logits of shape {found.shape}, the model of {own.shape}")
        differences[str(len(own))] = float(np.abs(found.astype(np.float32) - own).max(initial=0))
    largest = max(differences.values())
    if not largest <= tolerance * (scale or 1):  # NaN too
        raise ValueError(
            f"the exported file differs from the model by {largest:.2g}, where its largest logit is {scale:.2g} and "
            f"tolerance={tolerance:g} of that are allowed: nothing is written; a model in bfloat16 or float16 needs a "
            "higher tolerance, or eqx_vit.cast(model, jnp.float32); so does one whose logits rounding alone changes"
        )
    times = zip(expected, measured.seconds, strict=True)
    return {
        "largest_difference": largest,
        "difference_by_batch": differences,
        "largest_logit": scale,
        "tolerance": tolerance,
        "latency_ms": {str(len(own)): round(1e3 * median(seconds), 3) for own, seconds in times},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"
