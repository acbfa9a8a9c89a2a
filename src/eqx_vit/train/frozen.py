"""The pooled features of a frozen model for a data set: computed once, and kept in one file."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Float, Int, PyTree

from eqx_vit.create import create
from eqx_vit.files import digest_arrays, read_arrays, write_arrays
from eqx_vit.forward import forward
from eqx_vit.layers.config import Size, check, pair
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.registry import AnyModel, config_to_json, find_preset, list_models
from eqx_vit.surgery import replace_head
from eqx_vit.train.augment import identity_affines, prepare_batch
from eqx_vit.train.batches import EvaluationExamples, Images
from eqx_vit.train.data import Data, View, load_data
from eqx_vit.train.file_images import FileImages
from eqx_vit.train.inference import map_images
from eqx_vit.train.predictor import load_run
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.start import make_view, reload_data
from eqx_vit.weights.preprocessing import preprocessing


class Frozen(NamedTuple):
    """A model without its head in inference mode, and the images that it sees.

    **Attributes:** `prepare` makes a batch of `images` the model's input; `text` says what is done to them.
    """

    model: AnyModel
    state: State
    images: Images
    prepare: Callable[[np.ndarray], PyTree]
    size: tuple[int, int]
    data: Data
    text: str


class Features(NamedTuple):
    """Features of images, a row each, their labels, and the rows of each part of the split."""

    features: Float[np.ndarray, "images width"]
    labels: Int[np.ndarray, " images"]
    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]


def freeze_run(folder: Path, checkpoint: str, data_folder: str | None, log: ProgressLog) -> Frozen:
    """A run's model, its checkpoint best or last, on a folder of images (None: on the run's own data).

    **Raises:** `ValueError` for what is not a run folder, damaged files, a wrong folder of images.
    """
    run, model, state = load_run(folder, checkpoint)
    spec = run.input_spec
    if data_folder is None:
        data = reload_data(run, log)
    else:
        channels = 1 if run.settings.data is None else spec.channels
        data = load_data(data_folder, make_view(run.settings, run.source_size, channels), log)
    model = replace_head(model, 0, key=jax.random.key(0))
    prepare = eqx.filter_jit(lambda images: prepare_batch(images, spec, identity_affines(len(images))))
    text = f"{spec} {run.source_size}"
    return Frozen(eqx.nn.inference_mode(model), state, data.images, prepare, spec.size, data, text)


def freeze_preset(
    name: str, pretrained: str | bool, data_folder: str | None, image_size: Size | None, log: ProgressLog
) -> Frozen:
    """A preset with released weights (True), or those of a file, a folder or hf-hub:owner/name, on a folder of images
    (None: on scikit-learn's digits), which are prepared as its released weights expect them.

    **Raises:** `ValueError` for a preset whose images are not known, weights that do not fit, a size that it cannot
    take, a wrong folder of images; `FileNotFoundError` for weights that are neither here nor can be downloaded.
    """
    expected = preprocessing(name)
    if image_size is not None:
        expected = dataclasses.replace(expected, image_size=pair(image_size))
    channels = len(expected.mean)
    resized = {} if image_size is None or not hasattr(find_preset(name), "image_size") else {"image_size": image_size}
    model, state = create(name, pretrained=pretrained, key=jax.random.key(0), num_classes=0, **resized)
    # Whole files, which the expected preprocessing crops.
    data = load_data(data_folder, View(expected.image_size, channels, expected.crop, from_whole=True), log)
    images = data.images
    if isinstance(images, FileImages):
        images = dataclasses.replace(images, size=expected.image_size, expected=expected)

    def prepare(batch: np.ndarray) -> np.ndarray:
        return batch if isinstance(images, FileImages) else np.stack([expected.apply(image) for image in batch])

    return Frozen(eqx.nn.inference_mode(model), state, images, prepare, expected.image_size, data, str(expected))


def load_frozen(
    place: Path,
    checkpoint: str,
    data_folder: str | None,
    pretrained: str | None,
    image_size: Size | None,
    log: ProgressLog,
) -> Frozen:
    """A run's model, or that of the preset of this name.

    **Raises:** `ValueError` for what is neither, and as `freeze_run` and `freeze_preset` do.
    """
    if place.exists():
        check(pretrained is None, f"--pretrained is for presets: {place} is the folder of a run, with its own weights")
        check(image_size is None, f"--image-size is for presets: the images of {place} are as the run's were")
        return freeze_run(place, checkpoint, data_folder, log)
    if str(place) in list_models():
        released = pretrained is None or pretrained == "released"
        return freeze_preset(str(place), True if released else pretrained or True, data_folder, image_size, log)
    raise ValueError(f"{place} is neither the folder of a run nor a preset (`eqx-vit models` lists them)")


def keep_features(
    frozen: Frozen, name: str, path: Path | None, batch_size: int, workers: int, log: ProgressLog
) -> tuple[Features, Path, bool]:
    """(features, their file, whether they were there already): read where the file has them, else computed and written.

    **Arguments:** `path`: None for a file of `probes/` that is named by `name` and by a digest of the model, its images
    and the data.

    **Raises:** `ValueError` for a file of other features, and features that are infinite or NaN.
    """
    arrays = named_leaves(frozen.model) | named_statistics(frozen.model, frozen.state)
    text = json.dumps([config_to_json(frozen.model.config), frozen.text, frozen.data.fingerprint])
    digest = digest_arrays({key: np.asarray(array) for key, array in arrays.items()}, text)
    path = path or Path("probes", f"{name}-{digest[:12]}.safetensors")
    if path.exists():
        kept, metadata = read_arrays(path)
        check(
            metadata.get("digest") == digest and set(kept) == set(Features._fields),
            f"{path} has other features, of another model, image size or data set, or none: give another --output",
        )
        return Features(**kept), path, True
    features = compute_features(frozen, batch_size, workers, log)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, features._asdict(), {"digest": digest, "classes": json.dumps(frozen.data.classes)})
    return features, path, False


def compute_features(frozen: Frozen, batch_size: int, workers: int, log: ProgressLog) -> Features:
    """The features of all images that can be read.

    **Raises:** `ValueError` where they are infinite or NaN, or none can be read.
    """
    data = frozen.data
    count = len(data.labels)
    examples = EvaluationExamples(frozen.images, data.labels, np.arange(count))

    def compute(images: np.ndarray) -> np.ndarray:
        return np.asarray(_run(frozen.model, frozen.state, jnp.asarray(frozen.prepare(images)))).astype(np.float32)

    found, features = map_images(compute, examples, batch_size, workers, log.show_reading)
    readable = np.zeros(count, dtype=bool)
    readable[found] = True
    check(len(features) > 0, "none of the images can be read")
    check(bool(np.isfinite(features).all()), "the model gives features that are infinite or NaN")
    place = np.cumsum(readable) - 1  # of an image among the rows
    parts = [place[part[readable[part]]] for part in (data.train, data.validation, data.test)]
    return Features(features, data.labels[readable], *parts)


@eqx.filter_jit
def _run(model: AnyModel, state: State, images: jax.Array) -> jax.Array:
    return forward(model, state, images)[0]


def describe_data(folder: str | None, data: Data) -> str:
    """The data set in a few words."""
    return f"{'digits' if folder is None else os.path.basename(folder)}, {len(data.classes)} classes"
