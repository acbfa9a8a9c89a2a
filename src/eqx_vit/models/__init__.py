"""The architectures: one file each, and the one table that the rest of the library reads."""

from typing import Any, NamedTuple

from eqx_vit.models import cvt, levit, twins_svt, vit
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
    "twins_svt": Architecture(twins_svt.TwinsSVT, twins_svt.TwinsSVTConfig, twins_svt.PRESETS, twins_svt.WEIGHTS),
    "cvt": Architecture(cvt.CvT, cvt.CvTConfig, cvt.PRESETS, cvt.WEIGHTS),
}
