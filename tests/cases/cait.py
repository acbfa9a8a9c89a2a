"""CaiT: golden files of the official code."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import draw_patch_grid

from eqx_vit import CaiTConfig

TINY = CaiTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24)

BASE = CaiTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=4, mlp_dim=192)
NO_BIAS = CaiTConfig(
    image_size=(24, 40),
    patch_size=8,
    num_classes=7,
    dim=36,
    depth=3,
    cls_depth=1,
    heads=3,
    mlp_dim=72,
    cls_mlp_dim=108,
    qkv_bias=False,
)
GOLDEN = {
    "cait-base": (BASE, "official"),
    "cait-nobias": (NO_BIAS, "official"),
    "cait-eps": (replace(BASE, mlp_dim=96), "official"),
}

SEED = CaiTConfig(
    image_size=256,
    patch_size=32,
    num_classes=1000,
    dim=1024,
    depth=12,
    cls_depth=2,
    heads=16,
    mlp_dim=2048,
    dropout=0.1,
    emb_dropout=0.1,
    layer_dropout=0.05,
)
SEED_CALLS = {SEED: 121_873_768, replace(SEED, cls_mlp_dim=4096): 130_266_472}

INITIAL = (
    replace(BASE, dim=192, depth=3, heads=24, dim_head=8, mlp_dim=768),
    {
        "*blocks.block.attention.*.weight": ("normal", 0.02),
        "*blocks.block.attention.*.bias": ("constant", 0.0),
        "*blocks.block.mlp.*.weight": ("normal", 0.02),
        "*blocks.block.mlp.*.bias": ("constant", 0.0),
        "*blocks.block.layer_scale?.gamma": ("constant", 0.1),
        "patch_embedding.linear.*": ("uniform", 1 / np.sqrt(8 * 8 * 3)),
        "class_token": ("normal", 0.02),
        "position_embedding": ("normal", 0.02),
        "head.weight": ("normal", 0.02),
        "head.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    config, rows, columns = draw_patch_grid(
        draw, TINY, cls_depth=st.integers(1, 3), dim_head=st.none() | st.integers(1, 8)
    )
    return config, config.image_size, (1 + rows * columns, config.dim)
