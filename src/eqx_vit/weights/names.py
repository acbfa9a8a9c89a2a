"""The tables of names: architecture and source to rules, and to the older spellings that released files have."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from eqx_vit.models.cait import CaiTConfig
from eqx_vit.models.cross_vit import CrossViTConfig
from eqx_vit.models.crossformer import CrossFormerConfig
from eqx_vit.models.cvt import CvTConfig
from eqx_vit.models.deepvit import DeepViTConfig
from eqx_vit.models.levit import LeViTConfig
from eqx_vit.models.nest import NesTConfig
from eqx_vit.models.parallel_vit import ParallelViTConfig, ParallelViTHMLPConfig
from eqx_vit.models.patch_merger import PatchMergerViTConfig
from eqx_vit.models.pit import PiTConfig
from eqx_vit.models.region_vit import RegionViTConfig
from eqx_vit.models.scalable_vit import ScalableViTConfig
from eqx_vit.models.simple_vit import SimpleViTConfig
from eqx_vit.models.t2t import T2TViTConfig
from eqx_vit.models.twins_svt import TwinsSVTConfig
from eqx_vit.models.vit import ViTConfig
from eqx_vit.models.vit_small_datasets import SmallDatasetViTConfig
from eqx_vit.weights import (
    cait,
    cross_vit,
    crossformer,
    cvt,
    deepvit,
    levit,
    nest,
    parallel_vit,
    patch_merger,
    pit,
    region_vit,
    scalable_vit,
    simple_vit,
    t2t,
    twins_svt,
    vit,
    vit_small_datasets,
)
from eqx_vit.weights.rules import Constant, Rule, Spellings

NameMap = Callable[[Any], list[Rule | Constant]]

NAMES: Mapping[Any, Mapping[str, NameMap]] = {
    ViTConfig: vit.NAMES,
    SimpleViTConfig: simple_vit.NAMES,
    CaiTConfig: cait.NAMES,
    CrossFormerConfig: crossformer.NAMES,
    CrossViTConfig: cross_vit.NAMES,
    CvTConfig: cvt.NAMES,
    DeepViTConfig: deepvit.NAMES,
    LeViTConfig: levit.NAMES,
    NesTConfig: nest.NAMES,
    ParallelViTConfig: parallel_vit.NAMES,
    ParallelViTHMLPConfig: parallel_vit.HMLP_NAMES,
    PatchMergerViTConfig: patch_merger.NAMES,
    PiTConfig: pit.NAMES,
    ScalableViTConfig: scalable_vit.NAMES,
    T2TViTConfig: t2t.NAMES,
    TwinsSVTConfig: twins_svt.NAMES,
    SmallDatasetViTConfig: vit_small_datasets.NAMES,
    RegionViTConfig: region_vit.NAMES,
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
