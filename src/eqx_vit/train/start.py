"""From what the user asked for to a run: data, model config and settings that fit each other."""

from pathlib import Path
from typing import Any

import numpy as np

from eqx_vit.train.data import Data, class_names, digits, image_folder
from eqx_vit.train.models import SMALL, model_config
from eqx_vit.train.pixels import Pixels
from eqx_vit.train.report import Report
from eqx_vit.train.run import Run, check_same, read_run
from eqx_vit.train.settings import Settings

# Presets see hundreds of times the pixels of a digit: fewer epochs keep them within minutes.
SMALL_DEFAULTS: dict[str, Any] = {"epochs": 40, "learning_rate": 2e-3}
PRESET_DEFAULTS: dict[str, Any] = {"epochs": 5, "learning_rate": 5e-4}


def new_run(given: dict[str, Any], report: Report) -> tuple[Run, Data]:
    """A run with the given settings (see `Settings`), the others at the defaults that suit the model.

    **Raises:** `ValueError` for a wrong setting, model, or image folder.
    """
    model = given.get("model", "photos" if "data" in given else "digits")
    defaults = SMALL_DEFAULTS if model in SMALL else PRESET_DEFAULTS
    settings = Settings(**({"changes": {}} | defaults | given | {"model": model}))
    names = class_names(Path(settings.data)) if settings.data else [str(digit) for digit in range(10)]
    config, size = model_config(model, settings.changes, settings.image_size, len(names))
    data = load_data(settings, size, config.channels, report)
    mean, std = pixel_statistics(data)
    stored = (data.images.shape[1], data.images.shape[2])
    return Run(settings, config, Pixels(size, config.channels, mean, std), stored, data.classes, data.fingerprint), data


def resumed_run(folder: Path, given: dict[str, Any], report: Report) -> tuple[Run, Data]:
    """The run in a folder, with its data read again.

    **Raises:** `ValueError` for settings in `given` that differ from the run's own, or data that have changed since.
    """
    run = read_run(folder)
    check_same(run, given)
    return run, data_of(run, report)


def data_of(run: Run, report: Report) -> Data:
    """The data that a run was started with.

    **Raises:** `ValueError` where they have changed since, or are gone.
    """
    data = load_data(run.settings, run.stored, run.pixels.channels, report)
    if data.fingerprint != run.fingerprint:
        source = run.settings.data or "scikit-learn's digits"
        raise ValueError(f"the images of {source} have changed since the run was started: start a new run")
    return data


def load_data(settings: Settings, size: tuple[int, int], channels: int, report: Report) -> Data:
    """The digits as they are, or the image folder at the model's size and channels; unreadable files are reported."""
    if settings.data is None:
        return digits()
    data = image_folder(Path(settings.data), size, channels, report.reading)
    if data.unreadable:
        total = len(data.labels) + len(data.unreadable)
        report.say(f"{len(data.unreadable)} of {total} files left out:")
        for line in data.unreadable[:10]:
            report.say(f"  {line}")
        if len(data.unreadable) > 10:
            report.say(f"  ... and {len(data.unreadable) - 10} more")
    return data


def pixel_statistics(data: Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel of the training images, in units of 0 to 1."""
    channels = data.images.shape[-1]
    counts = np.stack([np.bincount(data.images[data.train, ..., c].ravel(), minlength=256) for c in range(channels)])
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    # Images of one flat colour have no spread; 1/255 is the smallest that pixels can show.
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 255.0**-2)).tolist())
