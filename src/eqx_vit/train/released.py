"""What a released model says of picture files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_vit.create import create
from eqx_vit.surface import forward
from eqx_vit.train.pictures import open_picture
from eqx_vit.train.use import Opinions, ranked
from eqx_vit.weights.checkpoint import class_names
from eqx_vit.weights.preprocessing import preprocessing


def classify_files(name: str, paths: Sequence[Path], invert: bool) -> Opinions:
    """For each picture file its path and the classes, (name, probability), the likeliest first.

    Pictures are resized, cropped and scaled as the released weights of the preset `name` expect.

    **Raises:** `ValueError` for a preset without released weights, and every picture that cannot be read;
    `FileNotFoundError` for weights that are neither here nor can be downloaded.
    """
    prepared = preprocessing(name)
    images: list[np.ndarray] = []
    problems: list[str] = []
    for path in paths:
        try:
            picture = np.asarray(open_picture(path).convert("RGB"))
        except ValueError as error:
            problems.append(str(error))
        else:
            images.append(prepared.apply(255 - picture if invert else picture))
    if problems:
        raise ValueError("; ".join(problems))
    model, state = create(name, pretrained=True, key=jax.random.key(0))
    names = class_names(name, prepared.classes)
    model = eqx.nn.inference_mode(model)
    return [
        (path, ranked(np.asarray(_probabilities(model, state, image)), names))
        for path, image in zip(paths, images, strict=True)
    ]


@eqx.filter_jit
def _probabilities(model: Any, state: Any, image: Any) -> Any:
    return jax.nn.softmax(forward(model, state, jnp.asarray(image)[None])[0][0])
