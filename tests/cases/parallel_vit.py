"""ParallelViT: golden files of DeiT's code and timm."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import draw_patch_grid

from eqx_vit import ParallelViTConfig

TINY = ParallelViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24)

BASE = ParallelViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=3, mlp_dim=96)
TIMM = replace(BASE, prefix_positions=True)
NO_BIAS = replace(BASE, image_size=(24, 40), dim=40, heads=5, mlp_dim=80, qkv_bias=False, layer_scale=1e-4)
GOLDEN = {
    "parallel_vit-x2": (replace(BASE, mlp_dim=192), "official"),
    "parallel_vit-x2ls": (NO_BIAS, "official"),
    "parallel_vit-timm3ls": (replace(TIMM, num_parallel_branches=3, layer_scale=1e-5), "timm"),
    "parallel_vit-headdim": (replace(TIMM, heads=2, dim_head=8), "timm"),
}

SEED = ParallelViTConfig(
    image_size=256,
    patch_size=16,
    num_classes=1000,
    dim=1024,
    depth=6,
    heads=8,
    mlp_dim=2048,
    num_parallel_branches=2,
    dropout=0.1,
    emb_dropout=0.1,
)
SEED_CALLS = {SEED: 102_876_136, replace(SEED, dim_head=64): 77_691_880}

INITIAL = (
    replace(BASE, dim=192, layer_scale=1e-4),
    {
        "patch_embedding.linear.*": ("uniform", 1 / np.sqrt(8 * 8 * 3)),
        "encoder.class_token": ("normal", 0.02),
        "encoder.position_embedding": ("normal", 0.02),
        "encoder.blocks.block.*.block.layer.*.weight": ("normal", 0.02),
        "encoder.blocks.block.*.block.layer.*.bias": ("constant", 0.0),
        "encoder.blocks.block.*.block.layer_scale.gamma": ("constant", 1e-4),
        "head.weight": ("normal", 0.02),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    config, rows, columns = draw_patch_grid(
        draw,
        TINY,
        num_parallel_branches=st.integers(1, 3),
        prefix_positions=st.booleans(),
        pool_norm=st.booleans(),
        pool=st.sampled_from(["cls", "mean"]),
    )
    config = replace(config, class_token=config.pool == "cls" or draw(st.booleans()))
    return config, config.image_size, (config.class_token + rows * columns, config.dim)


REFUSED = [
    ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
    ({"class_token": False}, "class_token=False needs pool='mean'"),
]
REFUSED_SIZES = [({}, (24, 16), r"this ParallelViT takes images of \(16, 16\), given \(24, 16\)")]
