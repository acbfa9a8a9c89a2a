"""What a model sees in image files, as pictures: `eqx-vit look`."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eqx_vit.forward import forward
from eqx_vit.inspection import (
    attention_maps,
    attention_rollout,
    features_to_rgb,
    grad_cam,
    has_constant_tokens,
    intermediates,
)
from eqx_vit.layers.config import check, list_some
from eqx_vit.train.image_folder import to_printable
from eqx_vit.train.look_plots import Panel, draw_features, draw_look
from eqx_vit.train.predict import rank
from eqx_vit.train.predictor import Picture, Predictor, read_pictures


def look_at_files(
    predictor: Predictor, paths: Sequence[Path], invert: bool, layer: int, class_name: str | None, folder: Path
) -> list[Path]:
    """A picture of each file in the folder: the image, its likeliest classes, Grad-CAM of one (None: of the likeliest),
    and where the model has a token that attends to all patches the rollout and the heads of a layer.

    **Raises:** `ValueError` for a class or a layer that there is not, and for files that cannot be read.
    """
    label = None if class_name is None else _find_class(class_name, predictor.classes)
    pictures = read_pictures(predictor, paths, invert)
    targets = _name_pictures(paths, folder, "look")
    for picture, target in zip(pictures, targets, strict=True):
        ranking, panels = _explain(predictor, picture, layer, label)
        folder.mkdir(parents=True, exist_ok=True)
        draw_look(target, picture.pixels, ranking, panels, picture.path.name)
    return targets


def look_at_features(predictor: Predictor, paths: Sequence[Path], invert: bool, layer: int, folder: Path) -> list[Path]:
    """A picture of each file in the folder: the image beside its patch features as colours, the same in all of them.

    **Raises:** `ValueError` for a layer that there is not, and for files that cannot be read.
    """
    pictures = read_pictures(predictor, paths, invert)
    targets = _name_pictures(paths, folder, "features")
    maps = [_last_normed(predictor, picture, layer) for picture in pictures]
    colours = features_to_rgb(jnp.concatenate(maps))
    folder.mkdir(parents=True, exist_ok=True)
    for picture, target, rgb in zip(pictures, targets, colours, strict=True):
        draw_features(target, picture.pixels, np.asarray(rgb), picture.path.name)
    return targets


def _explain(
    predictor: Predictor, picture: Picture, layer: int, label: int | None
) -> tuple[list[tuple[str, float]], list[Panel]]:
    """The ranking of the classes, and the maps to draw: those over the image, then one for each head."""
    model, state, images = predictor.model, predictor.state, jnp.asarray(picture.image[None])
    attention = _attention_panels(predictor, images, layer)
    if model.config.num_classes == 0:
        return [], attention
    probabilities = np.asarray(jax.nn.softmax(forward(model, state, images)[0][0]))[: len(predictor.classes)]
    chosen = int(probabilities.argmax()) if label is None else label
    evidence = np.asarray(grad_cam(model, state, images, chosen)[0])
    found = "" if evidence.any() else " (none)"
    cam = Panel(f"Grad-CAM: {predictor.classes[chosen]}{found}", evidence, True)
    return rank(probabilities, predictor.classes), [cam, *attention]


def _attention_panels(predictor: Predictor, images: Float[Array, "1 height width channels"], layer: int) -> list[Panel]:
    model, state = predictor.model, predictor.state
    if not model.attention_points(*images.shape[1:3]):
        check(layer == -1, f"{type(model).__name__} has no attention to all patches to show: leave out --layer")
        return []
    layers = attention_maps(model, state, images)
    check(
        -len(layers) <= layer < len(layers),
        f"--layer {layer}: the model has {len(layers)} layers with such attention, 0 to {len(layers) - 1} or -1 to "
        f"-{len(layers)} from the end",
    )
    shown = layer % len(layers)
    heads = [
        Panel(f"layer {shown}, head {head}", np.asarray(weights), False)
        for head, weights in enumerate(layers[shown][0])
    ]
    if not has_constant_tokens(model, images):
        return heads
    return [Panel("attention rollout", np.asarray(attention_rollout(model, state, images)[0]), True), *heads]


def _last_normed(predictor: Predictor, picture: Picture, layer: int) -> Float[Array, "1 rows columns channels"]:
    (features,) = intermediates(
        predictor.model, predictor.state, jnp.asarray(picture.image[None]), indices=[layer], norm=True
    )
    return features


def _find_class(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return list(classes).index(name)
    near = difflib.get_close_matches(name, classes, n=3) or list(classes)
    hint = list_some([to_printable(other) for other in near], ", ", 10)
    raise ValueError(f"the model has no class {name!r}: use one of {len(classes)}, such as {hint}")


def _name_pictures(paths: Sequence[Path], folder: Path, kind: str) -> list[Path]:
    """A file of its own for each image, also where two have one name."""
    counts: dict[str, int] = {}
    targets: list[Path] = []
    for path in paths:
        counts[path.stem] = counts.get(path.stem, 0) + 1
        number = "" if counts[path.stem] == 1 else f"-{counts[path.stem]}"
        targets.append(folder / f"{path.stem}{number}.{kind}.png")
    return targets
