"""What a training step would take on many devices, of which there is none here: as the compiler sees it.

    python tests/benchmarks/scaling.py                       # 8, 64 and 256 devices, half an hour
    python tests/benchmarks/scaling.py 8 --preset vit_large_patch16_224 --fsdp 1 4 8

The step of `eqx-vit train` (AdamW, moving average) is lowered and compiled for so many simulated devices, and none is
run. Its program is read: the bytes that a device holds, the multiplications, and the bytes of each collective; what is
in a loop counts as often as the loop goes round. Compiled for CPUs, so that the temporary memory is theirs: without a
fused attention, its matrices are kept.
"""

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

PRESETS = ("vit_base_patch16_224", "vit_large_patch16_224", "vit_giant_patch14_224", "twins_svt_large")
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
WIDTHS = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
# Published for an H100 SXM: dense bfloat16, NVLink a direction; and for a machine of eight, a 400 Gb/s adapter each,
# all of which the rings of a collective use that spans whole machines.
PEAK_FLOPS, NVLINK, NETWORK = 989e12, 450e9, 8 * 50e9
HEADINGS = (
    "preset", "devices", "mesh", "batch a device", "state, GiB", "temporary, GiB", "TFLOP", *COLLECTIVES[:3], "other",
    "compute, ms", "links, ms",
)  # fmt: skip


class Instruction(NamedTuple):
    """A line of HLO: the name, the type of the result, the operation, and the rest of the line."""

    name: str
    result: str
    operation: str
    rest: str


