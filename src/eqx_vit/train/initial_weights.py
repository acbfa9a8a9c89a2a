"""What a fine-tuned run starts from: released weights, a file, a folder, or another run."""

from pathlib import Path

import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import PRNGKeyArray

from eqx_vit.create import create
from eqx_vit.functional import NestedDict, to_dicts
from eqx_vit.layers.config import check, pair
from eqx_vit.parameters import cast
from eqx_vit.registry import AnyConfig, AnyModel, change_config, find_preset, list_models
from eqx_vit.serialization import holds_model, load
from eqx_vit.surgery import replace_head, resize
from eqx_vit.train.run_folder import BEST, Run, read_run
from eqx_vit.train.settings import Settings
from eqx_vit.weights.preprocessing import preprocessing

RELEASED = "released"


def load_start(run: Run) -> tuple[NestedDict, NestedDict] | None:
    """(params, state) of the weights that a run starts from; None: it starts from fresh ones.

    Another number of classes gets a fresh head, another image size resampled position tables. They are float32,
    whatever they were saved in.

    **Raises:** `ValueError` for weights that do not fit the run's model; `FileNotFoundError` for those that are neither
    here nor can be downloaded.
    """
    place = run.settings.pretrained
    if place is None:
        return None
    key = jax.random.fold_in(jax.random.key(run.settings.seed), 2)
    own = find_own_model(place)
    model, state = _create(run.settings, place, run.config, key) if own is None else _adapt(own, run, key)
    return to_dicts(cast(model, jnp.float32), state)


def find_own_model(place: str) -> Path | None:
    """The file of this library's own that `place` names, a run's folder or the file itself; None: it is another's."""
    path = Path(place) / BEST if (Path(place) / BEST).exists() else Path(place)
    return path if path.is_file() and holds_model(path) else None


def find_statistics(settings: Settings) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) by which the images of the weights that a run starts from are normalised; None: not known.

    **Raises:** `ValueError` for a preset without released weights.
    """
    place = settings.pretrained
    if place is None:
        return None
    if (Path(place) / BEST).exists():
        spec = read_run(Path(place)).input_spec
        return spec.mean, spec.std
    name = settings.model if place == RELEASED else place
    check(place != RELEASED or name in list_models(), f"--pretrained: there are no released weights of {name}")
    if place == RELEASED or place.startswith("hf-hub:") or (Path(place) / "config.json").exists():
        expected = preprocessing(name)
        return expected.mean, expected.std
    return None


def _adapt(own: Path, run: Run, key: PRNGKeyArray) -> tuple[AnyModel, State]:
    """The model in a file of this library, made into that of the run."""
    config = run.config
    model, state = load(own)
    if model.config.num_classes != config.num_classes:
        model = replace_head(model, config.num_classes, key=key)
    size = getattr(config, "image_size", None)
    if size is not None and pair(size) != pair(getattr(model.config, "image_size", size)):
        model = resize(model, size)
    rates = {name: getattr(config, name) for name in type(config).rates()}
    check(
        type(model.config) is type(config) and change_config(model.config, rates) == config,
        f"{own} holds another model than --model {run.settings.model}: {type(model.config).__name__}",
    )
    return model, state


def _create(settings: Settings, place: str, config: AnyConfig, key: PRNGKeyArray) -> tuple[AnyModel, State]:
    """The model of a checkpoint that is not this library's."""
    if settings.model not in list_models():
        return create(config, pretrained=place, key=key)
    preset = find_preset(settings.model)
    names = [*settings.changes, "num_classes", "image_size", "channels"]
    changes = {name: getattr(config, name) for name in names if hasattr(config, name)}
    changes = {name: value for name, value in changes.items() if value != getattr(preset, name)}
    return create(settings.model, pretrained=True if place == RELEASED else place, key=key, **changes)
