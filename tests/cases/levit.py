"""LeViT: golden files of the official code and timm."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import MODELS, LeViTConfig

TINY = LeViTConfig(image_size=64, num_classes=5, stages=2, dim=16, depth=2, heads=2, dim_key=4, dim_value=8)

BASE = LeViTConfig(image_size=64, num_classes=5, dim_key=8, dim_value=16, depth=1)
DISTILLED = replace(BASE, dim=(32, 48, 64), heads=(4, 6, 8), num_classes=7, num_distill_classes=7)
RATIOS = LeViTConfig(
    image_size=80,
    num_classes=5,
    stages=2,
    dim=(32, 48),
    depth=1,
    heads=(2, 3),
    mlp_mult=(2, 3),
    dim_key=16,
    dim_value=(16, 32),
    num_distill_classes=5,
    downsample_heads=(2,),
    downsample_dim_value=48,
)
GOLDEN = {
    "levit-distilled": (DISTILLED, "official"),
    "levit-nodistill": (
        replace(BASE, image_size=96, dim=(32, 40, 48), heads=(3, 5, 6), depth=(1, 2, 1), num_classes=6),
        "official",
    ),
    "levit-big112": (
        replace(BASE, image_size=112, dim=(24, 32, 40), heads=(2, 3, 4), num_distill_classes=5),
        "official",
    ),
    "levit-ratios": (RATIOS, "official"),
    "levit-timm-rect": (
        replace(BASE, image_size=(64, 112), dim=(24, 32, 40), heads=(3, 4, 5), num_distill_classes=5),
        "timm",
    ),
}

SEED = LeViTConfig(
    image_size=224, num_classes=1000, stages=3, dim=(256, 384, 512), depth=4, heads=(4, 6, 8), mlp_mult=2, dropout=0.1
)
SEED_CALLS = {SEED: 18_379_852}
PRESETS = MODELS["levit"].presets
FULL_SIZE = {
    "levit-presets/LeViT_128S": (PRESETS["levit_128s"], "official"),
    "levit-presets/LeViT_256": (PRESETS["levit_256"], "official"),
    "levit-presets/LeViT_384": (PRESETS["levit_384"], "official"),
    "levit-presets/seed_call": (replace(SEED, dropout=0.0), "official"),
}

INITIAL = (
    DISTILLED,
    {
        "stages.*.attention.projection.norm.weight": ("constant", 0.0),
        "stages.*.mlp.fc2.norm.weight": ("constant", 0.0),
        "stages.*.qkv.norm.weight": ("constant", 1.0),
        "downsamples.*.attention.*.norm.weight": ("constant", 1.0),
        "*.norm.bias": ("constant", 0.0),
        "*.position_bias": ("constant", 0.0),
        "stages.0.*.mlp.fc1.linear.weight": ("uniform", 1 / np.sqrt(32)),
        "downsamples.0.attention.[qk]*.linear.weight": ("uniform", 1 / np.sqrt(32)),
        "stem.0.conv.weight": ("uniform", 1 / np.sqrt(9 * 3)),
        "head*.linear.weight": ("normal", 0.02),
        "head*.linear.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    rows, columns = draw(st.tuples(*[st.integers(1, 9)] * 2))
    config = replace(
        TINY,
        image_size=(16 * rows, 16 * columns),
        stages=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 3)),
        depth=draw(st.integers(1, 2)),
        channels=draw(st.integers(1, 4)),
    )
    for _ in range(config.stages - 1):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return config, config.image_size, (rows * columns, 16)


REFUSED = [
    ({"dim": (16, 16, 16)}, "dim has 3 values for 2 stages"),
    ({"dim": 12}, "the first dim must be a multiple of 8"),
    ({"dim_key": 32}, "dim 16 is smaller than dim_key 32: give downsample_heads"),
    ({"downsample_dim_key": 17}, "dim 16 is smaller than dim_key 17: give downsample_heads"),
    ({"downsample_mlp_mult": 0}, "downsample_mlp_mult must be at least 1"),
    ({"downsample_dim_key": (4, 4, 4)}, "downsample_dim_key has 3 values for 2 stages"),
    ({"downsample_heads": (1, 2)}, r"downsample_heads needs stages - 1 = 1 values, given \(1, 2\)"),
    ({"num_distill_classes": 4}, r"num_distill_classes 4 must be None or num_classes \(5\)"),
]
REFUSED_SIZES = [({}, (64, 80), r"takes images of \(64, 64\), given \(64, 80\).*build one with image_size=\(64, 80\)")]


@st.composite
def refused(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    size = draw(st.integers(1, 300).filter(lambda size: size % 16))
    return {"image_size": size}, f"image_size {size} is not a multiple of 16: use "
