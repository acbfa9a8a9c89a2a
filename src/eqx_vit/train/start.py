"""Starting a run, and going on with one: its settings, its model and its data."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from eqx_vit.train.augment import InputSpec
from eqx_vit.train.config import make_model_config
from eqx_vit.train.data import DIGITS, Data, View, channel_statistics, load_data
from eqx_vit.train.image_folder import find_classes
from eqx_vit.train.initial_weights import find_statistics
from eqx_vit.train.members import make_members
from eqx_vit.train.processes import is_first
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.run_folder import Member, Run, read_run, write_run
from eqx_vit.train.settings import Settings, make_settings


def start_run(
    given: Mapping[str, object],
    log: ProgressLog,
    seeds: int | None = None,
    lists: Mapping[str, tuple[float, ...]] | None = None,
) -> tuple[Run, Data]:
    """A run with the given settings (see `Settings`), the others at the defaults that suit the model; not yet written.

    With `seeds` or `lists`, several that are trained as one; see `make_members`.

    **Raises:** `ValueError` for a wrong setting, model, or image folder.
    """
    settings = make_settings(given)
    members: tuple[Member, ...] = ()
    if lists or (seeds or 1) > 1:
        settings, members = make_members(settings, seeds or 1, lists or {})
    names = find_classes(Path(settings.data)) if settings.data else DIGITS
    config, size = make_model_config(settings.model, settings.changes, settings.image_size, len(names))
    data = load_data(settings.data, make_view(settings, size, config.channels), log)
    spec = InputSpec(size, config.channels, *(find_statistics(settings) or channel_statistics(data)))
    _, height, width, _ = data.images.shape
    return Run(settings, config, spec, (height, width), data.classes, data.fingerprint, data.split, members), data


def make_view(settings: Settings, size: tuple[int, int], channels: int) -> View:
    """How the images of a run are seen."""
    return View(size, channels, settings.crop_fraction, settings.crop != "whole")


def resume_run(folder: Path, given: Mapping[str, object], log: ProgressLog) -> tuple[Run, Data]:
    """The run in a folder, with its data loaded again. Where `given` has another folder with the same data, they have
    moved, and the run's config.json names that one from now on.

    **Raises:** `ValueError` for settings in `given` that differ from the run's own, or data that have changed since.
    """
    run = read_run(folder)
    # A run goes on as it began: with other settings, none would describe it.
    own = json.loads(json.dumps(dataclasses.asdict(run.settings)))
    wanted = json.loads(json.dumps({name: value for name, value in given.items() if name != "data"}))
    differing = [f"{name} is {own[name]!r}, not {value!r}" for name, value in wanted.items() if own[name] != value]
    if differing:
        raise ValueError(f"a resumed run keeps its settings, these differ: {'; '.join(differing)}")
    moved = move_data(run, given["data"]) if "data" in given else run
    data = reload_data(moved, log)
    if moved != run and is_first():
        write_run(folder, moved)
    return moved, data


def move_data(run: Run, folder: object) -> Run:
    """The run with its data in another folder; what is there `reload_data` checks."""
    return run._replace(settings=dataclasses.replace(run.settings, data=folder))


def reload_data(run: Run, log: ProgressLog) -> Data:
    """The data that a run was started with.

    **Raises:** `ValueError` where they have changed since, or are gone.
    """
    source = run.settings.data
    if source is not None and not Path(source).exists():
        raise ValueError(f"there is no folder {source}: where the run's images have moved, give --data FOLDER")
    data = load_data(source, make_view(run.settings, run.source_size, run.input_spec.channels), log)
    if data.fingerprint != run.fingerprint:
        raise ValueError(
            f"the images of {source or 'the digits'} have changed since the run was started, or are others: "
            "start a new run"
        )
    return data
