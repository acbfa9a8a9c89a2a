"""ViT: golden files of timm, DeiT, transformers and google-research."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import draw_patch_grid

from eqx_vit import ViTConfig

TINY = ViTConfig(image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24)

BASE = ViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=3, mlp_dim=192)
PATCHES = replace(BASE, pool="mean", class_token=False)
REGISTERS = replace(PATCHES, image_size=(32, 48), register_tokens=4, prefix_positions=False, layer_scale=1e-5)
EPS = replace(BASE, mlp_dim=96)
REPRESENTATION = ViTConfig(
    image_size=(24, 40),
    patch_size=8,
    num_classes=6,
    dim=32,
    depth=2,
    heads=4,
    mlp_dim=96,
    pool="mean",
    class_token=False,
    pool_norm=False,
    representation_size=20,
    approximate_gelu=True,
)
GOLDEN = {
    "vit-cls": (BASE, "timm"),
    "vit-avg": (replace(BASE, pool="mean"), "timm"),
    "vit-gap": (replace(PATCHES, pool_norm=False), "timm"),
    "vit-reg4gap": (REGISTERS, "timm"),
    "vit-clsreg2": (replace(BASE, register_tokens=2, layer_scale=1e-4), "timm"),
    "vit-qknorm": (replace(BASE, patch_size=(8, 4), mlp_dim=120, qk_norm=True, qkv_bias=False), "timm"),
    "vit-prenorm": (replace(BASE, pre_norm=True, prefix_positions=False), "timm"),
    "vit-headdim": (replace(BASE, heads=4, dim_head=8), "timm"),
    "vit-distilled": (replace(BASE, distillation=True), "timm"),
    "vit-deit3": (replace(BASE, prefix_positions=False, layer_scale=1e-6), "official"),
    "vit-hf": (replace(BASE, norm_eps=1e-12), "hf"),
    "vit-jax-token": (replace(BASE, approximate_gelu=True), "flax"),
    "vit-jax-gap-rep": (REPRESENTATION, "flax"),
    "vit-eps": (replace(EPS, qk_norm=True), "timm"),
    "vit-eps-avg": (replace(EPS, pool="mean", pre_norm=True), "timm"),
    "vit-eps-hf": (replace(EPS, norm_eps=1e-12), "hf"),
}

SEED_CALLS = {
    ViTConfig(
        image_size=256,
        patch_size=32,
        num_classes=1000,
        dim=1024,
        depth=6,
        heads=16,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
    ): 54_640_616
}

INITIAL = (
    replace(BASE, dim=192, mlp_dim=768, depth=3),
    {
        "blocks.block.attention.*.weight": ("uniform", np.sqrt(6 / (192 + 192))),
        "patch_embedding.linear.weight": ("normal", 1 / np.sqrt(8 * 8 * 3)),
        "blocks.block.mlp.fc1.bias": ("normal", 1e-6),
        "position_embedding": ("normal", 0.02),
        "head.weight": ("constant", 0.0),
        "class_token": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    config, rows, columns = draw_patch_grid(
        draw, TINY, pool=st.sampled_from(["cls", "mean"]), register_tokens=st.integers(0, 3)
    )
    return config, config.image_size, (1 + config.register_tokens + rows * columns, config.dim)


REFUSED = [
    ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
    ({"class_token": False}, "class_token=False needs pool='mean'"),
    ({"distillation": True, "register_tokens": 1}, "distillation=True needs pool='cls' and register_tokens=0"),
    ({"distillation": True, "pool_norm": True}, "distillation=True needs pool_norm=False"),
    ({"distillation": True, "representation_size": 8}, "representation_size=None"),
]
