"""DeepViT: golden files of the official code."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import DeepViTConfig

TINY = DeepViTConfig(
    image_size=16,
    patch_size=8,
    num_classes=5,
    dim=16,
    depth=2,
    heads=2,
    mlp_dim=24,
    re_attention_depth=1,
    convolutional_stem=True,
)

BASE = DeepViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=3, heads=4, mlp_dim=144)
STEM = replace(BASE, convolutional_stem=True, branch_scale=0.5)
SMALL = replace(STEM, heads=6, re_attention_depth=1, re_attention_scale=True)
LARGE = replace(STEM, patch_size=16, dim=36, depth=2, heads=3, mlp_dim=108, re_attention_depth=1)
GOLDEN = {
    "deepvit-full": (BASE, "official"),
    "deepvit-S": (SMALL, "official"),
    "deepvit-L": (LARGE, "official"),
    "deepvit-vit": (replace(BASE, re_attention_depth=0, qkv_bias=False), "official"),
    "deepvit-eps": (replace(STEM, depth=2, mlp_dim=96), "official"),
}

SEED_CALLS = {
    DeepViTConfig(
        image_size=256,
        patch_size=32,
        num_classes=1000,
        dim=1024,
        depth=6,
        heads=16,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
    ): 54_642_440
}

INITIAL = (
    replace(STEM, dim=192, heads=12, mlp_dim=192, depth=4, re_attention_depth=3),
    {
        "*blocks.block.attention.qkv.weight": ("normal", 0.02),
        "*blocks.block.attention.projection.linear.weight": ("normal", 0.02),
        "*blocks.block.attention.projection.linear.bias": ("constant", 0.0),
        "*blocks.block.mlp.*.weight": ("normal", 0.02),
        "*blocks.block.mlp.*.bias": ("constant", 0.0),
        "re_attention_blocks.block.attention.mix.*": ("uniform", 1 / np.sqrt(12)),
        "stem.conv1.weight": ("uniform", 1 / np.sqrt(7 * 7 * 3)),
        "stem.conv2.weight": ("uniform", 1 / np.sqrt(3 * 3 * 64)),
        "patch_embedding.linear.*": ("uniform", 1 / np.sqrt(4 * 4 * 64)),
        "class_token": ("normal", 0.02),
        "position_embedding": ("normal", 0.02),
        "head.weight": ("normal", 0.02),
    },
)


def indices(depth: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Some of the blocks, at least one."""
    return st.sets(st.integers(0, depth - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    (rows, columns), patch_size = draw(st.tuples(*[st.integers(1, 6)] * 2)), draw(st.tuples(*[st.integers(1, 9)] * 2))
    heads, depth, stem = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.booleans())
    if stem:
        patch_size = (2 * patch_size[0], 2 * patch_size[1])
    config = replace(
        TINY,
        image_size=(rows * patch_size[0], columns * patch_size[1]),
        patch_size=patch_size,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        channels=draw(st.integers(1, 4)),
        pool=draw(st.sampled_from(["cls", "mean"])),
        convolutional_stem=stem,
        **draw(
            st.fixed_dictionaries({"re_attention_depth": st.none() | st.integers(0, depth)})
            | st.fixed_dictionaries({"re_attention_depth": st.none(), "re_attention_indices": indices(depth)})
        ),
    )
    return config, config.image_size, (1 + rows * columns, 8 * heads)


REFUSED = [
    ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
    ({"image_size": 28, "patch_size": 7}, "patch_size 7 is not a multiple of 2: use 6 or 8"),
    ({"re_attention_depth": 3}, "re_attention_depth 3 must be at most depth 2"),
    ({"re_attention_depth": -1}, "re_attention_depth must not be negative"),
    ({"re_attention_indices": (0,)}, "re_attention_depth and re_attention_indices both say which blocks"),
    (
        {"re_attention_depth": None, "re_attention_indices": (0, 2)},
        r"rising numbers from 0 to depth - 1 = 1, given \(0, 2\)",
    ),
    (
        {"re_attention_depth": None, "re_attention_indices": (1, 0)},
        r"rising numbers from 0 to depth - 1 = 1, given \(1, 0\)",
    ),
    ({"re_attention_depth": None, "re_attention_indices": ()}, "re_attention_indices must be tuple"),
    ({"branch_scale": 0.0}, "branch_scale must be positive"),
]
