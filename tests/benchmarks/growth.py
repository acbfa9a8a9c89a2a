"""The cost of ViT-S as work grows: image size, depth and batch, time and memory, with timm beside.

    python tests/benchmarks/run.py --growth

Every point of every side is a process of its own, which this file is, so that its peak of memory is its own: the
largest resident set less that before the model was made. Forward passes on all threads, in float32.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe, heading, markdown

SIZES, DEPTHS, BATCHES = (224, 384, 512, 768, 1024), (12, 24, 36, 48), (1, 4, 16, 64)
POINTS = [("image size", size, (size, 12, 1)) for size in SIZES]
POINTS += [("depth", depth, (224, depth, 1)) for depth in DEPTHS]
POINTS += [("batch", batch, (224, 12, batch)) for batch in BATCHES]
SIDES = ("eqx_vit", "eqx_vit unstacked", "timm")
PRESET = "vit_small_patch16_224"


def make_call(side: str, size: int, depth: int, batch: int, threads: int) -> Any:
    """One forward pass. The libraries are imported, but no model is made, before this returns the maker of it."""
    if side == "timm":
        import timm
        import torch

        torch.set_num_threads(threads)

        def make() -> Any:
            model = timm.create_model(PRESET, img_size=size, depth=depth).eval()
            images = torch.randn(batch, 3, size, size)

            def run() -> None:
                with torch.inference_mode():
                    model(images)

            return run

        return make
    import equinox as eqx
    import jax

    import eqx_vit

    jax.devices()

    def make_ours() -> Any:
        model, state = eqx_vit.create(PRESET, key=jax.random.key(0), image_size=size, depth=depth)
        model = eqx.nn.inference_mode(model)
        model = model if side == "eqx_vit" else eqx_vit.unstacked(model)
        images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
        forward = eqx.filter_jit(lambda model, state, images: eqx_vit.forward(model, state, images)[0])
        return lambda: jax.block_until_ready(forward(model, state, images))

    return make_ours


def measure(side: str, size: int, depth: int, batch: int, threads: int, runs: int, seconds: float) -> dict[str, float]:
    make = make_call(side, size, depth, batch, threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    call = make()
    call()
    first = time.perf_counter() - start
    times: list[float] = []
    while len(times) < runs and (len(times) < 3 or sum(times) < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": statistics.median(times), "first": first, "mebibytes": peak / 1024}


def main(options: argparse.Namespace) -> None:
    """Measure each point, or go on where an earlier run was, and write table and plot."""
    folder = options.out / "growth"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "growth.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not options.again else {}
    found.setdefault("machine", describe(options.threads))
    for axis, value, shape in POINTS:
        for side in SIDES:
            name = f"{side}, {axis} {value}"
            if name in found:
                continue
            numbers = [*shape, options.threads, options.runs, options.seconds]
            command = [sys.executable, __file__, side, *map(str, numbers)]
            environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"{name} failed:\n{done.stderr[-1000:]}", file=sys.stderr, flush=True)
                continue
            found[name] = json.loads(done.stdout.splitlines()[-1])
            path.write_text(json.dumps(found, indent=1))
            print(f"{name}: {found[name]['seconds']:.3f} s, {found[name]['mebibytes']:,.0f} MiB", flush=True)
    rows = []
    for axis, value, _ in POINTS:
        points = [found.get(f"{side}, {axis} {value}") for side in SIDES]
        times = ["-" if point is None else f"{1000 * point['seconds']:.0f}" for point in points]
        memory = ["-" if point is None else f"{point['mebibytes']:,.0f}" for point in points]
        first = ["-" if point is None else f"{point['first']:.1f}" for point in points]
        rows.append([f"{axis} {value}", *times, *memory, *first])
    columns = [f"{side}, {unit}" for unit in ("ms", "MiB", "first result, s") for side in SIDES]
    (folder / "growth.md").write_text(
        f"{heading('Cost as work grows', found['machine'])}\n{markdown(['', *columns], rows)}"
    )
    plot(found, folder / "growth.png")
    print(f"{folder / 'growth.md'} and {folder / 'growth.png'}")


def plot(found: dict[str, Any], path: Path) -> None:
    """Time above, memory below; image size, depth and batch from left to right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), sharex="col", constrained_layout=True)
    for column, (axis, unit) in enumerate((("image size", "pixels a side"), ("depth", "blocks"), ("batch", "images"))):
        for row, (measure_, label, scale) in enumerate((("seconds", "ms", 1000), ("mebibytes", "MiB", 1))):
            for side in SIDES:
                values = [value for kind, value, _ in POINTS if kind == axis and f"{side}, {axis} {value}" in found]
                points = [scale * found[f"{side}, {axis} {value}"][measure_] for value in values]
                axes[row, column].plot(values, points, "o-" if side != "timm" else "s--", label=side)
            axes[row, column].set(ylabel=label, ylim=(0, None), title=f"{axis}" if row == 0 else "")
        axes[1, column].set_xlabel(unit)
    axes[0, 0].legend()
    figure.suptitle("ViT-S/16, a forward pass in float32 on a CPU")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[5])])
    with contextlib.redirect_stdout(sys.stderr):
        measured = measure(sys.argv[1], *map(int, sys.argv[2:7]), float(sys.argv[7]))
    print(json.dumps(measured))
