"""The smallest sensible configuration of each architecture: what the generic tests run."""

from typing import Any

from eqx_vit import CaiTConfig, LeViTConfig, PatchMergerViTConfig, ScalableViTConfig, ViTConfig
from eqx_vit.testing import image_size_of

TINY: dict[str, Any] = {
    "vit": ViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "levit": LeViTConfig(image_size=64, num_classes=5, stages=2, dim=16, depth=2, heads=2, dim_key=4, dim_value=8),
    "cait": CaiTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "patch_merger": PatchMergerViTConfig(
        image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, patch_merge_num_tokens=3
    ),
    "scalable_vit": ScalableViTConfig(
        num_classes=5,
        dim=8,
        depth=(2, 3),
        heads=(1, 2),
        ssa_dim_key=(10, 8),
        reduction_factor=(2, 1),
        window_size=(4, None),
        head_dim=16,
    ),
}

# Models that take any size, whose smallest sensible image is not 32 x 32.
ANY_SIZE: dict[str, tuple[int, int]] = {}


def tiny_size(name: str) -> tuple[int, int]:
    """(height, width) of the images that the generic tests give to a model."""
    return image_size_of(TINY[name], ANY_SIZE.get(name, (32, 32)))
