"""ParallelViTHMLP: golden files of DeiT's code."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import ParallelViTHMLPConfig

TINY = ParallelViTHMLPConfig(
    image_size=32, patch_size=16, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, layer_scale=1e-4
)

HMLP = replace(TINY, num_classes=7, dim=48, heads=3, mlp_dim=96)
GOLDEN = {"parallel_vit-hmlp": (replace(HMLP, image_size=(64, 48)), "official"), "parallel_vit-eps": (HMLP, "official")}

INITIAL = (
    replace(HMLP, dim=192),
    {
        "patch_embedding.cuts.0.linear.*": ("uniform", 1 / np.sqrt(4 * 4 * 3)),
        "patch_embedding.cuts.1.linear.*": ("uniform", 1 / np.sqrt(2 * 2 * 48)),
        "patch_embedding.cuts.2.linear.*": ("uniform", 1 / np.sqrt(2 * 2 * 48)),
        "encoder.class_token": ("normal", 0.02),
        "encoder.position_embedding": ("normal", 0.02),
        "encoder.blocks.block.*.block.layer.*.weight": ("normal", 0.02),
        "encoder.blocks.block.*.block.layer_scale.gamma": ("constant", 1e-4),
        "head.weight": ("normal", 0.02),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    rows, columns, heads = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    config = replace(
        TINY, image_size=(16 * rows, 16 * columns), dim=8 * heads, heads=heads, channels=draw(st.integers(1, 4))
    )
    return config, config.image_size, (1 + rows * columns, 8 * heads)


REFUSED = [
    ({"patch_size": 8}, r"cuts patches of 16 .*given patch_size 8: use 16, or ParallelViTConfig"),
    ({"dim": 42}, "dim to be a multiple of 4, given 42"),
    ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
]
REFUSED_SIZES = [({}, (48, 32), r"this ParallelViTHMLP takes images of \(32, 32\), given \(48, 32\)")]
