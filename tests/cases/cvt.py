"""CvT: golden files of the official code and transformers."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import assume, strategies as st

from eqx_vit import CvTConfig


def by_stage(**values: Any) -> dict[str, Any]:
    """`emb_dim=(8, 16, 24)` as `s1_emb_dim=8, s2_emb_dim=16, ...`; one value stands for all stages."""
    each = {name: value if isinstance(value, tuple) else (value,) * 3 for name, value in values.items()}
    return {f"s{stage + 1}_{name}": value[stage] for name, value in each.items() for stage in range(3)}


TINY = CvTConfig(num_classes=5, **by_stage(emb_dim=(8, 12, 16), heads=(1, 3, 2), depth=(1, 1, 2)))

BASE = CvTConfig(num_classes=8, **by_stage(emb_dim=(16, 32, 48), heads=(1, 2, 3), depth=(1, 2, 2)))
MEAN_POOL = CvTConfig(
    num_classes=5,
    class_token=False,
    qkv_bias=False,
    **by_stage(emb_dim=(24, 24, 40), heads=(2, 3, 4), depth=(1, 2, 1), mlp_mult=(2, 3, 4)),
    **by_stage(proj_kernel=(3, 5, 3), kv_proj_stride=(2, 2, 1)),
)
GELU = CvTConfig(num_classes=6, quick_gelu=False, **by_stage(emb_dim=(16, 24, 32), heads=(1, 3, 4), depth=(1, 2, 3)))
GOLDEN = {"cvt-cls": (BASE, "official"), "cvt-meanpool-odd": (MEAN_POOL, "official"), "cvt-gelu": (GELU, "official")}

SEED = CvTConfig(
    num_classes=1000,
    **by_stage(emb_dim=(64, 192, 384), emb_kernel=(7, 3, 3), emb_stride=(4, 2, 2), proj_kernel=3),
    **by_stage(kv_proj_stride=2, heads=(1, 3, 4), depth=(1, 2, 10), mlp_mult=4),
    dropout=0.0,
)
SEED_CALLS = {SEED: 19_997_480}

INITIAL = (
    BASE,
    {
        "stages.2.token_embedding.weight": ("uniform", 1 / np.sqrt(9 * 32)),
        "stages.2.blocks.*.conv.weight": ("uniform", 1 / np.sqrt(9)),
        "stages.2.blocks.*.linear.weight": ("normal", 0.02),
        "stages.2.blocks.*.mlp.*.weight": ("normal", 0.02),
        "stages.2.blocks.*.bias": ("constant", 0.0),
        "stages.2.class_token": ("normal", 0.02),
        "head.weight": ("normal", 0.02),
        "head.bias": ("uniform", 1 / np.sqrt(48)),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    def three(least: int, most: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(least, most)] * 3))

    kernels, strides = three(1, 7), three(1, 4)
    config = replace(
        TINY,
        channels=draw(st.integers(1, 4)),
        class_token=draw(st.booleans()),
        **by_stage(emb_dim=(8, 16, 24), heads=2, depth=1, emb_kernel=kernels, emb_stride=strides),
        **by_stage(proj_kernel=draw(st.sampled_from([1, 3, 5])), kv_proj_stride=draw(st.integers(1, 3))),
    )
    rows, columns = height, width = draw(st.tuples(*[st.integers(1, 100)] * 2))
    for kernel, stride in zip(kernels, strides, strict=True):
        padding = max(0, (kernel - stride + 1) // 2)
        assume(min(rows, columns) + 2 * padding >= kernel)
        rows, columns = ((length + 2 * padding - kernel) // stride + 1 for length in (rows, columns))
    return config, (height, width), (config.class_token + rows * columns, 24)


REFUSED = [
    ({"s2_heads": 5}, "s2_emb_dim 12 is not a multiple of s2_heads 5"),
    ({"s1_proj_kernel": 2}, "s1_proj_kernel must be odd"),
    ({"s3_depth": 0}, "s3_depth must be at least 1"),
]
REFUSED_SIZES = [
    (by_stage(emb_kernel=7, emb_stride=7), (48, 49), "too small for the token embedding of stage 2: enlarge the image"),
    ({"s1_emb_stride": 7}, (6, 20), "too small for the token embedding of stage 1.*smaller s1_emb_kernel"),
]
