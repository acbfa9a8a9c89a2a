"""One architecture at one setting, in a process of its own: the sides in turn, or one side alone from cold."""

import argparse
import contextlib
import importlib
import json
import os
import resource
import statistics
import sys
import time
from typing import Any

START = time.perf_counter()  # before any framework is imported

from calls import CALLS, peer_library
from sides import Measured, Side


def make_side(name: str, options: argparse.Namespace) -> Side:
    """The side `eqx_vit`, `flax`, or `<library>` with ` compiled` behind it or not."""
    if name in ("eqx_vit", "flax"):
        side_jax = importlib.import_module("side_jax")
        return side_jax.SIDES[name](options.architecture, options.setting, options.dtype)
    torch, library, compiled = importlib.import_module("torch"), name.split()[0], name.endswith("compiled")
    torch.set_num_threads(options.threads)
    make = importlib.import_module("side_torch").torch_side
    return make(options.architecture, options.setting, library, options.image_size, options.dtype, compiled)


def names_of(options: argparse.Namespace) -> list[str]:
    """The sides of this pair, ours first."""
    names, library = ["eqx_vit"], peer_library(options.architecture, options.setting)
    if library:
        names += [library] if options.eager else [library, f"{library} compiled"]
    return names if options.quick or options.architecture != "vit" else [*names, "flax"]


def in_turn(calls: dict[str, Measured], runs: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, A B A B; after `seconds`, and three rounds, no new round starts."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(runs):
        if turn >= 3 and time.perf_counter() - began > seconds:
            break
        for name, call in calls.items():
            call()  # not timed: as in a loop, its own memory and caches are warm and the other's threads at rest
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def quartiles(values: list[float]) -> list[float]:
    """(first quartile, median, third quartile)."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Every measure of every side, the machine's matmul rate with them."""
    side_jax = importlib.import_module("side_jax")
    options.image_size = side_jax.image_size(options.architecture, options.setting)
    sides, errors = {}, {}
    for name in names_of(options):
        with noted(errors, name):
            sides[name] = make_side(name, options)
    gpu = side_jax.jax.default_backend() == "gpu"
    batches = [1] if options.quick else [1, 64, 256] if gpu else [1, 8]
    measures = [("forward", batch) for batch in batches]
    if not options.quick:
        measures += [("training", batch) for batch in (batches[1:] if gpu else batches[-1:])]
    order = 8192 if gpu else 2048
    work = {kind: side_jax.work(options.architecture, options.setting, kind) for kind in dict(measures)}
    rows = [measured(sides, errors, measure, order, work[measure[0]] * measure[1], options) for measure in measures]
    return {
        "image_size": options.image_size,
        "device": str(side_jax.jax.devices()[0].device_kind),
        "load": os.getloadavg()[0],
        "parameters": {name: side.parameters for name, side in sides.items()},
        "multiply_adds": work,
        "measures": rows,
        "errors": errors,
    }


def measured(
    sides: dict[str, Side],
    errors: dict[str, str],
    measure: tuple[str, int],
    order: int,
    work: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    kind, batch = measure
    calls = {}
    for name, side in sides.items():
        with noted(errors, f"{name}, {kind} {batch}"):
            call = getattr(side, kind)(batch)
            call(), call()  # warm-up
            calls[name] = call
    makers = {"torch": next((side for name, side in sides.items() if name not in ("eqx_vit", "flax")), None)}
    makers["xla"] = sides.get("eqx_vit")
    matmuls = {f"matmul {name}": side.matmul(order) for name, side in makers.items() if side}
    for call in matmuls.values():
        call()
    times = in_turn(calls | matmuls, options.runs, options.seconds)
    # The rate of a round is that of the faster library: what the machine gives at that moment.
    rates = [2 * order**3 / min(both) for both in zip(*(times.pop(name) for name in matmuls), strict=True)]
    base = times.get("eqx_vit", [])
    return {
        "measure": f"{kind} {batch}",
        "runs": len(rates),
        "matmul_rate": quartiles(rates),
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "share_of_matmul_rate": {
            name: statistics.median(2 * work / value / rate for value, rate in zip(values, rates, strict=True))
            for name, values in times.items()
        },
        "times_faster_than": {
            name: quartiles([theirs / our for theirs, our in zip(values, base, strict=True)])
            for name, values in times.items()
            if base and name != "eqx_vit"
        },
    }


@contextlib.contextmanager
def noted(errors: dict[str, str], name: str) -> Any:
    """What fails in one side is written down, and the others go on."""
    try:
        yield
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"[:300]


def cold(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side alone: seconds to its first logits and first training step, and the peak of memory."""
    first = make_side(name, options)
    first.forward(1)()
    logits = time.perf_counter() - START
    step = first.training(options.batch)
    start = time.perf_counter()
    step()
    compiled = time.perf_counter() - start
    step()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = first.peak_memory() or resident
    return {"first_result": logits, "first_training_step": compiled, "peak_memory": peak}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture")
    parser.add_argument("setting")
    parser.add_argument("--preset", help="another preset of the architecture than that of calls.py")
    parser.add_argument("--side", help="from cold, this side alone")
    parser.add_argument("--image-size", type=int, dest="image_size")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if options.preset:
        CALLS[options.architecture] = CALLS[options.architecture]._replace(preset=options.preset)
    if hasattr(os, "sched_setaffinity"):  # what XLA's CPU backend goes by; PyTorch is told
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    def results() -> dict[str, Any]:
        return cold(options.side, options) if options.side else compared(options)

    with contextlib.redirect_stdout(sys.stderr):
        found = results()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
