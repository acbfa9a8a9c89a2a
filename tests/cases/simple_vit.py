"""SimpleViT: golden files of big_vision."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import draw_patch_grid

from eqx_vit import SimpleViTConfig

TINY = SimpleViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24)

BASE = SimpleViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=3, mlp_dim=96)
LEARNED = replace(BASE, learned_positions=True)
REPRESENTATION = SimpleViTConfig(
    image_size=(24, 40), patch_size=8, num_classes=7, dim=32, depth=2, heads=4, representation_size=32
)
GOLDEN = {
    "simple_vit-gap": (BASE, "official"),
    "simple_vit-rep": (REPRESENTATION, "official"),
    "simple_vit-scan": (replace(BASE, representation_size=20), "official_scan"),
    "simple_vit-map-learn": (replace(LEARNED, pool="map"), "official"),
    "simple_vit-tok-learn": (replace(LEARNED, pool="cls"), "official"),
    "simple_vit-eps": (LEARNED, "official"),
}

SEED = SimpleViTConfig(image_size=256, patch_size=32, num_classes=1000, dim=1024, depth=6, heads=16, mlp_dim=2048)
SEED_CALLS = {SEED: 54_573_032}

INITIAL = (
    replace(LEARNED, dim=192, mlp_dim=768, depth=3, pool="map", representation_size=192),
    {
        "blocks.block.attention.*.weight": ("uniform", np.sqrt(6 / (192 + 192))),
        "blocks.block.attention.*.bias": ("constant", 0.0),
        "*.mlp.*.weight": ("uniform", np.sqrt(6 / (192 + 768))),
        "*.mlp.*.bias": ("normal", 1e-6),
        "patch_embedding.linear.weight": ("normal", 1 / np.sqrt(8 * 8 * 3)),
        "patch_embedding.linear.bias": ("constant", 0.0),
        "position_embedding": ("normal", 1 / np.sqrt(192)),
        "attention_pool.probe": ("uniform", np.sqrt(6 / (1 + 192))),
        "attention_pool.query.weight": ("uniform", np.sqrt(6 / (192 + 192))),
        "attention_pool.key_value.weight": ("uniform", np.sqrt(6 / (192 + 192))),
        "attention_pool.projection.linear.weight": ("uniform", np.sqrt(6 / (192 + 192))),
        "attention_pool.projection.linear.bias": ("constant", 0.0),
        "pre_logits.weight": ("normal", 1 / np.sqrt(192)),
        "head.*": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    config, rows, columns = draw_patch_grid(
        draw,
        TINY,
        pool=st.sampled_from(["mean", "cls", "map", "first"]),
        learned_positions=st.booleans(),
        representation_size=st.none() | st.integers(1, 9),
    )
    return config, config.image_size, ((config.pool == "cls") + rows * columns, config.dim)


REFUSED = [
    ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
    ({"dim": 4, "heads": 1}, "multiple of 4 and at least 8, given 4: change it, or give learned_positions=True"),
    ({"dim": 10, "heads": 1}, "multiple of 4 and at least 8, given 10"),
]
REFUSED_SIZES = [
    ({}, (40, 25), r"\(40, 25\) is not a multiple of 8: use \(40, 24\) or \(40, 32\)"),
    ({"learned_positions": True}, (40, 24), r"eqx_vit\.resize\(model, \(40, 24\)\)"),
]
