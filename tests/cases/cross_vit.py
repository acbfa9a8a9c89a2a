"""CrossViT: golden files of the official code and timm."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import MODELS, CrossViTConfig

TINY = CrossViTConfig(
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
)

BASE = CrossViTConfig(
    image_size=48,
    image_scale=(1.0, 64 / 48),
    num_classes=5,
    depth=2,
    sm_dim=16,
    sm_enc_heads=2,
    sm_enc_mlp_dim=48,
    lg_dim=24,
    lg_enc_depth=2,
    lg_enc_heads=3,
    lg_enc_mlp_dim=48,
    cross_attn_depth=0,
)
PLAIN = replace(
    BASE, num_classes=7, sm_dim=24, sm_enc_heads=3, sm_enc_mlp_dim=72, lg_dim=32, lg_enc_heads=4, lg_enc_mlp_dim=128
)
DAGGER = replace(BASE, num_classes=6, convolutional_embedding=True, sm_enc_depth=(1, 2), lg_enc_heads=2)
SHRUNK = replace(BASE, image_size=60, image_scale=(1.0, 0.8))
WIDE = replace(SHRUNK, lg_dim=32, lg_enc_heads=4, lg_enc_mlp_dim=96)
CROSS_DEPTH = replace(
    BASE,
    image_size=64,
    image_scale=(1.0, 1.0),
    sm_patch_size=8,
    sm_enc_depth=2,
    sm_enc_mlp_dim=64,
    lg_patch_size=32,
    lg_enc_depth=3,
    cross_attn_depth=2,
)
EQUAL = CrossViTConfig(
    image_size=32,
    num_classes=5,
    depth=1,
    sm_dim=24,
    sm_patch_size=8,
    sm_enc_heads=4,
    sm_enc_mlp_dim=60,
    lg_dim=24,
    lg_enc_depth=2,
    lg_enc_heads=6,
    lg_enc_mlp_dim=72,
    qkv_bias=False,
)
MEAN = replace(SHRUNK, image_size=(48, 60), lg_enc_depth=(2, 1), lg_enc_mlp_dim=96, pool="mean")
CROP = replace(SHRUNK, depth=1, lg_enc_mlp_dim=96, convolutional_embedding=True, crop_scale=True)
GOLDEN = {
    "crossvit-plain": (PLAIN, "official"),
    "crossvit-dagger": (DAGGER, "official"),
    # The image of 48 pixels is not the config's 60: each branch resamples it to its own size.
    "crossvit-up240": (replace(WIDE, depth=1, sm_enc_mlp_dim=64), "official"),
    "crossvit-down": (replace(WIDE, lg_enc_depth=1, convolutional_embedding=True), "official"),
    "crossvit-crossdepth2": (CROSS_DEPTH, "official"),
    "crossvit-nobias-equal": (EQUAL, "official"),
    "crossvit-timm-rect-avg": (MEAN, "timm"),
    "crossvit-timm-crop": (CROP, "timm"),
}

SEED = CrossViTConfig(
    image_size=256,
    num_classes=1000,
    depth=4,
    sm_dim=192,
    sm_patch_size=16,
    sm_enc_depth=2,
    sm_enc_heads=8,
    sm_enc_mlp_dim=2048,
    lg_dim=384,
    lg_patch_size=64,
    lg_enc_depth=3,
    lg_enc_heads=8,
    lg_enc_mlp_dim=2048,
    cross_attn_depth=2,
    cross_attn_heads=8,
    dropout=0.1,
    emb_dropout=0.1,
)
SEED_CALLS = {SEED: 46_141_200}
PRESETS = MODELS["cross_vit"].presets
FULL_SIZE = {
    "crossvit-presets/crossvit_tiny_240": (PRESETS["crossvit_tiny_240"], "official"),
    "crossvit-presets/crossvit_9_240": (PRESETS["crossvit_9_240"], "official"),
    "crossvit-presets/crossvit_15_dagger_240": (PRESETS["crossvit_15_dagger_240"], "official"),
    "crossvit-presets/seed_call": (SEED, "official"),
}

INITIAL = (
    replace(BASE, sm_dim=192, lg_dim=96),
    {
        "blocks.0.block.branches.*.attention.*.weight": ("normal", 0.02),
        "blocks.0.block.branches.*.mlp.*.weight": ("normal", 0.02),
        "blocks.0.block.branches.*.bias": ("constant", 0.0),
        "blocks.0.block.fusions.*.key_value.weight": ("normal", 0.02),
        "blocks.0.block.fusions.*.revert.weight": ("normal", 0.02),
        "blocks.0.block.fusions.*.bias": ("constant", 0.0),
        "embeddings.0.patch_embedding.linear.*": ("uniform", 1 / np.sqrt(12 * 12 * 3)),
        "embeddings.*.position_embedding": ("normal", 0.02),
        "embeddings.*.class_token": ("normal", 0.02),
        "head.*.weight": ("normal", 0.02),
        "head.*.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    def two(least: int, most: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    grid, patch_size, factors, (small_heads, large_heads) = two(1, 4), two(1, 9), two(1, 3), two(1, 3)
    large_patch = (patch_size[0] * factors[0], patch_size[1] * factors[1])
    image_size = (grid[0] * large_patch[0], grid[1] * large_patch[1])
    depths = draw(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=3))
    scale = draw(st.sampled_from([1.0, 2.0, 4 / 3]))
    config = replace(
        TINY,
        image_size=image_size,
        image_scale=(scale, 1.0),
        depth=len(depths),
        sm_dim=4 * small_heads,
        sm_patch_size=patch_size,
        sm_enc_depth=tuple(small for small, _ in depths),
        sm_enc_heads=small_heads,
        lg_dim=8 * large_heads,
        lg_patch_size=large_patch,
        lg_enc_depth=tuple(large for _, large in depths),
        lg_enc_heads=large_heads,
        cross_attn_depth=draw(st.integers(0, 2)),
        channels=draw(st.integers(1, 4)),
        pool=draw(st.sampled_from(["cls", "mean"])),
    )
    rows, columns = (int(side * scale + 1e-6) // patch for side, patch in zip(image_size, patch_size, strict=True))
    small, large = (1 + rows * columns, 4 * small_heads), (1 + grid[0] * grid[1], 8 * large_heads)
    return config, image_size, (small, large)


REFUSED = [
    ({"convolutional_embedding": True}, "needs patches of 12 or 16"),
    (
        {
            "image_size": 48,
            "image_scale": (1.0, 0.8),
            "sm_patch_size": 12,
            "lg_patch_size": 16,
            "convolutional_embedding": True,
        },
        r"is not a multiple of \(16, 16\): use \(32, 32\) or \(48, 48\)",
    ),
    ({"sm_enc_heads": 3}, "sm_dim 8 is not a multiple of sm_enc_heads 3: change one, or give sm_enc_dim_head"),
    ({"sm_dim": 20, "cross_attn_heads": 5}, r"lg_dim 16 is not a multiple of cross_attn_heads 5.*cross_attn_dim_head"),
    ({"lg_enc_depth": (1, 2, 3)}, "lg_enc_depth has 3 values"),
    ({"image_scale": (1.0, 0.1)}, r"image_size 24 \* 0.1 is smaller than lg_patch_size \(8, 8\)"),
    ({"image_scale": (1.0, 0.0)}, "image_scale must be above 0"),
]


@st.composite
def refused(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    patch_size = draw(st.sampled_from([12, 16]))
    size = draw(st.integers(12, 100).filter(lambda size: size % patch_size))
    changes = {
        "image_size": size,
        "image_scale": (1.0, 1.0),
        "sm_patch_size": patch_size,
        "lg_patch_size": patch_size,
        "convolutional_embedding": draw(st.booleans()),
    }
    return changes, f"image_size {size} is not a multiple of {patch_size}: use "
