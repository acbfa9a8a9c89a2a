"""Forward passes and training steps in bfloat16 on one GPU, beside compiled timm, with the share of the matmul rate.

    python tests/benchmarks/run.py --gpu            some 20 minutes; runs again where it was

It needs JAX with CUDA and PyTorch with CUDA in one environment: pip install "jax[cuda12]" torch timm. Each measure of
each model is `pair.py`'s, at the presets, with both sides in one process and in turn.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import describe, heading, markdown

# The architecture of `calls.py`, and the preset in place of its own.
MODELS = {
    "vit_small_patch16_224": "vit",
    "vit_base_patch16_224": "vit",
    "cait_xxs24_224": "cait",
    "levit_256": "levit",
    "twins_svt_small": "twins_svt",
    "nest_tiny_jx": "nest",
}
HERE = Path(__file__).parent


def main(options: argparse.Namespace) -> None:
    """Measure each model, or go on where an earlier run was, and write the table."""
    import jax

    if jax.default_backend() != "gpu":
        sys.exit(f"--gpu needs JAX on a GPU; here it computes on: {jax.default_backend()}")
    folder = options.out / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in options.architectures or MODELS:
        path = folder / f"{name}.json"
        if options.again or not path.exists():
            command = [sys.executable, str(HERE / "pair.py"), MODELS[name], "preset", "--preset", name]
            command += ["--dtype", "bfloat16", "--threads", str(options.threads)]
            command += ["--runs", str(options.runs), "--seconds", str(options.seconds)]
            environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"{name} failed:\n{done.stderr[-1500:]}", file=sys.stderr, flush=True)
                continue
            path.write_text(done.stdout)
        results[name] = json.loads(path.read_text())
        (folder / "gpu.md").write_text(page(results, options.threads))
        print(f"{name} is measured", flush=True)
    print(folder / "gpu.md")


def page(results: dict[str, Any], threads: int) -> str:
    """The table, as the documentation has it."""
    rows = []
    for name, found in results.items():
        for row in found["measures"]:
            ours = row["seconds"].get("eqx_vit")
            share = row["share_of_matmul_rate"].get("eqx_vit")
            ratios = {side.partition(" ")[2] or "eager": value[1] for side, value in row["times_faster_than"].items()}
            shown = ["-" if ours is None else f"{1000 * ours[1]:.2f}", "-" if share is None else f"{share:.0%}"]
            shown += [f"{ratios[kind]:.2f}" if kind in ratios else "-" for kind in ("eager", "compiled")]
            rows.append([name, row["measure"], *shown, f"{row['matmul_rate'][1] / 1e12:.0f}"])
    columns = ["model", "measure", "ms", "share of the matmul rate", "x timm", "x timm compiled", "matmul, TFLOP/s"]
    failed = [(name, what, text) for name, one in results.items() for what, text in one["errors"].items()]
    errors = "".join(f"- {name}, {what}: {text}\n" for name, what, text in failed)
    device = next(iter(results.values()))["device"]
    table = f"{heading(device, describe(threads))}\n{markdown(columns, rows)}"
    return f"{table}\nNot run:\n\n{errors}" if errors else table
