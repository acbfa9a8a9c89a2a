"""The one table of architectures, and what is looked up in it: presets by name, configs from plain data."""

import dataclasses
import difflib
import fnmatch
import functools
import importlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from eqx_vit.arguments import check_arguments
from eqx_vit.layers.config import no_type_check, shorten
from eqx_vit.model import ImageModel, ImageModelConfig
from eqx_vit.models.source import Source

AnyModel = ImageModel[Any, Any]
AnyConfig = ImageModelConfig[Any]
Config = TypeVar("Config", bound=AnyConfig)


@dataclass(frozen=True)
class Architecture:
    """What the library knows of one architecture.

    `checkpoints` says where its `weights.Checkpoints` are, as "module:attribute": they are imported only when weights
    are read or written, since those of all architectures would more than double the time that an import takes.
    """

    model: type[AnyModel]
    config: type[AnyConfig]
    presets: Mapping[str, AnyConfig]
    weights: Mapping[str, Source]
    checkpoints: str


def _read_file(file: str, model: str, prefix: str = "") -> Architecture:
    """What a file of `models/` says of a model; of several in one file, `prefix` tells their tables apart."""
    module = importlib.import_module(f"eqx_vit.models.{file}")
    presets, weights = getattr(module, f"{prefix}PRESETS"), getattr(module, f"{prefix}WEIGHTS")
    config = getattr(module, f"{model}Config")
    return Architecture(getattr(module, model), config, presets, weights, f"{file}:{prefix}CHECKPOINTS")


MODELS: dict[str, Architecture] = {
    "vit": _read_file("vit", "ViT"),
    "simple_vit": _read_file("simple_vit", "SimpleViT"),
    "cait": _read_file("cait", "CaiT"),
    "crossformer": _read_file("crossformer", "CrossFormer"),
    "cross_vit": _read_file("cross_vit", "CrossViT"),
    "cvt": _read_file("cvt", "CvT"),
    "deepvit": _read_file("deepvit", "DeepViT"),
    "levit": _read_file("levit", "LeViT"),
    "nest": _read_file("nest", "NesT"),
    "parallel_vit": _read_file("parallel_vit", "ParallelViT"),
    "parallel_vit_hmlp": _read_file("parallel_vit", "ParallelViTHMLP", prefix="HMLP_"),
    "patch_merger": _read_file("patch_merger", "PatchMergerViT"),
    "pit": _read_file("pit", "PiT"),
    "scalable_vit": _read_file("scalable_vit", "ScalableViT"),
    "t2t": _read_file("t2t", "T2TViT"),
    "twins_svt": _read_file("twins_svt", "TwinsSVT"),
    "vit_small_datasets": _read_file("vit_small_datasets", "SmallDatasetViT"),
    "region_vit": _read_file("region_vit", "RegionViT"),
}


def find_architecture(config: object) -> Architecture:
    """The row of `MODELS` that a config belongs to.

    **Raises:** `ValueError` for an object that is not a config of this library.
    """
    for row in MODELS.values():
        if type(config) is row.config:
            return row
    known = ", ".join(row.config.__name__ for row in MODELS.values())
    raise ValueError(f"{shorten(config)} is not a config of this library: use one of {known}")


@check_arguments
def list_models(pattern: str = "*") -> list[str]:
    """The names of the presets that match a shell pattern such as `"cait*"`."""
    return [name for row in MODELS.values() for name in row.presets if fnmatch.fnmatchcase(name, pattern)]


def find_preset(name: str) -> AnyConfig:
    """The config of a preset.

    **Raises:** `ValueError` with the nearest names for an unknown one.
    """
    for row in MODELS.values():
        if name in row.presets:
            return row.presets[name]
    near = _find_near_presets(name[:_LONGEST_NAME])
    hint = f"did you mean {', '.join(near)}?" if near else "eqx_vit.list_models() names them all"
    raise ValueError(f"there is no preset {shorten(name)}: {hint}")


_LONGEST_NAME = 80
# What official codes call sizes and families, in the presets' words.
_WORDS = {
    "t": "tiny",
    "ti": "tiny",
    "s": "small",
    "m": "medium",
    "b": "base",
    "l": "large",
    "h": "huge",
    "g": "giant",
    "gvt": "svt",
}
# Names of official codes that do not say which preset they are.
_OFFICIAL_NAMES = {
    "cait_XXS24": "cait_xxs24_384",
    "cait_XXS36": "cait_xxs36_384",
    "cait_S24": "cait_s24_384",
    "nest_tiny_s196_224": "nest_tiny_jx",
    "nest_small_s196_224": "nest_small_jx",
    "nest_base_s196_224": "nest_base_jx",
    "deit_small_patch16_LS": "deit3_small_patch16_224",
    "deit_medium_patch16_LS": "deit3_medium_patch16_224",
    "deit_base_patch16_LS": "deit3_base_patch16_224",
    "deit_large_patch16_LS": "deit3_large_patch16_224",
    "deit_huge_patch14_LS": "deit3_huge_patch14_224",
}


