"""The smallest sensible configuration of each architecture: what the generic tests run."""

from typing import Any

from eqx_vit import CvTConfig, LeViTConfig, TwinsSVTConfig, ViTConfig

TINY: dict[str, Any] = {
    "vit": ViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "levit": LeViTConfig(image_size=32, num_classes=5, stages=2, dim=16, depth=2, heads=2, dim_key=4, dim_value=8),
    "twins_svt": TwinsSVTConfig(
        num_classes=5,
        **{f"s{stage}_emb_dim": 8 for stage in (1, 2, 3, 4)},
        **{f"s{stage}_local_patch_size": 2 for stage in (1, 2, 3, 4)},
        s3_depth=2,
        s4_depth=3,
    ),
    "cvt": CvTConfig(num_classes=5, s1_emb_dim=8, s2_emb_dim=12, s2_depth=1, s3_emb_dim=16, s3_heads=2, s3_depth=2),
}
