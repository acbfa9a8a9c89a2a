"""RegionViT: golden files of the official code."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import RegionViTConfig

TINY = RegionViTConfig(
    num_classes=5,
    dim=(8, 16),
    depth=(2, 2),
    window_size=2,
    heads=2,
    mlp_ratio=1.5,
    tokenize_local_3_conv=True,
    use_peg=True,
)

BASE = RegionViTConfig(num_classes=5, dim=(16, 32, 64, 128), heads=2, window_size=2)
THREE_CONVS = replace(BASE, tokenize_local_3_conv=True)
PEG = replace(THREE_CONVS, depth=(2, 1, 2, 1), heads=(2, 4, 4, 8), use_peg=True)
ODD = replace(THREE_CONVS, depth=(2, 1, 2, 2), heads=(2, 2, 4, 4), window_size=3)
WINDOW_14 = replace(BASE, num_classes=7, depth=(1, 1, 2, 2), heads=(1, 2, 4, 8), window_size=4, use_peg=True)
GOLDEN = {
    "regionvit-3conv": (
        replace(THREE_CONVS, num_classes=8, depth=(1, 2, 2, 1), heads=(1, 2, 4, 4), window_size=3),
        "official",
    ),
    "regionvit-1conv": (replace(BASE, num_classes=6, depth=(2, 1, 2, 1), heads=(2, 2, 4, 8)), "official"),
    "regionvit-peg": (PEG, "official"),
    "regionvit-w14like": (WINDOW_14, "official"),
    "regionvit-odd": (ODD, "official"),
}

SEED_CALLS = {
    RegionViTConfig(
        dim=(64, 128, 256, 512),
        depth=(2, 2, 8, 2),
        window_size=7,
        num_classes=1000,
        tokenize_local_3_conv=False,
        use_peg=False,
    ): 13_831_348
}

INITIAL = (
    replace(PEG, dim=(128, 256), depth=2, heads=4, tokenize_local_3_conv=False),
    {
        "stages.1.blocks.block.attention.qkv.weight": ("normal", 0.02),
        "stages.1.blocks.block.attention.projection.linear.weight": ("normal", 0.02),
        "stages.1.blocks.block.attention.position_bias": ("normal", 0.02),
        "stages.1.blocks.block.mlp.*.weight": ("normal", 0.02),
        "stages.1.blocks.block.mlp.*.bias": ("constant", 0.0),
        "stages.1.downsample.conv.*": ("uniform", 1 / 3),  # depthwise: nine inputs
        "stages.1.peg.weight": ("uniform", 1 / 3),
        "local_stem.convs.0.*": ("uniform", 1 / np.sqrt(3 * 8 * 8)),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    size, stages = draw(st.tuples(*[st.integers(2, 70)] * 2)), draw(st.integers(1, 3))
    config = replace(
        TINY,
        dim=(8, 16, 16)[:stages],
        depth=draw(st.integers(1, 2)),
        window_size=draw(st.integers(1, 5)),
        tokenize_local_3_conv=draw(st.booleans()),
        use_peg=draw(st.booleans()),
        heads=draw(st.sampled_from([1, 2, 4])),
        channels=draw(st.integers(1, 4)),
    )
    patch = config.region_patch_size
    whole = size[0] % patch == size[1] % patch == 0
    regions = [side // patch + (not whole) for side in size]  # the official padding adds to both sides or none
    for _ in range(stages - 1):
        regions = [(count + 1) // 2 for count in regions]
    return config, size, (*regions, config.dim[-1])


REFUSED = [
    ({"heads": 3}, "dim 8 is not a multiple of heads 3"),
    ({"heads": None}, "dim 8 is below 32"),
    ({"dim": (16, 24)}, "dim 24 is not a multiple of 16"),
    ({"depth": (1, 2, 3)}, "depth has 3 values for 2 stages"),
    ({"mlp_ratio": 0.01}, "mlp_ratio leaves no MLP"),
    ({"local_patch_size": 8}, "and 4 with tokenize_local_3_conv"),
    ({"dim": (18, 36)}, "dim 18 is not a multiple of 4"),
]
REFUSED_SIZES = [({"tokenize_local_3_conv": False}, (1, 9), r"takes images of at least \(2, 2\), given \(1, 9\)")]