def _find_near_presets(name: str) -> list[str]:
    """Up to three presets that a name may mean, the likeliest first: case, separators and order do not count."""
    presets = {preset: _words(preset) for preset in list_models()}
    counts = Counter(word for words in presets.values() for word in set(words))
    # A word says the more, the fewer presets have it; numbers are often another size of the same model.
    weights = {word: math.log((len(presets) + 1) / n) / (2 if word.isdigit() else 1) for word, n in counts.items()}
    words = _regroup(_words(name), weights)
    scores = {preset: _score(words, own, weights) for preset, own in presets.items()}
    scores |= {preset: 1.0 for official, preset in _OFFICIAL_NAMES.items() if words == _words(official)}
    near = [preset for preset, score in scores.items() if score > 0.3]
    return sorted(near, key=lambda preset: -scores[preset])[:3]


@no_type_check
def _words(name: str) -> list[str]:
    """The words and numbers of a name, without the tag of a checkpoint or the ending of a file."""
    plain = re.sub(r"\.[a-z]\w*$", "", name.lower()).replace("++", " pp ")
    words: list[str] = re.findall(r"[a-z]+|[0-9]+", plain)
    return [_WORDS.get(word, word) for word in words]


@no_type_check
def _regroup(words: Iterable[str], known: Collection[str]) -> list[str]:
    """The words with those that are not known joined or split into known ones: `cross vit`, `simplevit`."""
    result: list[str] = []
    for word in words:
        if result and result[-1] not in known and result[-1] + word in known:
            result[-1] += word
        elif word in known:
            result.append(word)
        else:
            halves = ([*_words(word[:end]), *_words(word[end:])] for end in range(1, len(word)))
            result += next((pair for pair in halves if all(half in known for half in pair)), [word])
    return result


@no_type_check
def _score(words: Iterable[str], preset: Iterable[str], weights: Mapping[str, float]) -> float:
    """How much of a name and of a preset's name is the same, from 0 to 1; what the name lacks counts little."""
    most = max(weights.values())
    given, own = sum(weights.get(word, most) for word in words), sum(weights[word] for word in preset)
    left, unsure, same = Counter(preset), [], 0.0
    for word in words:
        if left[word]:
            left[word] -= 1
            same += weights[word]
        else:
            unsure.append(word)
    for word in unsure:
        likeness = {other: _likeness(word, other) * weights[other] for other in left.elements()}
        nearest = max(likeness, key=lambda other: likeness[other], default="")
        if likeness.get(nearest):
            left[nearest] -= 1
            same += likeness[nearest]
    return same / (0.8 * given + 0.2 * own) if given else 0.0


@functools.lru_cache
@no_type_check
def _likeness(word: str, other: str) -> float:
    """How much a word may be a misspelt other, or a size of images mean the nearest; 0 for words that differ."""
    if word.isdigit() and other.isdigit():
        small, large = sorted((int(word), int(other)))
        return 0.0 if small < 100 else (small / large) ** 2 / 2
    ratio = difflib.SequenceMatcher(None, word, other).ratio()
    return ratio if ratio >= 0.8 else 0.0


def change_config(config: Config, changes: Mapping[str, object]) -> Config:
    """The config with some fields replaced; a second head has the classes of the first unless `changes` says so.

    **Raises:** `ValueError` for a field that it does not have, with those that it has, and for a wrong value.
    """
    check_field_names(find_architecture(config).config, changes)
    if "num_classes" in changes and getattr(config, "num_distill_classes", None):
        changes = {"num_distill_classes": changes["num_classes"] or None, **changes}
    return dataclasses.replace(config, **changes)


def check_field_names(config: type[AnyConfig], given: Iterable[str]) -> None:
    """Raise `ValueError` for the first name that is not a field of the config, with the fields that there are."""
    names = [field.name for field in dataclasses.fields(config)]
    unknown = [name for name in given if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{config.__name__} has no field {shorten(unknown[0])}: {hint}its fields are {', '.join(names)}"
        )


def config_to_json(config: AnyConfig) -> dict[str, Any]:
    """A config as plain data: the name of its architecture and its fields.

    **Raises:** `ValueError` for an object that is not a config of this library.
    """
    row = find_architecture(config)
    name = next(name for name, other in MODELS.items() if other is row)
    return {"architecture": name, "config": dataclasses.asdict(config)}


def config_from_json(plain: object) -> AnyConfig:
    """The config that `config_to_json` wrote.

    **Raises:** `ValueError` for an unknown architecture, field or value.
    """
    match plain:
        case {"architecture": str(name), "config": dict(fields)}:
            if name not in MODELS:
                raise ValueError(f"there is no architecture {shorten(name)}: use one of {', '.join(MODELS)}")
            return make_config(name, fields)
    raise ValueError('expected {"architecture": ..., "config": {...}}')


def make_config(architecture: str, fields: Mapping[str, object]) -> AnyConfig:
    """The config of an architecture with some fields given, the others at their defaults.

    **Raises:** `ValueError` for unknown fields, missing ones and wrong values.
    """
    config = MODELS[architecture].config
    check_field_names(config, fields)
    required = [field.name for field in dataclasses.fields(config) if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in fields]
    if missing:
        raise ValueError(f"{config.__name__} needs {', '.join(missing)}")
    return config(**cast(Mapping[str, Any], fields))
