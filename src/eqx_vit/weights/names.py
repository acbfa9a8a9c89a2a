"""Names in checkpoints: the rules of a source, and what older files call the same."""

import re
from collections import Counter
from collections.abc import Collection, Iterable

from eqx_vit.layers.config import no_type_check
from eqx_vit.registry import AnyConfig
from eqx_vit.weights.checkpoints import find_checkpoints
from eqx_vit.weights.rules import Constant, KeyRenames, Rule

# What saving a compiled model, or one that was trained on several devices, leaves before every name.
_WRAPPER = re.compile(r"^((module|_orig_mod)\.)+")
_MOST_PARTS = 6  # of what a longer program leaves: the path of attributes to the model, `model.`, `encoder.backbone.`


def find_prefix(config: AnyConfig, source: str, names: Collection[str]) -> str:
    """What all names of a checkpoint begin with, if the map of `source` knows any of them only without it; else ""."""
    known, renames = known_names(name_map(config, source)), find_renames(config, source)
    for prefix in _prefixes(next(iter(names), "")):
        if not all(name.startswith(prefix) for name in names):
            break
        if any(canonical_name(renames, name[len(prefix) :]) in known for name in names):
            return prefix
    return ""


def find_frequent_prefix(config: AnyConfig, source: str, names: Collection[str]) -> str:
    """What most of the names of a map have before them in a checkpoint that holds more than the model; else ""."""
    known, renames = known_names(name_map(config, source)), find_renames(config, source)
    found = Counter(
        prefix for name in names for prefix in _prefixes(name) if canonical_name(renames, name[len(prefix) :]) in known
    )
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    return prefix if 2 * count > len(known) else ""


@no_type_check
def _prefixes(name: str) -> list[str]:
    """The beginnings of a name that end with a separator, from the empty one on."""
    separators = re.finditer(r"[./]", name)
    ends = [match.end() for match, _ in zip(separators, range(_MOST_PARTS), strict=False)]
    return [name[:end] for end in (0, *ends)]


def known_names(entries: Iterable[Rule | Constant]) -> set[str]:
    """All foreign names of a map."""
    return {name for entry in entries for name in entry.names}


@no_type_check
def unwrapped_name(name: str) -> str:
    """A name without what saving a wrapped model leaves before it."""
    return _WRAPPER.sub("", name)


def find_renames(config: AnyConfig, source: str) -> KeyRenames:
    """The older spellings of the names that a config's architecture has in `source`."""
    return find_checkpoints(config).renames.get(source, ())


@no_type_check
def canonical_name(renames: KeyRenames, name: str) -> str | None:
    """The name that a map has for what a released file calls `name`; None for anything but a weight."""
    name = unwrapped_name(name)
    for pattern, replacement in renames:
        if replacement is None:
            if re.fullmatch(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


def name_map(config: AnyConfig, source: str) -> list[Rule | Constant]:
    """The rules of a config's architecture for `source`.

    **Raises:** `ValueError` for a source that the architecture has no released weights in.
    """
    sources = find_checkpoints(config).names
    if source not in sources:
        raise ValueError(f"{type(config).__name__} has no {source!r} layout: its sources are {', '.join(sources)}")
    return sources[source](config)