def read_program(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(the computations of an HLO text, the name of the one that is the program)."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if (head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)) and not line.startswith(" "):
            computations[head[2]] = []
            entry = head[2] if head[1] else entry
            current = computations[head[2]]
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", line):
            current.append(Instruction(*found.groups()))
    return computations, entry


def visit(
    computations: dict[str, list[Instruction]], name: str, times: int = 1
) -> Iterator[tuple[Instruction, str, int]]:
    """Each instruction that is executed, the computation that it is in, and how often it is."""
    for instruction in computations[name]:
        yield instruction, name, times
        rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.rest)
        for called in re.findall(
            r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", instruction.rest
        ):
            if instruction.operation not in ("reduce", "all-reduce", "reduce-scatter", "sort", "scatter", "map"):
                yield from visit(computations, called, times * (int(rounds[1]) if rounds else 1))


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of each array of a type."""
    return [
        (dtype, tuple(map(int, numbers.split(","))) if numbers else ())
        for dtype, numbers in re.findall(r"(\w+)\[([\d,]*)\]", text)
    ]


def count_bytes(text: str) -> int:
    return sum(math.prod(shape) * WIDTHS.get(dtype, 1) for dtype, shape in shapes(text))


def count_flops(instruction: Instruction, computations: dict[str, list[Instruction]], name: str) -> int:
    """Twice the multiplications of a matrix product or a convolution."""
    types = {other.name: other.result for other in computations[name]}
    operands = [types.get(operand, "") for operand in re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])]
    size = math.prod(shapes(instruction.result)[0][1])
    if instruction.operation == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        left = shapes(operands[0])[0][1]
        return 2 * size * math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis) if contracted else 0
    kernel = shapes(operands[1])[0][1]
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
    return 2 * size * math.prod(kernel) // kernel[labels[1].index("o")] if labels else 0


def count_group(rest: str, devices: int) -> int:
    """How many devices take part in a collective together: by a list, by a shape, or by axes of the mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if shaped := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(shaped[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\].*?\{('.*?)\}", rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", named[2]))
    return devices


def wire_bytes(operation: str, size: int, group: int) -> float:
    """What a device sends by the ring algorithm; `size` is of the result."""
    share = (group - 1) / group
    return size * {"all-reduce": 2 * share, "reduce-scatter": group * share, "collective-permute": 1.0}.get(
        operation, share
    )


def measure(preset: str, data: int, fsdp: int, batch: int, precision: str) -> dict[str, float]:
    """The figures of a step; in a process with data * fsdp devices."""
    import jax
    import jax.numpy as jnp

    import eqx_vit
    from eqx_vit.layers.config import pair
    from eqx_vit.registry import find_preset
    from eqx_vit.train.augment import InputSpec
    from eqx_vit.train.optimiser import make_optimiser
    from eqx_vit.train.placement import Placement
    from eqx_vit.train.settings import Settings
    from eqx_vit.train.step import initial_state, make_train_step

    config = find_preset(preset)
    settings = Settings(model=preset, changes={}, epochs=1, learning_rate=1e-3, precision=precision)
    optimiser = make_optimiser(config, settings, 1000)
    mesh = eqx_vit.make_mesh(data=data, fsdp=fsdp)
    placement = Placement(config, mesh)
    size = pair(getattr(config, "image_size", None) or 224)
    step = make_train_step(config, optimiser, settings, InputSpec(size, 3, (0.5,) * 3, (0.5,) * 3), keep=placement.keep)
    shape = jax.eval_shape(functools.partial(initial_state, config, optimiser, 0))
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shape,
        placement._shardings(mesh, shape),
    )
    over_all = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    total = batch * data * fsdp
    images = jax.ShapeDtypeStruct((total, *size, 3), jnp.uint8, sharding=over_all)
    labels = jax.ShapeDtypeStruct((total,), jnp.int32, sharding=over_all)
    with placement.in_force():
        compiled = step.compiled.lower(state, images, labels, None).compile()
    memory = compiled.memory_analysis()
    computations, entry = read_program(compiled.as_text())
    figures: Counter[str] = Counter()
    for instruction, name, times in visit(computations, entry):
        operation = instruction.operation.removesuffix("-start")
        if operation in ("dot", "convolution"):
            figures["flops"] += times * count_flops(instruction, computations, name)
        elif operation in COLLECTIVES:
            group = count_group(instruction.rest, data * fsdp)
            own = count_bytes(instruction.result)
            figures[operation] += times * own
            # Within one machine of eight where the group is that small.
            figures["near" if group <= 8 else "far"] += round(times * wire_bytes(operation, own, group))
    return dict(figures) | {"state": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes}


def to_row(preset: str, data: int, fsdp: int, batch: int, figures: dict[str, float]) -> tuple[str, ...]:
    gib, mib = 2**30, 2**20
    other = sum(figures.get(name, 0) for name in COLLECTIVES[3:])
    collectives = [figures.get(name, 0) for name in COLLECTIVES[:3]]
    compute = figures["flops"] / PEAK_FLOPS
    links = figures.get("near", 0) / NVLINK + figures.get("far", 0) / NETWORK
    return (
        preset, str(data * fsdp), f"data={data}, fsdp={fsdp}", str(batch), f"{figures['state'] / gib:.2f}",
        f"{figures['temporary'] / gib:.1f}", f"{figures['flops'] / 1e12:.1f}",
        *(f"{size / mib:,.0f}" for size in (*collectives, other)), f"{1e3 * compute:.0f}", f"{1e3 * links:.0f}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", type=int, nargs="*", default=[8, 64, 256])
    parser.add_argument("--preset", nargs="+", default=PRESETS)
    parser.add_argument("--fsdp", type=int, nargs="+", default=[8], help="devices that share the parameters")
    parser.add_argument("--batch", type=int, default=64, help="images a device")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--one", nargs=3, metavar=("PRESET", "DATA", "FSDP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        preset, data, fsdp = options.one[0], int(options.one[1]), int(options.one[2])
        print(json.dumps(measure(preset, data, fsdp, options.batch, options.precision)))
        return
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    for preset in options.preset:
        for devices in options.devices:
            for fsdp in options.fsdp:
                command = [sys.executable, __file__, "--one", preset, str(devices // fsdp), str(fsdp)]
                command += ["--batch", str(options.batch), "--precision", options.precision]
                flags = f"--xla_force_host_platform_device_count={devices}"
                environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                figures = json.loads(done.stdout.splitlines()[-1])
                row = to_row(preset, devices // fsdp, fsdp, options.batch, figures)
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
