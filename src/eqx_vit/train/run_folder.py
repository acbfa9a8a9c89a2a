"""A run and its folder: claiming one, reading it back, and the records that it keeps."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from eqx_vit.files import write_atomically
from eqx_vit.registry import AnyConfig, config_from_json, config_to_json
from eqx_vit.train.augment import InputSpec
from eqx_vit.train.settings import Settings

RUNS = Path("runs")  # the parent of folders without a name of their own
CONFIG, METRICS = "config.json", "metrics.jsonl"
BEST, LAST, TRAINING_STATE = "best.safetensors", "last.safetensors", "training_state.safetensors"
CURVES, SAMPLES = "curves.png", "samples.png"
LOCK = ".lock"


class Member(NamedTuple):
    """In what one of several runs that are trained as one differs from the others; drop_path None: in nothing."""

    seed: int
    learning_rate: float
    weight_decay: float
    drop_path: float | None = None


class Run(NamedTuple):
    """What `config.json` holds: enough to continue, evaluate and predict.

    **Attributes:** `settings`; `config` of the model; `input_spec`, how images are prepared for it; `source_size`,
    (height, width) of the images before that; `classes`; `fingerprint` and `split` of the data; `members`, where
    several are trained as one.
    """

    settings: Settings
    config: AnyConfig
    input_spec: InputSpec
    source_size: tuple[int, int]
    classes: tuple[str, ...]
    fingerprint: str
    split: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()


class EpochMetrics(NamedTuple):
    """A line of `metrics.jsonl`.

    **Attributes:** `step`, the number of steps done; `seconds` since training began; of the epoch's last step
    `learning_rate` and `gradient_norm`, before it is clipped; of the training part of the epoch `images_per_second` and
    `data_wait`, the share of its time in which it waited for images; `memory_gib`, the most that the process (on an
    accelerator: the device) has held, in 2^30 bytes.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    gradient_norm: float | None = None
    images_per_second: float | None = None
    data_wait: float | None = None
    memory_gib: float | None = None

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


@contextmanager
def claim_folder(output: Path | None, run: Run) -> Iterator[Path]:
    """A folder for a new run, locked, with its config.json: `output`, or the next numbered one in `runs`, such as
    `runs/003-levit_128s`. Where the run fails before there is anything to go on from, it is removed again.

    **Raises:** `ValueError` where `output` holds a run or anything else.
    """
    made = output is None or not output.exists()
    folder = output or _make_numbered_folder(run.settings.model)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        check_free(folder)
        try:
            write_run(folder, run)
            yield folder
        except Exception:
            if not (folder / TRAINING_STATE).exists():
                _remove_unstarted(folder, made)
            raise


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Within it, no other process can have this lock of the folder. It ends with the process, however that ends.

    **Raises:** `ValueError` where another process has it.
    """
    with open(folder / LOCK, "ab") as file:
        if not _try_lock(file):
            raise ValueError(f"another process is training the run in {folder}: wait for it, or start a new run")
        for unfinished in folder.glob(".*.tmp"):  # left by a process that was killed
            unfinished.unlink(missing_ok=True)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: BinaryIO) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # some file systems of clusters have no locks
            return True
        return True


def _make_numbered_folder(model_name: str) -> Path:
    RUNS.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(match[1]) for path in RUNS.glob("*") if (match := re.match(r"(\d+)-", path.name))]
        folder = RUNS / f"{max(numbers, default=0) + 1:03d}-{model_name}"
        with suppress(FileExistsError):  # another run has made it since
            folder.mkdir()
            return folder


def _remove_unstarted(folder: Path, made: bool) -> None:
    """Remove what a new run has written so far, and the folder itself if it was `made` for the run."""
    (folder / CONFIG).unlink(missing_ok=True)
    with suppress(OSError):  # Windows keeps what is open; a folder with anything else in it stays
        (folder / LOCK).unlink()
        if made:
            folder.rmdir()


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
    # A run killed before it wrote its config leaves nothing but its lock and an unfinished file.
    if folder.exists() and any(path.name != LOCK and path.suffix != ".tmp" for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: choose another --output")


def check_seen(folder: Path) -> None:
    """Raise `ValueError` where this process does not see the run that the first one has written there."""
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder.resolve()} is not there for all processes: give an --output that every one of them sees"
        )


def write_run(folder: Path, run: Run) -> None:
    """Write config.json, in a new folder where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "settings": dataclasses.asdict(run.settings),
        "model": config_to_json(run.config),
        "input_spec": run.input_spec._asdict(),
        "source_size": run.source_size,
        "classes": run.classes,
        "fingerprint": run.fingerprint,
        "split": run.split,
        "members": [member._asdict() for member in run.members],
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
            tuple(plain.get("split", ())),
            tuple(Member(**member) for member in plain.get("members", ())),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def epoch_name(epoch: int) -> str:
    """The file of the model after an epoch, where the last ones are kept."""
    return f"epoch_{epoch:04d}.safetensors"


def remove_epochs_before(folder: Path, epoch: int) -> None:
    """Remove the models of earlier epochs."""
    for path in folder.glob("epoch_*.safetensors"):
        number = path.stem.removeprefix("epoch_")
        if number.isdecimal() and int(number) < epoch:
            path.unlink(missing_ok=True)


def write_metrics(folder: Path, lines: Sequence[EpochMetrics | FinalMetrics]) -> None:
    """Write metrics.jsonl."""
    write_lines(folder, [line._asdict() for line in lines])


def write_lines(folder: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Write metrics.jsonl, one object a line."""
    write_atomically(folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines).encode())
