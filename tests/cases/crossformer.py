"""CrossFormer: golden files of the official code."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import CrossFormerConfig

TINY = CrossFormerConfig(
    num_classes=5,
    dim=(64, 128),
    depth=(3, 2),
    global_window_size=(2, 1),
    local_window_size=2,
    mlp_ratio=1,
    cross_embed_kernel_sizes=((2, 4), (2, 4)),
    cross_embed_strides=2,
)

BASE = CrossFormerConfig(num_classes=5, dim=(16, 32, 64, 128), heads=(2, 2, 4, 4), depth=(2, 3, 2, 1))
GOLDEN = {
    "crossformer-lsda": (
        replace(
            BASE,
            num_classes=8,
            depth=(2, 2, 2, 1),
            heads=(1, 2, 2, 4),
            local_window_size=4,
            global_window_size=(4, 2, 1, 1),
        ),
        "official",
    ),
    "crossformer-pad": (replace(BASE, local_window_size=5, global_window_size=(3, 2, 1, 1)), "official"),
    "crossformer-wide": (
        CrossFormerConfig(
            num_classes=6, dim=(24, 48, 96, 192), depth=(1, 2, 1, 1), heads=(2, 4, 3, 6), mlp_ratio=(4.0, 4.0, 2.0, 1.0)
        ),
        "official",
    ),
    "crossformer-pp": (
        replace(
            BASE,
            depth=(2, 1, 5, 1),
            local_window_size=(4, 4, 4, 2),
            global_window_size=(4, 2, 1, 1),
            mlp_ratio=2.0,
            cooling=True,
        ),
        "official",
    ),
}

SEED = CrossFormerConfig(
    num_classes=1000, dim=(64, 128, 256, 512), depth=(2, 2, 8, 2), global_window_size=(8, 4, 2, 1), local_window_size=7
)
SEED_CALLS = {SEED: 15_404_140}

INITIAL = (
    replace(BASE, dim=(256, 128, 64, 64)),
    {
        "stages.*.attention.qkv.weight": ("normal", 0.02),
        "stages.*.attention.projection.linear.weight": ("normal", 0.02),
        "stages.*.attention.position_bias.linears.?.weight": ("normal", 0.02),
        "stages.*.mlp.fc?.weight": ("normal", 0.02),
        "stages.*.bias": ("constant", 0.0),
        "embedding.convs.0.*": ("uniform", 1 / np.sqrt(3 * 4 * 4)),
        "embedding.convs.1.*": ("uniform", 1 / np.sqrt(3 * 8 * 8)),
        "mergings.0.embedding.convs.1.*": ("uniform", 1 / np.sqrt(256 * 4 * 4)),
        "head.weight": ("normal", 0.02),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    stages, grid = draw(st.integers(1, 3)), draw(st.tuples(*[st.integers(1, 5)] * 2))
    config = CrossFormerConfig(
        num_classes=5,
        dim=(16, 24, 32)[:stages],
        depth=draw(st.integers(1, 7)),
        global_window_size=draw(st.integers(1, 4)),
        local_window_size=draw(st.integers(1, 6)),
        heads=draw(st.sampled_from([1, 2, 4])),
        mlp_ratio=1.5,
        cross_embed_kernel_sizes=((4, 8, 16, 32), (2, 4))[:stages],
        cross_embed_strides=(4, 2)[:stages],
        channels=draw(st.integers(1, 4)),
        cooling=draw(st.booleans()),
    )
    step = 4 * 2 ** (stages - 1)
    height, width = (step * side + draw(st.integers(0, 3)) for side in grid)
    return config, (height, width), (*grid, config.dim[-1])


REFUSED = [
    ({"heads": 3}, "dim 64 is not a multiple of heads 3"),
    ({"dim": (16, 32)}, "dim 16 is below 32"),
    ({"dim": (12, 24), "heads": 2}, "dim 12 is below 16"),
    ({"depth": (1, 2, 3)}, "depth has 3 values for 2 stages"),
    ({"cross_embed_kernel_sizes": ((2, 5),)}, "must each be stride 2 plus an even number"),
    ({"cross_embed_kernel_sizes": ((2, 4, 6, 8),), "dim": (20, 40), "heads": 2}, "dim 20 is not a multiple of 8"),
    ({"mlp_ratio": 0.5}, "mlp_ratio must be at least 1"),
]
