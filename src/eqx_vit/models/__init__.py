"""The architectures: one file each, and the one table that the rest of the library reads."""

from typing import Any, NamedTuple

from eqx_vit.models import deepvit, levit, parallel_vit, vit
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
    "deepvit": Architecture(deepvit.DeepViT, deepvit.DeepViTConfig, deepvit.PRESETS, deepvit.WEIGHTS),
    "parallel_vit": Architecture(
        parallel_vit.ParallelViT, parallel_vit.ParallelViTConfig, parallel_vit.PRESETS, parallel_vit.WEIGHTS
    ),
    "parallel_vit_hmlp": Architecture(
        parallel_vit.ParallelViTHMLP,
        parallel_vit.ParallelViTHMLPConfig,
        parallel_vit.HMLP_PRESETS,
        parallel_vit.HMLP_WEIGHTS,
    ),
}
