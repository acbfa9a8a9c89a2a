"""PatchMergerViT: golden files of vit-pytorch and of timm's blocks."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from eqx_vit import PatchMergerViTConfig

TINY = PatchMergerViTConfig(
    image_size=16, patch_size=8, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, patch_merge_num_tokens=3
)

BASE = PatchMergerViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=3, heads=3, mlp_dim=96)
VIT_PYTORCH = replace(BASE, qkv_bias=False, patch_norm=True, norm_eps=1e-5, patch_merge_num_tokens=5)
ONE_HEAD = replace(
    VIT_PYTORCH,
    image_size=(24, 40),
    num_classes=6,
    dim=16,
    depth=4,
    heads=1,
    mlp_dim=40,
    project_out=False,
    patch_merge_num_tokens=3,
)
UNREAD = ("pos_embedding",)  # its last row
GOLDEN = {
    "patch_merger-plain": (replace(BASE, patch_merge_layer=1, patch_merge_num_tokens=4), "timm"),
    "patch_merger-vitpt": (replace(VIT_PYTORCH, patch_merge_layer=2), "vit_pytorch", UNREAD),
    "patch_merger-vitpt-default": (ONE_HEAD, "vit_pytorch", UNREAD),
    "patch_merger-eps": (replace(VIT_PYTORCH, mlp_dim=64, patch_merge_layer=1), "vit_pytorch", UNREAD),
}

SEED = PatchMergerViTConfig(
    image_size=256,
    patch_size=16,
    num_classes=1000,
    dim=1024,
    depth=12,
    heads=8,
    patch_merge_layer=6,
    patch_merge_num_tokens=8,
    mlp_dim=2048,
    dropout=0.1,
    emb_dropout=0.1,
)
SEED_VIT_PYTORCH = replace(SEED, qkv_bias=False, patch_norm=True)
SEED_CALLS = {
    SEED: 102_885_352,
    replace(SEED, dim_head=64): 77_701_096,
    # vit-pytorch's counts, less the row of its position table that is never read.
    SEED_VIT_PYTORCH: 102_853_096 - 1024,
    replace(SEED_VIT_PYTORCH, dim_head=64): 77_687_272 - 1024,
}

INITIAL = (
    replace(BASE, dim=192, mlp_dim=768, num_classes=100),
    {
        "patch_embedding.linear.weight": ("normal", 0.02),
        "patch_embedding.linear.bias": ("constant", 0.0),
        "position_embedding": ("normal", 0.02),
        "*blocks.block.attention.*.weight": ("normal", 0.02),
        "*blocks.block.attention.*.bias": ("constant", 0.0),
        "*blocks.block.mlp.*.weight": ("normal", 0.02),
        "*blocks.block.mlp.*.bias": ("constant", 0.0),
        "patch_merger.queries": ("normal", 1.0),
        "head.weight": ("normal", 0.02),
        "head.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    (rows, columns), patch_size = draw(st.tuples(*[st.integers(1, 6)] * 2)), draw(st.tuples(*[st.integers(1, 9)] * 2))
    heads, depth, merged = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 40))
    config = replace(
        TINY,
        image_size=(rows * patch_size[0], columns * patch_size[1]),
        patch_size=patch_size,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        patch_merge_layer=draw(st.none() | st.integers(1, depth)),
        patch_merge_num_tokens=merged,
        channels=draw(st.integers(1, 4)),
        patch_norm=draw(st.booleans()),
    )
    return config, config.image_size, (merged, 8 * heads)


REFUSED = [
    ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
    ({"patch_merge_layer": 0}, "patch_merge_layer must be at least 1, given 0"),
    ({"patch_merge_layer": 3}, "patch_merge_layer counts blocks from 1: use 1 to 2, given 3"),
    ({"project_out": False, "dim_head": 4}, "project_out=False needs heads"),
]
