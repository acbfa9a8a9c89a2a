"""One image on one CPU thread: eqx_vit, compiled and stacked, beside PyTorch, ONNX Runtime and OpenVINO, in turn.

    python tests/benchmarks/run.py --latency                        all models, some 20 minutes
    python tests/benchmarks/run.py --latency vit_small_patch16_224  this one

Each model is measured in a process of its own, which this file is. Processor time counts every thread of the process,
so none can hide work in another one; wall time is beside it. Every side computes in float32.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe, heading, markdown

# Ours by timm's name of the same model; CvT is in transformers alone.
MODELS = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch32_224",
    "deit_small_patch16_224",
    "cait_xxs24_224",
    "levit_128s",
    "levit_256",
    "pit_s_224",
    "twins_svt_small",
    "cvt-13",
    "nest_tiny_jx",
    "crossvit_15_240",
)
OURS, UNTUNED, STACKED = "eqx_vit", "eqx_vit untuned", "eqx_vit stacked"
EAGER, COMPILED, ONNX, OPENVINO = "PyTorch", "PyTorch compiled", "ONNX Runtime", "OpenVINO"
TITLE = "One image at a time"
SIDES = (OURS, UNTUNED, STACKED, EAGER, COMPILED, ONNX, OPENVINO)


def our_sides(name: str) -> tuple[dict[str, Callable[[], object]], int, Callable[[], object]]:
    """Our calls, the size of the image, and a product of two matrices of 1,024."""
    import equinox as eqx
    import jax

    import eqx_vit
    from eqx_vit.inputs import image_size_of

    model, state = eqx_vit.create(name, key=jax.random.key(0))
    size = image_size_of(model.config)[0]
    images = jax.random.normal(jax.random.key(1), (1, size, size, 3))
    run, untuned = eqx_vit.compiled(model, state, tune=True), eqx_vit.compiled(model, state)
    stacked = eqx.filter_jit(lambda model, state, images: eqx_vit.forward(model, state, images)[0])
    x = jax.random.normal(jax.random.key(2), (1024, 1024))
    product = jax.jit(lambda x: x @ x)
    model = eqx.nn.inference_mode(model)
    sides = {
        OURS: lambda: jax.block_until_ready(run(images)),
        UNTUNED: lambda: jax.block_until_ready(untuned(images)),
        STACKED: lambda: jax.block_until_ready(stacked(model, state, images)),
    }
    return sides, size, lambda: jax.block_until_ready(product(x))


def torch_model(name: str) -> Any:
    if name == "cvt-13":
        import transformers

        class Logits(__import__("torch").nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = transformers.CvtForImageClassification(transformers.CvtConfig(num_labels=1000))

            def forward(self, images: Any) -> Any:
                return self.model(images, return_dict=False)[0]

        return Logits().eval()
    import timm

    return timm.create_model(name).eval()


def their_sides(name: str, size: int, folder: Path, errors: dict[str, str]) -> dict[str, Callable[[], object]]:
    """The call of each that can run the model; what fails is written down."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, images = torch_model(name), torch.randn(1, 3, size, size)
    array = images.numpy()
    expected: list[Any] = []
    sides: dict[str, Callable[[], object]] = {}

    def add(side: str, make: Callable[[], Callable[[], Any]]) -> None:
        try:
            call = make()
            logits = np.asarray(call())
            expected.append(logits)
            gap = float(np.abs(logits - expected[0]).max())
            if gap > 1e-3:
                raise ValueError(f"its logits differ by {gap:.1e}")
            sides[side] = call
        except Exception as error:
            sentence = " ".join(str(error).split()).partition(". ")[0]  # what follows may be coloured advice
            errors[side] = f"{type(error).__name__}: {sentence}"[:200]

    def torch_call(call: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return call(images)

        return run

    def export() -> str:
        path = str(folder / "model.onnx")
        if not Path(path).exists():
            with torch.no_grad():
                torch.onnx.export(model, (images,), path, dynamo=True, optimize=True)
        return path

    def onnx() -> Callable[[], Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(export(), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {session.get_inputs()[0].name: array})[0]

    def openvino() -> Callable[[], Any]:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        request = openvino.Core().compile_model(export(), "CPU", settings).create_infer_request()
        return lambda: next(iter(request.infer([array]).values()))

    add(EAGER, lambda: torch_call(model))
    add(COMPILED, lambda: torch_call(torch.compile(model, dynamic=False)))
    add(ONNX, onnx)
    add(OPENVINO, openvino)
    return sides


def measure(name: str, runs: int, seconds: float) -> dict[str, Any]:
    """Processor and wall seconds of each side, in turn; after `seconds`, and five rounds, no new round starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    described, errors = describe(1), {}
    with tempfile.TemporaryDirectory() as folder:
        ours, size, product = our_sides(name)
        sides = ours | their_sides(name, size, Path(folder), errors)
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in [*sides, "matmul"]}
        for call in sides.values():
            call(), call()
        began = time.perf_counter()
        for turn in range(runs):
            if turn >= 5 and time.perf_counter() - began > seconds:
                break
            for side, call in (sides | {"matmul": product}).items():
                call()
                start, processor = time.perf_counter(), time.process_time()
                call()
                times[side].append((time.process_time() - processor, time.perf_counter() - start))
    ratios = {
        side: statistics.median(theirs[0] / our[0] for theirs, our in zip(times[side], times[OURS], strict=True))
        for side in sides
    }
    return {
        "machine": described | {"load": max(described["load"], os.getloadavg()[0])},
        "matmul_rate": 2 * 1024**3 / statistics.median(processor for processor, _ in times.pop("matmul")),
        "processor": {side: statistics.median(cpu for cpu, _ in values) for side, values in times.items()},
        "wall": {side: statistics.median(wall for _, wall in values) for side, values in times.items()},
        "times_faster": ratios,
        "rounds": turn,
        "errors": errors,
    }


def in_process(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    """The model's results: those of an earlier run, or new ones."""
    path = folder / f"{name}.json"
    if path.exists() and not options.again:
        return json.loads(path.read_text())
    command = [sys.executable, __file__, name, str(options.runs), str(options.seconds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{name} failed:\n{done.stderr[-1500:]}", file=sys.stderr, flush=True)
        return None
    found = json.loads(done.stdout.splitlines()[-1])
    found["machine"]["command"] = " ".join(["python", *sys.argv])
    path.write_text(json.dumps(found, indent=1))
    return found


def page(results: dict[str, dict[str, Any]]) -> str:
    """The tables, as the documentation has them."""
    machine = next(iter(results.values()))["machine"]
    machine = machine | {"load": max(found["machine"]["load"] for found in results.values())}
    rate = statistics.median(found["matmul_rate"] for found in results.values())

    def row(name: str, found: dict[str, Any], kind: str) -> list[str]:
        values = found[kind]
        return [name, *(f"{1000 * values[side]:.1f}" if side in values else "-" for side in SIDES)]

    def ratio_row(name: str, found: dict[str, Any]) -> list[str]:
        ratios = found["times_faster"]
        best = min((ratios[side] for side in (EAGER, COMPILED) if side in ratios), default=None)
        shown = [ratios.get(side) for side in SIDES[1:]]
        return [name, *("-" if value is None else f"{value:.2f}" for value in (*shown, best))]

    def mean_row() -> list[str]:
        best = [[found["times_faster"][side] for side in (EAGER, COMPILED) if side in found["times_faster"]]
                for found in results.values()]  # fmt: skip
        columns = [
            [f["times_faster"][side] for f in results.values() if side in f["times_faster"]] for side in SIDES[1:]
        ]
        columns.append([min(values) for values in best if values])
        return [
            "geometric mean",
            *(f"{statistics.geometric_mean(values):.2f}" if values else "-" for values in columns),
        ]

    errors = [f"- {name}, {side}: {text}" for name, found in results.items() for side, text in found["errors"].items()]
    tables = [markdown(["model", *SIDES], [row(name, found, kind) for name, found in results.items()])
              for kind in ("processor", "wall")]  # fmt: skip
    ratios = markdown(
        ["model", *SIDES[1:], "the faster of PyTorch's"],
        [*(ratio_row(name, found) for name, found in results.items()), mean_row()],
    )
    return (
        f"{heading(TITLE, machine, rate)}\n"
        "Times faster of `eqx_vit.compiled(..., tune=True)`, by processor time, median of rounds in turn; above 1 it "
        "is the faster:\n\n"
        f"{ratios}\nMilliseconds of processor time, median:\n\n{tables[0]}\n"
        f"Milliseconds of wall time, median:\n\n{tables[1]}"
        + ("\nNot run:\n\n" + "\n".join(errors) + "\n" if errors else "")
    )


def main(options: argparse.Namespace) -> None:
    """Measure what is asked, and write the page."""
    folder = options.out / "latency"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for name in options.architectures or MODELS:
        found = in_process(name, options, folder)
        if found is not None:
            results[name] = found
            ratios = ", ".join(f"{side} {value:.2f}" for side, value in found["times_faster"].items() if side != OURS)
            print(f"{name}: {1000 * found['processor'][OURS]:.1f} ms; times faster than {ratios}", flush=True)
            (folder / "latency.md").write_text(page(results))
    print(folder / "latency.md")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        measured = measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    print(json.dumps(measured))
