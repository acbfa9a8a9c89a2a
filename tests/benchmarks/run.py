"""eqx_vit beside its peers, architecture by architecture: time to first result, forward, training step, memory.

python tests/benchmarks/run.py --quick          eager peers, forward at batch 1, the seed's calls: about 4 minutes
python tests/benchmarks/run.py                  everything: hours; run it again and it goes on where it was
python tests/benchmarks/run.py vit cait         these two alone
python tests/benchmarks/run.py --eager          everything but compiled PyTorch: half the time
python tests/benchmarks/run.py --latency        one image on one thread, beside PyTorch, ONNX Runtime and OpenVINO
python tests/benchmarks/run.py --growth         ViT-S over image size, depth and batch, beside timm
python tests/benchmarks/run.py --gpu            forward and training in bfloat16 on a GPU, beside compiled timm
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from calls import CALLS, SETTINGS
from machine import describe
from report import HEAD, chart, page, table

HERE = Path(__file__).parent
KINDS = ("latency", "growth", "gpu")  # each is a file beside this one


def main() -> None:
    options = read_options()
    if options.kind is not None:
        importlib.import_module(options.kind).main(options)
        return
    folder = options.out / ("quick" if options.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    settings = SETTINGS[:1] if options.quick and options.setting is None else [options.setting or "all"]
    for architecture in options.architectures or CALLS:
        for setting in SETTINGS if settings == ["all"] else settings:
            path = folder / f"{architecture}-{setting}.json"
            if options.again or not path.exists():
                found = measure(architecture, setting, options)
                if found is None:
                    continue
                path.write_text(json.dumps(found, indent=1))
            results[path.stem] = json.loads(path.read_text())
            print(table({path.stem: results[path.stem]}).removeprefix(HEAD).lstrip(), flush=True)
    (folder / "all.json").write_text(json.dumps(results, indent=1))
    if not results:
        return
    chart(results, folder / "chart.png")
    loads = [found["load"] for found in results.values()]
    (folder / "table.md").write_text(page(results, describe(options.threads) | {"load": max(loads)}))
    print(f"\n{table(results)}\n\n{folder}: all.json, chart.png, table.md")


def measure(architecture: str, setting: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """The pair in one process, then, unless quick, each side alone in a fresh one."""
    found = in_process(architecture, setting, options)
    if found is not None and not options.quick:
        found["cold"] = {}
        for side in found["parameters"]:
            extra = ["--side", side, "--image-size", str(found["image_size"])]
            alone = in_process(architecture, setting, options, *extra)
            found["cold"] |= {side: alone} if alone else {}
    return found


def in_process(architecture: str, setting: str, options: argparse.Namespace, *extra: str) -> dict[str, Any] | None:
    command = [sys.executable, str(HERE / "pair.py"), architecture, setting, *extra, "--dtype", options.dtype]
    command += ["--threads", str(options.threads), "--runs", str(options.runs), "--seconds", str(options.seconds)]
    command += ["--quick"] if options.quick else []
    command += ["--eager"] if options.eager or options.quick else []
    # Two frameworks share the accelerator's memory: neither may take it all.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "OMP_NUM_THREADS": str(options.threads)}
    # From cold means that nothing compiled before is found again.
    with tempfile.TemporaryDirectory() as empty:
        environment["TORCHINDUCTOR_CACHE_DIR"] = empty
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{architecture}-{setting} {' '.join(extra)} failed:\n{done.stderr[-1500:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="architecture", help=f"of: {', '.join(CALLS)}; or a preset")
    parser.add_argument("--quick", action="store_true", help="eager peers, forward at batch 1")
    parser.add_argument("--eager", action="store_true", help="no compiled PyTorch, whose compiler takes half the time")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help="see above")
    parser.add_argument("--setting", choices=SETTINGS, help="only the seed's call, or only the preset")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for every side alike")
    parser.add_argument("--runs", type=int, default=20, help="rounds of each measure, at most")
    parser.add_argument("--seconds", type=float, help="after these a measure starts no new round (60; quick: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="results are kept here, and resumed")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    options = parser.parse_args()
    unknown = [] if options.kind else [name for name in options.architectures if name not in CALLS]
    if unknown:
        parser.error(f"no architecture {', '.join(unknown)}: one of {', '.join(CALLS)}")
    options.seconds = options.seconds or (1.0 if options.quick else 20.0 if options.kind else 60.0)
    return options


if __name__ == "__main__":
    main()
