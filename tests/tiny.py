"""The smallest sensible configuration of each architecture: what the generic tests run."""

from typing import Any

from eqx_vit import CrossViTConfig, LeViTConfig, ViTConfig

TINY: dict[str, Any] = {
    "vit": ViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "levit": LeViTConfig(image_size=32, num_classes=5, stages=2, dim=16, depth=2, heads=2, dim_key=4, dim_value=8),
    "cross_vit": CrossViTConfig(
        image_size=24,
        image_scale=(1.0, 2 / 3),
        num_classes=5,
        sm_dim=8,
        lg_dim=16,
        depth=2,
        sm_patch_size=6,
        sm_enc_heads=2,
        sm_enc_mlp_dim=16,
        lg_patch_size=8,
        lg_enc_depth=2,
        lg_enc_heads=2,
        lg_enc_mlp_dim=24,
    ),
}
