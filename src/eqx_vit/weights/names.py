"""The tables of names: architecture and source to rules, and to the older spellings that released files have."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from eqx_vit.models.cait import CaiTConfig
from eqx_vit.models.cross_vit import CrossViTConfig
from eqx_vit.models.cvt import CvTConfig
from eqx_vit.models.deepvit import DeepViTConfig
from eqx_vit.models.levit import LeViTConfig
from eqx_vit.models.patch_merger import PatchMergerViTConfig
from eqx_vit.models.pit import PiTConfig
from eqx_vit.models.simple_vit import SimpleViTConfig
from eqx_vit.models.twins_svt import TwinsSVTConfig
from eqx_vit.models.vit import ViTConfig
from eqx_vit.models.vit_small_datasets import SmallDatasetViTConfig
from eqx_vit.weights import (
    cait,
    cross_vit,
    cvt,
    deepvit,
    levit,
    patch_merger,
    pit,
    simple_vit,
    twins_svt,
    vit,
    vit_small_datasets,
)
from eqx_vit.weights.rules import Constant, Rule, Spellings

NameMap = Callable[[Any], list[Rule | Constant]]

NAMES: Mapping[Any, Mapping[str, NameMap]] = {
    ViTConfig: vit.NAMES,
    LeViTConfig: levit.NAMES,
    SimpleViTConfig: simple_vit.NAMES,
    CaiTConfig: cait.NAMES,
    DeepViTConfig: deepvit.NAMES,
    TwinsSVTConfig: twins_svt.NAMES,
    PatchMergerViTConfig: patch_merger.NAMES,
    CrossViTConfig: cross_vit.NAMES,
    PiTConfig: pit.NAMES,
    SmallDatasetViTConfig: vit_small_datasets.NAMES,
    CvTConfig: cvt.NAMES,
}


SPELLINGS: Mapping[Any, Mapping[str, Spellings]] = {
    ViTConfig: vit.SPELLINGS,
    LeViTConfig: levit.SPELLINGS,
    CrossViTConfig: cross_vit.SPELLINGS,
    PiTConfig: pit.SPELLINGS,
    SimpleViTConfig: simple_vit.SPELLINGS,
}

# What saving a model that was trained on several devices leaves before every name.
_WRAPPER = re.compile(r"^(module|_orig_mod)\.")


def today(config: Any, source: str, name: str) -> str | None:
    """The name that a map of `source` has for what a released file calls `name`; None for what is no weight."""
    name = _WRAPPER.sub("", name)
    for pattern, replacement in SPELLINGS.get(type(config), {}).get(source, ()):
        if replacement is None:
            if re.fullmatch(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


def name_map(config: Any, source: str) -> list[Rule | Constant]:
    """The rules of a config's architecture for `source`.

    **Raises:** `ValueError` for a source that the architecture has no released weights in.
    """
    sources = NAMES[type(config)]
    if source not in sources:
        raise ValueError(f"{type(config).__name__} has no {source!r} layout: its sources are {', '.join(sources)}")
    return sources[source](config)
