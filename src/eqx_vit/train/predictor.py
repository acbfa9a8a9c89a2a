"""A trained model with all that an image file needs to be given to it: a run's, or a preset's released weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Float, UInt8

from eqx_vit.create import create
from eqx_vit.registry import AnyModel, list_models
from eqx_vit.serialization import load
from eqx_vit.train.augment import InputSpec, identity_affines, prepare_batch
from eqx_vit.train.pictures import open_image, read_image
from eqx_vit.train.run_folder import Run, read_run
from eqx_vit.weights.locate import read_class_names
from eqx_vit.weights.preprocessing import preprocessing


class Picture(NamedTuple):
    """An image file as the model is given it: its pixels as a person sees them, and the model's input."""

    path: Path
    pixels: UInt8[np.ndarray, "rows columns colours"]
    image: Float[np.ndarray, "height width channels"]


class Predictor(NamedTuple):
    """A model in inference mode, its state, the names of its classes, and how a file is read for it."""

    model: AnyModel
    state: State
    classes: Sequence[str]
    read: Callable[[Path, bool], Picture]  # of (path, whether dark and bright are swapped)


def load_predictor(place: Path, checkpoint: str) -> Predictor:
    """That of a run's folder, with its checkpoint best or last; or of the preset of this name, with released weights.

    **Raises:** `ValueError` for what is neither, damaged files and a preset without released weights;
    `FileNotFoundError` for weights that are neither here nor can be downloaded.
    """
    if place.exists():
        return _load_run_predictor(place, checkpoint)
    if str(place) in list_models():
        return _load_preset_predictor(str(place))
    raise ValueError(f"{place} is neither the folder of a run nor a preset (`eqx-vit models` lists them)")


def load_run(folder: Path, checkpoint: str) -> tuple[Run, AnyModel, State]:
    """The run in a folder, with the model and state of its checkpoint, best or last.

    **Raises:** `ValueError` for what is not a run folder, and damaged files.
    """
    run = read_run(folder)
    path = folder / f"{checkpoint}.safetensors"
    if not path.exists():
        raise ValueError(f"{folder} has no {path.name} yet: the run has not finished its first epoch")
    model, state = load(path)
    if model.config != run.config:
        raise ValueError(f"{path} holds another model than {folder / 'config.json'} describes")
    return run, model, state


def read_pictures(predictor: Predictor, paths: Sequence[Path], invert: bool) -> list[Picture]:
    """Each file as a picture; `invert` swaps dark and bright.

    **Raises:** `ValueError` that names every file that cannot be read.
    """
    pictures: list[Picture] = []
    problems: list[str] = []
    for path in paths:
        try:
            pictures.append(predictor.read(path, invert))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return pictures


def _load_run_predictor(folder: Path, checkpoint: str) -> Predictor:
    run, model, state = load_run(folder, checkpoint)
    channels = 1 if run.settings.data is None else run.input_spec.channels

    def read(path: Path, invert: bool) -> Picture:
        pixels = read_image(path, run.source_size, channels)
        pixels = 255 - pixels if invert else pixels
        return Picture(path, pixels, np.asarray(prepare_pixels(run.input_spec, jnp.asarray(pixels[None]))[0]))

    return Predictor(eqx.nn.inference_mode(model), state, run.classes, read)


@eqx.filter_jit
def prepare_pixels(spec: InputSpec, images: UInt8[jax.Array, "batch rows columns colours"]) -> jax.Array:
    """Images of 0 to 255 as a run's model is given them."""
    return prepare_batch(images, spec, identity_affines(len(images)))


def _load_preset_predictor(name: str) -> Predictor:
    expected = preprocessing(name)

    def read(path: Path, invert: bool) -> Picture:
        pixels = np.asarray(open_image(path, 3))
        image = expected.apply(255 - pixels if invert else pixels)
        seen = image * np.asarray(expected.std, dtype=np.float32) + np.asarray(expected.mean, dtype=np.float32)
        return Picture(path, np.round(seen * 255).clip(0, 255).astype(np.uint8), image)

    model, state = create(name, pretrained=True, key=jax.random.key(0))
    return Predictor(eqx.nn.inference_mode(model), state, read_class_names(name, expected.classes), read)
