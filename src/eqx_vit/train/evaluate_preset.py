"""The accuracy of a preset's released weights on a labelled folder, measured as timm's validation does."""

import os
from pathlib import Path

import jax
import numpy as np

from eqx_vit.create import create
from eqx_vit.latency import compiled
from eqx_vit.layers.config import check
from eqx_vit.train.batches import EvaluationExamples
from eqx_vit.train.file_images import FileImages
from eqx_vit.train.image_folder import find_layout, list_files
from eqx_vit.train.inference import BATCH_SIZE, evaluate_all
from eqx_vit.train.progress import ProgressLog
from eqx_vit.train.reported import find_reported
from eqx_vit.weights.preprocessing import preprocessing


def evaluate_preset(name: str, folder: str, workers: int = 0) -> str:
    """A report on the released weights of a preset: top-1 and top-5 accuracy on the images of a folder, and what the
    authors report for ImageNet-1k. The sub-folders, in alphabetical order, are the classes in theirs.

    **Raises:** `ValueError` for a preset without released weights, and a folder of another number of classes.
    """
    expected = preprocessing(name)
    classes, parts, left_out = find_layout(Path(folder))
    check(
        len(parts) == 1,
        f"{folder} holds {' and '.join(place.name for place in parts)}: give one of them, such as {[*parts][-1]}",
    )
    check(
        len(classes) == expected.classes,
        f"{folder} has {len(classes)} classes, and {name} tells {expected.classes} apart: give one with those",
    )
    listed = [list_files(Path(folder) / one, left_out) for one in classes]
    files = np.array([os.fsencode(path) for paths in listed for path in paths], dtype=np.bytes_)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in listed])
    model, state = create(name, pretrained=True, key=jax.random.key(0))
    images = FileImages(files, expected.image_size, len(expected.mean), expected.crop, expected)
    logits = compiled(model, state, BATCH_SIZE, image_size=expected.image_size)
    with ProgressLog() as log:
        found = evaluate_all(
            lambda images: logits(images)[None].astype(np.float32),
            EvaluationExamples(images, labels, np.arange(len(files))),
            BATCH_SIZE,
            workers,
            log.show_reading,
        )[0]  # what is no image cannot be read, and does not count
    ranking = np.argsort(-found.probabilities, axis=1)[:, :5]
    top5 = (ranking == labels[found.indices][:, None]).any(axis=1).mean()
    left = len(left_out) + len(files) - len(found.indices)
    reported = find_reported(name)
    lines = [
        f"{name} on {len(found.indices)} images of {folder}: top-1 {found.accuracy:.2%}, top-5 {top5:.2%}"
        + (f" ({left} files could not be read)" if left else "")
    ]
    if reported is not None:
        lines.append(f"reported for ImageNet-1k: top-1 {reported[0]:.2f}% ({reported[1]})")
    return "\n".join(lines)
