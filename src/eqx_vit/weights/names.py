"""The one table of name maps: architecture and source to rules."""

from collections.abc import Callable, Mapping
from typing import Any

from eqx_vit.models.crossformer import CrossFormerConfig
from eqx_vit.models.levit import LeViTConfig
from eqx_vit.models.vit import ViTConfig
from eqx_vit.weights import crossformer, levit, vit
from eqx_vit.weights.rules import Constant, Rule

NameMap = Callable[[Any], list[Rule | Constant]]

NAMES: Mapping[Any, Mapping[str, NameMap]] = {
    ViTConfig: vit.NAMES,
    LeViTConfig: levit.NAMES,
    CrossFormerConfig: crossformer.NAMES,
}


def name_map(config: Any, source: str) -> list[Rule | Constant]:
    """The rules of a config's architecture for `source`.

    **Raises:** `ValueError` for a source that the architecture has no released weights in.
    """
    sources = NAMES[type(config)]
    if source not in sources:
        raise ValueError(f"{type(config).__name__} has no {source!r} layout: its sources are {', '.join(sources)}")
    return sources[source](config)
