"""The smallest sensible configuration of each architecture: what the generic tests run."""

from typing import Any

from eqx_vit import CrossFormerConfig, LeViTConfig, ViTConfig

TINY: dict[str, Any] = {
    "vit": ViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "levit": LeViTConfig(image_size=32, num_classes=5, stages=2, dim=16, depth=2, heads=2, dim_key=4, dim_value=8),
    "crossformer": CrossFormerConfig(
        num_classes=5,
        dim=(64, 128),
        depth=(3, 2),
        global_window_size=(2, 1),
        local_window_size=2,
        mlp_ratio=0.5,
        cross_embed_kernel_sizes=((2, 4), (2, 4)),
        cross_embed_strides=2,
    ),
}
