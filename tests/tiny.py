"""The smallest sensible configuration of each architecture: what the generic tests run."""

from typing import Any

import pytest

from eqx_vit import (
    CaiTConfig,
    CrossFormerConfig,
    CrossViTConfig,
    CvTConfig,
    DeepViTConfig,
    LeViTConfig,
    NesTConfig,
    ParallelViTConfig,
    ParallelViTHMLPConfig,
    PatchMergerViTConfig,
    PiTConfig,
    RegionViTConfig,
    ScalableViTConfig,
    SimpleViTConfig,
    SmallDatasetViTConfig,
    T2TViTConfig,
    TwinsSVTConfig,
    ViTConfig,
)
from eqx_vit.testing import image_size_of

TINY: dict[str, Any] = {
    "vit": ViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "levit": LeViTConfig(image_size=64, num_classes=5, stages=2, dim=16, depth=2, heads=2, dim_key=4, dim_value=8),
    "simple_vit": SimpleViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "cait": CaiTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
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
    "twins_svt": TwinsSVTConfig(
        num_classes=5,
        **{f"s{stage}_emb_dim": 8 for stage in (1, 2, 3, 4)},
        **{f"s{stage}_local_patch_size": 2 for stage in (1, 2, 3, 4)},
        s1_global_k=2,
        s2_global_k=2,
        s3_global_k=1,
        s4_patch_size=1,
        s3_depth=2,
        s4_depth=3,
    ),
    "patch_merger": PatchMergerViTConfig(
        image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, patch_merge_num_tokens=3
    ),
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
    "pit": PiTConfig(image_size=24, patch_size=8, num_classes=5, dim=8, depth=(1, 2), heads=(2, 4), distillation=True),
    "vit_small_datasets": SmallDatasetViTConfig(
        image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24
    ),
    "cvt": CvTConfig(num_classes=5, s1_emb_dim=8, s2_emb_dim=12, s2_depth=1, s3_emb_dim=16, s3_heads=2, s3_depth=2),
    "nest": NesTConfig(
        image_size=16, patch_size=4, num_classes=5, dim=8, heads=2, num_hierarchies=2, block_repeats=(1, 2)
    ),
    "parallel_vit": ParallelViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24),
    "parallel_vit_hmlp": ParallelViTHMLPConfig(
        image_size=32, patch_size=16, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, layer_scale=1e-4
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
    "t2t": T2TViTConfig(
        image_size=32, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, token_dim=8, token_dropout=0.0
    ),
    "crossformer": CrossFormerConfig(
        num_classes=5,
        dim=(64, 128),
        depth=(3, 2),
        global_window_size=(2, 1),
        local_window_size=2,
        mlp_ratio=1,
        cross_embed_kernel_sizes=((2, 4), (2, 4)),
        cross_embed_strides=2,
    ),
    "region_vit": RegionViTConfig(
        num_classes=5,
        dim=(8, 16),
        depth=(2, 2),
        window_size=2,
        heads=2,
        mlp_ratio=1.5,
        tokenize_local_3_conv=True,
        use_peg=True,
    ),
}

# Models that take any size, whose smallest sensible image is not 32 x 32.
ANY_SIZE: dict[str, tuple[int, int]] = {}


def tiny_size(name: str) -> tuple[int, int]:
    """(height, width) of the images that the generic tests give to a model."""
    return image_size_of(TINY[name], ANY_SIZE.get(name, (32, 32)))


def slow_but_for(*names: str) -> pytest.MarkDecorator:
    """A test of every model, by default of these alone: what compiles much is left to the slow session."""
    models = [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
    return pytest.mark.parametrize("name", models)


compiled_model = slow_but_for("vit", "levit", "cait", "t2t")  # one of each kind
