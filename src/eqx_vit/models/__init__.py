"""The architectures: one file each, and the one table that the rest of the library reads."""

from typing import Any, NamedTuple

from eqx_vit.models import crossformer, levit, vit
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
    "crossformer": Architecture(
        crossformer.CrossFormer, crossformer.CrossFormerConfig, crossformer.PRESETS, crossformer.WEIGHTS
    ),
}
