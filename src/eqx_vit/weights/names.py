"""Names in checkpoints: the rules of a source, and what older files call the same."""

import re

from eqx_vit.registry import AnyConfig
from eqx_vit.weights.checkpoints import find_checkpoints
from eqx_vit.weights.rules import Constant, Rule

# What saving a model that was trained on several devices leaves before every name.
_WRAPPER = re.compile(r"^(module|_orig_mod)\.")


def canonical_name(config: AnyConfig, source: str, name: str) -> str | None:
    """The name that a map of `source` has for what a released file calls `name`; None for anything but a weight."""
    name = _WRAPPER.sub("", name)
    for pattern, replacement in find_checkpoints(config).renames.get(source, ()):
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
