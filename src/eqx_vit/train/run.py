"""The folder of a run: where it lies, what its config.json says, and whether it may be continued."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from eqx_vit.create import config_from_json, config_to_json
from eqx_vit.files import write_atomically
from eqx_vit.train.pixels import Pixels
from eqx_vit.train.settings import Settings

HOME = Path("runs")  # of runs without a name
CONFIG, METRICS = "config.json", "metrics.jsonl"
BEST, LAST, TRAINING_STATE = "best.safetensors", "last.safetensors", "training_state.safetensors"
CURVES, SAMPLES = "curves.png", "samples.png"


class Run(NamedTuple):
    """What `config.json` holds: enough to continue, evaluate and predict.

    **Attributes:** `settings`; `config` of the model; `pixels`, how images are prepared; `stored`, (height, width) that
    images are kept in before that; `classes`; `fingerprint` of the data.
    """

    settings: Settings
    config: Any
    pixels: Pixels
    stored: tuple[int, int]
    classes: tuple[str, ...]
    fingerprint: str


def new_folder(model_name: str) -> Path:
    """The first free numbered folder in `runs`, such as `runs/003-levit_128s`."""
    numbers = [int(match[1]) for path in HOME.glob("*") if (match := re.match(r"(\d+)-", path.name))]
    return HOME / f"{max(numbers, default=0) + 1:03d}-{model_name}"


def newest_folder() -> Path:
    """The folder in `runs` that was started last.

    **Raises:** `ValueError` where there is none.
    """
    configs = sorted(HOME.glob(f"*/{CONFIG}"), key=lambda path: (path.stat().st_mtime, path.parent.name))
    if not configs:
        raise ValueError(f"there is no run to resume in {HOME}/: give its folder, --resume RUN")
    return configs[-1].parent


def check_free(folder: Path) -> None:
    """Raise `ValueError` unless a new run may be written there: no run, nor anything else, is ever overwritten."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: --output takes a folder for the run")
    if (folder / CONFIG).exists():
        raise ValueError(f"{folder} already holds a run: continue it with --resume, or choose another --output")
    # A run killed before it wrote its config leaves nothing but an unfinished file.
    if folder.exists() and any(not path.name.endswith(".tmp") for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: choose another --output")


def write_run(folder: Path, run: Run) -> None:
    """Make the folder, with its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "settings": dataclasses.asdict(run.settings),
        "model": config_to_json(run.config),
        "pixels": run.pixels._asdict(),
        "stored": run.stored,
        "classes": run.classes,
        "fingerprint": run.fingerprint,
    }
    write_atomically(folder / CONFIG, (json.dumps(plain, indent=2) + "\n").encode())


def read_run(folder: Path) -> Run:
    """The run in a folder.

    **Raises:** `ValueError` for a folder that holds none, or whose config.json is damaged.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}")
    if not path.is_file():
        raise ValueError(f"{folder} is no run folder: it has no {CONFIG}")
    try:
        plain = json.loads(path.read_text())
        pixels = plain["pixels"]
        return Run(
            Settings(**plain["settings"]),
            config_from_json(plain["model"]),
            Pixels(tuple(pixels["size"]), pixels["channels"], tuple(pixels["mean"]), tuple(pixels["std"])),
            tuple(plain["stored"]),
            tuple(plain["classes"]),
            plain["fingerprint"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_same(run: Run, given: dict[str, Any]) -> None:
    """Raise `ValueError` that names every setting in `given` that differs from the run's own.

    A run goes on as it began: other settings would make it a run that no settings describe.
    """
    own = json.loads(json.dumps(dataclasses.asdict(run.settings)))
    asked = json.loads(json.dumps(given))
    differing = [f"{name} is {own[name]!r}, not {value!r}" for name, value in asked.items() if own[name] != value]
    if differing:
        raise ValueError(f"a resumed run keeps its settings, these differ: {'; '.join(differing)}")


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl, a line for each entry."""
    write_atomically(folder / METRICS, "".join(json.dumps(entry) + "\n" for entry in history).encode())
