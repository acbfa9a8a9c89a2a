"""The architectures: one file each, and the one table that the rest of the library reads."""

from typing import Any, NamedTuple

from eqx_vit.models import cait, levit, nest, pit, simple_vit, vit
from eqx_vit.models.source import Source


class Architecture(NamedTuple):
    """What the library knows of one architecture."""

    model: Any  # the class
    config: Any  # the class of its configurations
    presets: dict[str, Any]
    weights: dict[str, Source]


MODELS: dict[str, Architecture] = {
    "vit": Architecture(vit.ViT, vit.ViTConfig, vit.PRESETS, vit.WEIGHTS),
    "levit": Architecture(levit.LeViT, levit.LeViTConfig, levit.PRESETS, levit.WEIGHTS),
    "simple_vit": Architecture(
        simple_vit.SimpleViT, simple_vit.SimpleViTConfig, simple_vit.PRESETS, simple_vit.WEIGHTS
    ),
    "cait": Architecture(cait.CaiT, cait.CaiTConfig, cait.PRESETS, cait.WEIGHTS),
    "pit": Architecture(pit.PiT, pit.PiTConfig, pit.PRESETS, pit.WEIGHTS),
    "nest": Architecture(nest.NesT, nest.NesTConfig, nest.PRESETS, nest.WEIGHTS),
}
