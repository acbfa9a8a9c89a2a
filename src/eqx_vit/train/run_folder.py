"""A run and its folder: starting one, reading it back, and the records that it keeps."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eqx_vit.files import write_atomically
from eqx_vit.registry import AnyConfig, config_from_json, config_to_json
from eqx_vit.train.augment import InputSpec
from eqx_vit.train.config import Settings, make_model_config, make_settings
from eqx_vit.train.data import DIGITS, Data, channel_statistics, find_classes, load_data
from eqx_vit.train.progress import ProgressLog

RUNS = Path("runs")  # the parent of folders without a name of their own
CONFIG, METRICS = "config.json", "metrics.jsonl"
BEST, LAST, TRAINING_STATE = "best.safetensors", "last.safetensors", "training_state.safetensors"
CURVES, SAMPLES = "curves.png", "samples.png"


class Run(NamedTuple):
    """What `config.json` holds: enough to continue, evaluate and predict.

    **Attributes:** `settings`; `config` of the model; `input_spec`, how images are prepared for it; `source_size`,
    (height, width) of the images before that; `classes`; `fingerprint` of the data.
    """

    settings: Settings
    config: AnyConfig
    input_spec: InputSpec
    source_size: tuple[int, int]
    classes: tuple[str, ...]
    fingerprint: str


class EpochMetrics(NamedTuple):
    """A line of `metrics.jsonl`: `step` is the number of steps done, `seconds` the time since training began."""

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float

    @property
    def score(self) -> tuple[float, float]:
        """What makes an epoch the best: validation accuracy, and among equals the smaller loss."""
        return self.validation_accuracy, -self.validation_loss


class FinalMetrics(NamedTuple):
    """The last line of `metrics.jsonl`: how well the best checkpoint, of epoch `epoch`, does on the test images."""

    checkpoint: str
    epoch: int
    test_loss: float
    test_accuracy: float


def start_run(given: Mapping[str, object], log: ProgressLog) -> tuple[Run, Data]:
    """A run with the given settings (see `Settings`), the others at the defaults that suit the model; not yet written.

    **Raises:** `ValueError` for a wrong setting, model, or image folder.
    """
    settings = make_settings(given)
    names = find_classes(Path(settings.data)) if settings.data else DIGITS
    config, size = make_model_config(settings.model, settings.changes, settings.image_size, len(names))
    data = load_data(settings.data, size, config.channels, log)
    spec = InputSpec(size, config.channels, *channel_statistics(data))
    _, height, width, _ = data.images.shape
    return Run(settings, config, spec, (height, width), data.classes, data.fingerprint), data


def resume_run(folder: Path, given: Mapping[str, object], log: ProgressLog) -> tuple[Run, Data]:
    """The run in a folder, with its data loaded again.

    **Raises:** `ValueError` for settings in `given` that differ from the run's own, or data that have changed since.
    """
    run = read_run(folder)
    # A run goes on as it began: with other settings, none would describe it.
    own = json.loads(json.dumps(dataclasses.asdict(run.settings)))
    wanted = json.loads(json.dumps(given))
    differing = [f"{name} is {own[name]!r}, not {value!r}" for name, value in wanted.items() if own[name] != value]
    if differing:
        raise ValueError(f"a resumed run keeps its settings, these differ: {'; '.join(differing)}")
    return run, reload_data(run, log)


def reload_data(run: Run, log: ProgressLog) -> Data:
    """The data that a run was started with.

    **Raises:** `ValueError` where they have changed since, or are gone.
    """
    data = load_data(run.settings.data, run.source_size, run.input_spec.channels, log)
    if data.fingerprint != run.fingerprint:
        source = run.settings.data or "scikit-learn's digits"
        raise ValueError(f"the images of {source} have changed since the run was started: start a new run")
    return data


def next_folder(model_name: str) -> Path:
    """The first free numbered folder in `runs`, such as `runs/003-levit_128s`."""
    numbers = [int(match[1]) for path in RUNS.glob("*") if (match := re.match(r"(\d+)-", path.name))]
    return RUNS / f"{max(numbers, default=0) + 1:03d}-{model_name}"


def newest_folder() -> Path:
    """The folder in `runs` that was started last.

    **Raises:** `ValueError` where there is none.
    """
    configs = sorted(RUNS.glob(f"*/{CONFIG}"), key=lambda path: (path.stat().st_mtime, path.parent.name))
    if not configs:
        raise ValueError(f"there is no run to resume in {RUNS}/: give its folder, --resume RUN")
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
        "input_spec": run.input_spec._asdict(),
        "source_size": run.source_size,
        "classes": run.classes,
        "fingerprint": run.fingerprint,
    }
    write_atomically(folder / CONFIG, (json.dumps(plain, indent=2) + "\n").encode())


def read_run(folder: Path) -> Run:
    """The run in a folder.

    **Raises:** `ValueError` for a folder without a run, or one whose config.json is damaged.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}")
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no {CONFIG}")
    try:
        plain = json.loads(path.read_text())
        spec = plain["input_spec"]
        return Run(
            Settings(**plain["settings"]),
            config_from_json(plain["model"]),
            InputSpec(tuple(spec["size"]), spec["channels"], tuple(spec["mean"]), tuple(spec["std"])),
            tuple(plain["source_size"]),
            tuple(plain["classes"]),
            plain["fingerprint"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_metrics(folder: Path, lines: Sequence[EpochMetrics | FinalMetrics]) -> None:
    """Write metrics.jsonl."""
    write_atomically(folder / METRICS, "".join(json.dumps(line._asdict()) + "\n" for line in lines).encode())
