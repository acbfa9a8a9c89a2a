"""The architectures: one file each, and the one table that the rest of the library reads."""

from typing import Any, NamedTuple

from eqx_vit.models import cait, levit, patch_merger, scalable_vit, vit
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
    "cait": Architecture(cait.CaiT, cait.CaiTConfig, cait.PRESETS, cait.WEIGHTS),
    "patch_merger": Architecture(
        patch_merger.PatchMergerViT, patch_merger.PatchMergerViTConfig, patch_merger.PRESETS, patch_merger.WEIGHTS
    ),
    "scalable_vit": Architecture(
        scalable_vit.ScalableViT, scalable_vit.ScalableViTConfig, scalable_vit.PRESETS, scalable_vit.WEIGHTS
    ),
}
