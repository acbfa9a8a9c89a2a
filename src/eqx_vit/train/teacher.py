"""The teacher of a distilled run: another run's model, or a preset with released weights, which is not trained."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqx_vit.create import create
from eqx_vit.functional import NestedDict, to_dicts, transform
from eqx_vit.layers.config import check
from eqx_vit.registry import AnyConfig, list_models
from eqx_vit.train.augment import InputSpec
from eqx_vit.train.predictor import load_run
from eqx_vit.weights.preprocessing import preprocessing

Images = Float[Array, "batch height width channels"]


class Teacher(NamedTuple):
    """**Attributes:** `arrays`, its (params, state); `apply(arrays, images)`, its logits of the student's images."""

    arrays: tuple[NestedDict, NestedDict]
    apply: Callable[[tuple[NestedDict, NestedDict], Images], Float[Array, "batch classes"]]


def load_teacher(place: str, classes: int, student: InputSpec) -> Teacher:
    """The teacher of a run's folder (its best checkpoint), or of a preset.

    Its images are the student's, augmented and mixed, normalised as the teacher knows them and resized where it takes
    another size.

    **Raises:** `ValueError` for what is neither, and a teacher of other classes or channels.
    """
    config, arrays, spec = _load(place)
    check(
        config.num_classes == classes,
        f"the teacher {place} tells {config.num_classes} classes apart, the run {classes}: it needs the same",
    )
    check(
        spec.channels == student.channels,
        f"the teacher {place} takes images of {spec.channels} channels, the run has {student.channels}",
    )
    run = transform(config).apply

    def apply(arrays: tuple[NestedDict, NestedDict], images: Images) -> Float[Array, "batch classes"]:
        mean, std, own_mean, own_std = (
            jnp.broadcast_to(jnp.asarray(values, dtype=jnp.float32), images.shape)
            for values in (student.mean, student.std, spec.mean, spec.std)
        )
        images = ((images * std + mean) - own_mean) / own_std
        if images.shape[1:3] != spec.size:
            images = jax.image.resize(images, (len(images), *spec.size, spec.channels), "bilinear")
        return jax.lax.stop_gradient(run(*arrays, None, images)[0].astype(jnp.float32))

    return Teacher(arrays, apply)


def _load(place: str) -> tuple[AnyConfig, tuple[NestedDict, NestedDict], InputSpec]:
    if Path(place).is_dir():
        run, model, state = load_run(Path(place), "best")
        return run.config, to_dicts(model, state), run.input_spec
    check(place in list_models(), f"the teacher {place} is neither a run's folder nor a preset")
    model, state = create(place, pretrained=True, key=jax.random.key(0))
    expected = preprocessing(place)
    spec = InputSpec(expected.image_size, len(expected.mean), expected.mean, expected.std)
    return model.config, to_dicts(model, state), spec
