"""The one table of name maps: architecture and source to rules."""

from collections.abc import Callable, Mapping
from typing import Any

from eqx_vit.models.deepvit import DeepViTConfig
from eqx_vit.models.levit import LeViTConfig
from eqx_vit.models.parallel_vit import ParallelViTConfig, ParallelViTHMLPConfig
from eqx_vit.models.vit import ViTConfig
from eqx_vit.weights import deepvit, levit, parallel_vit, vit
from eqx_vit.weights.rules import Constant, Rule

NameMap = Callable[[Any], list[Rule | Constant]]

NAMES: Mapping[Any, Mapping[str, NameMap]] = {
    ViTConfig: vit.NAMES,
    LeViTConfig: levit.NAMES,
    DeepViTConfig: deepvit.NAMES,
    ParallelViTConfig: parallel_vit.NAMES,
    ParallelViTHMLPConfig: parallel_vit.HMLP_NAMES,
}


def name_map(config: Any, source: str) -> list[Rule | Constant]:
    """The rules of a config's architecture for `source`.

    **Raises:** `ValueError` for a source that the architecture has no released weights in.
    """
    sources = NAMES[type(config)]
    if source not in sources:
        raise ValueError(f"{type(config).__name__} has no {source!r} layout: its sources are {', '.join(sources)}")
    return sources[source](config)
