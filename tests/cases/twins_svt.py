"""Twins: golden files of the official code and timm."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import TwinsSVTConfig


def by_stage(**values: Any) -> dict[str, Any]:
    """`emb_dim=(8, 16, ...)` as `s1_emb_dim=8, s2_emb_dim=16, ...`; one value stands for all stages."""
    each = {name: value if isinstance(value, tuple) else (value,) * 4 for name, value in values.items()}
    return {f"s{stage + 1}_{name}": value[stage] for name, value in each.items() for stage in range(4)}


TINY = TwinsSVTConfig(
    num_classes=5,
    **by_stage(emb_dim=8, patch_size=(4, 2, 2, 1), local_patch_size=2, global_k=(2, 2, 1, 1), depth=(1, 1, 2, 3)),
)

BASE = TwinsSVTConfig(
    num_classes=8,
    **by_stage(emb_dim=(16, 32, 48, 64), heads=(1, 2, 4, 4), depth=(1, 1, 2, 3), local_patch_size=(4, 4, 2, 2)),
)
NONSQUARE = TwinsSVTConfig(
    num_classes=6,
    **by_stage(emb_dim=(16, 24, 40, 64), heads=(2, 3, 4, 8), depth=(1, 2, 1, 4)),
    **by_stage(local_patch_size=(8, 4, 4, 2), global_k=(4, 4, 2, 2)),
)
PAD = TwinsSVTConfig(
    num_classes=5, **by_stage(emb_dim=(16, 24, 48, 64), heads=(1, 2, 4, 2), depth=(1, 1, 2, 2), global_k=(5, 3, 2, 1))
)
GOLDEN = {
    "twins_svt-svt": (BASE, "official"),
    "twins_svt-nonsquare": (NONSQUARE, "official"),
    "twins_svt-timm-pad": (PAD, "timm"),
}

SEED = TwinsSVTConfig(
    num_classes=1000,
    **by_stage(
        emb_dim=(64, 128, 256, 512), patch_size=(4, 2, 2, 2), local_patch_size=7, global_k=7, depth=(1, 1, 5, 4)
    ),
    peg_kernel_size=3,
    dropout=0.0,
)
SEED_CALLS = {SEED: 64_978_792, replace(SEED, **by_stage(global_k=(8, 4, 2, 1))): 24_060_776}

INITIAL = (
    BASE,
    {
        "stages.2.patch_embedding.linear.weight": ("normal", np.sqrt(2 / (2 * 2 * 48))),
        "stages.2.blocks.*.attention.reduction.linear.weight": ("normal", np.sqrt(2 / (2 * 2 * 48))),
        "stages.2.position_encoding.weight": ("normal", np.sqrt(2 / 9)),
        "stages.2.*.mlp.*.weight": ("normal", 0.02),
        "stages.2.*.attention.*qkv.weight": ("normal", 0.02),
        "stages.2.*.attention.query.weight": ("normal", 0.02),
        "head.weight": ("normal", 0.02),
        "*.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    def four(values: st.SearchStrategy[int]) -> Any:
        return draw(st.tuples(values, values, values, values))

    patches = four(st.integers(1, 3))
    config = TwinsSVTConfig(
        num_classes=5,
        channels=draw(st.integers(1, 4)),
        local_attention=draw(st.booleans()),
        pairs=draw(st.booleans()),
        **by_stage(emb_dim=(8, 16, 8, 24), heads=2, patch_size=patches, local_patch_size=draw(st.integers(1, 5))),
        **by_stage(global_k=four(st.integers(1, 4)), depth=four(st.integers(1, 4))),
    )
    sides = st.integers(config.smallest_image, config.smallest_image + 70)
    rows, columns = height, width = draw(st.tuples(sides, sides))
    for patch in patches:
        rows, columns = rows // patch, columns // patch
    return config, (height, width), (rows, columns, 24)


REFUSED = [
    ({"peg_kernel_size": 2}, "peg_kernel_size must be odd"),
    ({"s2_heads": 3}, "s2_emb_dim 8 is not a multiple of its heads 3"),
    ({"s3_local_patch_size": 0}, "s3_local_patch_size must be at least 1"),
]
REFUSED_SIZES = [({}, (15, 32), r"takes images of at least \(16, 16\)")]
