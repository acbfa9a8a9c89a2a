"""DINOv3: golden files of timm, whose weights are those that Meta released."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import draw_patch_grid

from eqx_vit import DINOv3Config

TINY = DINOv3Config(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, register_tokens=2)

BASE = DINOv3Config(
    image_size=(32, 48), patch_size=8, num_classes=7, dim=48, depth=3, heads=4, mlp_dim=192, pool="mean"
)
GOLDEN = {
    "dinov3-qkvb": (BASE, "timm"),
    "dinov3-swiglu": (replace(BASE, qkv_bias=False, swiglu=True), "timm"),
}

INITIAL = (
    replace(TINY, dim=192, heads=3, mlp_dim=768, depth=3),
    {
        "blocks.block.attention.*.weight": ("normal", 0.02),
        "blocks.block.mlp.*.weight": ("normal", 0.02),
        "blocks.block.*.bias": ("constant", 0.0),
        "blocks.block.attention.*_bias": ("constant", 0.0),
        "blocks.block.layer_scale*.gamma": ("constant", 1e-5),
        "patch_embedding.linear.weight": ("uniform", 1 / np.sqrt(8 * 8 * 3)),
        "class_token": ("normal", 0.02),
        "register_tokens": ("normal", 0.02),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    config, rows, columns = draw_patch_grid(
        draw,
        TINY,
        pool=st.sampled_from(["cls", "mean"]),
        register_tokens=st.integers(0, 3),
        swiglu=st.booleans(),
        qkv_bias=st.booleans(),
    )
    return config, config.image_size, (1 + config.register_tokens + rows * columns, config.dim)


REFUSED = [
    ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
    ({"heads": 8}, "multiple of 4, two channels for the angle of each axis; given 2"),
    ({"rotary_base": 0.5}, "rotary_base must be at least 1, given 0.5"),
]
REFUSED_SIZES = [({}, (40, 25), r"\(40, 25\) is not a multiple of 8: use \(40, 24\) or \(40, 32\)")]
