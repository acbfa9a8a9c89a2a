"""What a table says of the machine that it was measured on, and how a table is written."""

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

LIBRARIES = ("jax", "jaxlib", "torch", "timm", "transformers", "vit-pytorch", "onnxruntime", "openvino", "flax")


def describe(threads: int) -> dict[str, Any]:
    """Date, processor, versions, command."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "versions": {"Python": platform.python_version()} | versions(),
        "command": " ".join(["python", *sys.argv]),
    }


def processor() -> str:
    """Its name; family and model beside it where the name says little."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    widest = next((set_ for set_ in ("avx512f", "avx2") if set_ in found.get("flags", "")), "no AVX2")
    return (
        f"{found.get('model name', platform.machine())} (family {found.get('cpu family')}, model {found.get('model')}, "
        f"{widest}), {os.cpu_count()} cores"
    )


def versions() -> dict[str, str]:
    """Those of the libraries that are installed."""
    known: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known


def heading(title: str, described: dict[str, Any], rate: float | None = None) -> str:
    """The title of a page, and the lines above its tables."""
    listed = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    matmul = f" The matmul rate measured in the same rounds: {rate / 1e9:.0f} GFLOP/s." if rate else ""
    return (
        f"# {title}, JAX {described['versions']['jax']}\n\n"
        f"Measured on {described['date']}, {described['processor']}, threads: {described['threads']}; load of the "
        f"machine at the start {described['load']:.1f}.{matmul} {listed}.\n\n```\n{described['command']}\n```\n"
    )


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
