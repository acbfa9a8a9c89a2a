"""ScalableViT: golden files of the official code."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import ScalableViTConfig

TINY = ScalableViTConfig(
    num_classes=5,
    dim=8,
    depth=(2, 3),
    heads=(1, 2),
    ssa_dim_key=(10, 8),
    reduction_factor=(2, 1),
    window_size=(4, None),
    head_dim=16,
)

BASE = ScalableViTConfig(
    num_classes=5,
    dim=8,
    depth=(2, 3, 2, 2),
    heads=(1, 2, 4, 8),
    reduction_factor=(8, 4, 2, 1),
    ssa_dim_key=(10, 10, 10, 8),
    window_size=(4, 4, 2, 2),
)
NONSQUARE = ScalableViTConfig(
    num_classes=6,
    dim=12,
    depth=(2, 2, 3, 2),
    heads=(3, 2, 4, 8),
    ssa_dim_key=(8, 3, 15, 15),
    reduction_factor=(4, 2, 2, 1),
    window_size=(8, 4, 4, 2),
    head_dim=None,
)
WHOLE_MAP = ScalableViTConfig(
    num_classes=7,
    dim=16,
    depth=(1, 2, 2, 1),
    heads=(2, 2, 4, 4),
    reduction_factor=(8, 4, 2, 1),
    ssa_dim_key=(10, 20, 20, 32),
    window_size=None,
    head_dim=None,
)
GOLDEN = {
    "scalable_vit-head4096": (BASE, "official"),
    "scalable_vit-plain-nonsquare": (NONSQUARE, "official"),
    "scalable_vit-wholemap": (WHOLE_MAP, "official"),
}

SEED = ScalableViTConfig(
    num_classes=1000,
    dim=64,
    heads=(2, 4, 8, 16),
    depth=(2, 2, 20, 2),
    ssa_dim_key=(40, 40, 40, 32),
    reduction_factor=(8, 4, 2, 1),
    window_size=(64, 32, None, None),
    dropout=0.1,
)
SEED_CALLS = {SEED: 32_000_472}

INITIAL = (
    replace(TINY, dim=64, depth=(4, 2), heads=2, ssa_dim_key=32),
    {
        "stages.*.attention.*qkv.weight": ("normal", 0.02),
        "stages.*.attention.key_value.weight": ("normal", 0.02),
        "stages.*.mlp.*.weight": ("normal", 0.02),
        "head.fc?.weight": ("normal", 0.02),
        "stages.0.patch_embedding.weight": ("normal", np.sqrt(2 / (7 * 7 * 64))),
        "stages.1.patch_embedding.weight": ("normal", np.sqrt(2 / (3 * 3 * 128))),
        "stages.*.position_generator.weight": ("normal", np.sqrt(2 / (3 * 3))),
        "stages.*.local_interactive_module.weight": ("normal", np.sqrt(2 / (3 * 3))),
        "stages.*.reduction.conv.weight": ("normal", np.sqrt(2 / (2 * 2))),
        "stages.*.reduction.linear.weight": ("normal", np.sqrt(2 / (2 * 32))),
        "*.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    depth = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    reduction, window = draw(st.integers(1, 3)), draw(st.none() | st.integers(1, 7))
    config = ScalableViTConfig(
        num_classes=5,
        dim=8,
        depth=tuple(depth),
        heads=draw(st.integers(1, 2)),
        ssa_dim_key=draw(st.integers(1, 9)),
        reduction_factor=reduction,
        window_size=window,
        channels=draw(st.integers(1, 4)),
        head_dim=12,
    )
    stride = 4 * 2 ** (len(depth) - 1)
    unit = stride * (window or reduction) * (1 if window is None or window >= reduction else reduction)
    height, width = (unit * draw(st.integers(1, 3)) for _ in range(2))
    return config, (height, width), (height // stride, width // stride, 8 * 2 ** (len(depth) - 1))


REFUSED = [
    ({"heads": 3}, "dim 8 is not a multiple of heads 3"),
    ({"reduction_factor": (4, 2, 1)}, "reduction_factor has 3 values for 2 stages"),
    ({"window_size": (0, None)}, "window_size must be at least 1"),
    ({"ff_expansion_factor": 0.1}, "ff_expansion_factor must leave a width"),
]
REFUSED_SIZES = [
    (
        {"window_size": None, "reduction_factor": (8, 1)},
        (16, 64),
        "stage 0 a map that cannot be reduced 8 times: use at least 32",
    )
]
