"""`eqx-vit export`: a run's model, or a preset's released weights, in formats of others."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from equinox.nn import State

import eqx_vit.export as formats
from eqx_vit.create import create
from eqx_vit.export.program import Batch
from eqx_vit.export.to_folder import write_folder
from eqx_vit.export.to_onnx import OPSET
from eqx_vit.export.to_stablehlo import PLATFORMS
from eqx_vit.files import fill_folder
from eqx_vit.registry import AnyModel, list_models
from eqx_vit.train.predictor import load_run
from eqx_vit.weights.locate import read_class_names
from eqx_vit.weights.preprocessing import Preprocessing, preprocessing


class Subject(NamedTuple):
    """A model and its state, the preset that it is of, how its images are prepared, and the names of its classes."""

    model: AnyModel
    state: State
    preset: str
    preprocessing: Preprocessing
    classes: Sequence[str]


def find_subject(place: Path, checkpoint: str) -> Subject:
    """That of a run's folder, with its checkpoint best or last; or of the preset of this name, with released weights.

    **Raises:** `ValueError` for what is neither, damaged files and a preset without released weights;
    `FileNotFoundError` for weights that are neither here nor can be downloaded.
    """
    name = str(place)
    if place.exists():
        run, model, state = load_run(place, checkpoint)
        spec = run.input_spec
        prepared = Preprocessing(
            image_size=spec.size,
            mean=spec.mean,
            std=spec.std,
            interpolation="bilinear",
            crop=1.0,
            classes=len(run.classes),
        )
        return Subject(model, state, run.settings.model, prepared, run.classes)
    if name in list_models():
        model, state = create(name, pretrained=True, key=jax.random.key(0))
        prepared = preprocessing(name)
        return Subject(model, state, name, prepared, read_class_names(name, prepared.classes))
    raise ValueError(f"{place} is neither the folder of a run nor a preset (`eqx-vit models` lists them)")


def export_formats(
    subject: Subject,
    names: Sequence[str],
    output: Path,
    *,
    batch: Batch,
    opset: int | None,
    platforms: Sequence[str] | None,
) -> Iterator[str]:
    """Write each format to a folder of its name in the new folder `output`, and give a line about each.

    **Raises:** what the exports raise; nothing is left then.
    """
    lines = []
    with fill_folder(output) as folder:
        for name in names:
            certificate = _export(subject, name, folder / name, batch, opset or OPSET, platforms or PLATFORMS)
            lines.append(_describe(output / name / str(certificate["file"]), certificate))
    yield from lines


def _export(
    subject: Subject, name: str, path: Path, batch: Batch, opset: int, platforms: Sequence[str]
) -> dict[str, object]:
    model, state, size = subject.model, subject.state, subject.preprocessing.image_size
    match name:
        case "onnx":
            return formats.onnx(path, model, state, batch, opset=opset, image_size=size)
        case "stablehlo":
            return formats.stablehlo(path, model, state, batch, platforms, image_size=size)
        case "timm" if subject.preset not in list_models():
            raise ValueError(f"timm has no {subject.preset}: it opens models of the presets that have its names")
        case "timm" | "hf":
            named = len(subject.classes) == model.config.num_classes
            return write_folder(
                path,
                model,
                state,
                target=name,
                architecture=subject.preset,
                preprocessing=subject.preprocessing,
                class_names=subject.classes if named else None,
                image_size=size,
            )
    raise ValueError(f"there is no format {name!r}")


def _describe(file: Path, certificate: dict[str, object]) -> str:
    size = f"{int(str(certificate['size_bytes'])) / 1e6:.1f} MB"
    if "largest_difference" not in certificate:
        return f"{file}: {size}, not tried (runtime {certificate['runtime']})"
    latency = certificate["latency_ms"]
    first = next(iter(latency.items())) if isinstance(latency, dict) else ("", "")
    return (
        f"{file}: {size}, differs by {certificate['largest_difference']:.1e} at most "
        f"(largest logit {certificate['largest_logit']:.3g}), {first[1]} ms for a batch of {first[0]}"
    )
