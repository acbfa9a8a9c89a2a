"""The smallest sensible configuration of each architecture: what the generic tests run."""

from typing import Any

from eqx_vit import DeepViTConfig, LeViTConfig, ParallelViTConfig, ParallelViTHMLPConfig, ViTConfig
from eqx_vit.testing import image_size_of

TINY: dict[str, Any] = {
    "vit": ViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "levit": LeViTConfig(image_size=64, num_classes=5, stages=2, dim=16, depth=2, heads=2, dim_key=4, dim_value=8),
    "deepvit": DeepViTConfig(
        image_size=16,
        patch_size=8,
        num_classes=5,
        dim=16,
        depth=2,
        heads=2,
        mlp_dim=24,
        re_attention_depth=1,
        convolutional_stem=True,
    ),
    "parallel_vit": ParallelViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "parallel_vit_hmlp": ParallelViTHMLPConfig(
        image_size=32, patch_size=16, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, layer_scale=1e-4
    ),
}

# Models that take any size, whose smallest sensible image is not 32 x 32.
ANY_SIZE: dict[str, tuple[int, int]] = {}


def tiny_size(name: str) -> tuple[int, int]:
    """(height, width) of the images that the generic tests give to a model."""
    return image_size_of(TINY[name], ANY_SIZE.get(name, (32, 32)))
