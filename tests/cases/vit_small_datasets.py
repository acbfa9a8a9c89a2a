"""SmallDatasetViT: golden files of the official code."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import draw_patch_grid

from eqx_vit import SmallDatasetViTConfig

TINY = SmallDatasetViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24)

BASE = SmallDatasetViTConfig(image_size=16, patch_size=4, num_classes=7, dim=48, depth=2, heads=4, mlp_dim=96)
PLAIN = replace(BASE, image_size=32, patch_size=8, heads=1, shifted_patches=False, locality_attention=False)
GOLDEN = {
    "vit_small_datasets-sl": (BASE, "official"),
    "vit_small_datasets-lsa": (replace(BASE, image_size=(24, 40), patch_size=8, shifted_patches=False), "official"),
    "vit_small_datasets-spt": (
        replace(BASE, image_size=(12, 18), patch_size=6, heads=3, dim_head=20, locality_attention=False),
        "official",
    ),
    "vit_small_datasets-oddpatch": (replace(BASE, image_size=15, patch_size=5), "official"),
    "vit_small_datasets-base": (PLAIN, "official"),
    "vit_small_datasets-eps": (BASE, "official"),
}

SEED_CALLS = {
    SmallDatasetViTConfig(
        image_size=256,
        patch_size=16,
        num_classes=1000,
        dim=1024,
        depth=6,
        heads=16,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
    ): 55_613_000
}

INITIAL = (
    replace(BASE, dim=192, heads=12, mlp_dim=384, depth=3),
    {
        "blocks.block.attention.qkv.weight": ("normal", np.sqrt(2 / (192 + 3 * 192))),
        "blocks.block.attention.projection.linear.weight": ("normal", np.sqrt(2 / (192 + 192))),
        "blocks.block.attention.projection.linear.bias": ("constant", 0.0),
        "blocks.block.attention.scale": ("constant", 16**-0.5),
        "blocks.block.mlp.*.weight": ("normal", np.sqrt(2 / (192 + 384))),
        "blocks.block.mlp.*.bias": ("constant", 0.0),
        "patch_embedding.linear.weight": ("normal", np.sqrt(2 / (5 * 48 + 192))),
        "patch_embedding.linear.bias": ("constant", 0.0),
        "class_token": ("normal", 1.0),
        "position_embedding": ("normal", 1.0),
        "head.weight": ("normal", np.sqrt(2 / (192 + 7))),
        "head.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    config, rows, columns = draw_patch_grid(
        draw,
        TINY,
        dim_head=st.none() | st.integers(1, 9),
        pool=st.sampled_from(["cls", "mean"]),
        shifted_patches=st.booleans(),
        locality_attention=st.booleans(),
    )
    return config, config.image_size, (1 + rows * columns, config.dim)


REFUSED = [({"heads": 3}, "dim 16 is not a multiple of heads 3")]
