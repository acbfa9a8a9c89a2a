"""NesT: golden files of the official Flax code and timm."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from eqx_vit import MODELS, NesTConfig

TINY = NesTConfig(image_size=16, patch_size=4, num_classes=5, dim=8, heads=2, num_hierarchies=2, block_repeats=(1, 2))

BASE = NesTConfig(
    image_size=64, patch_size=4, num_classes=7, dim=16, heads=2, num_hierarchies=3, block_repeats=(1, 2, 1)
)
TWO_STAGES = NesTConfig(
    image_size=48, patch_size=4, num_classes=6, dim=24, heads=3, num_hierarchies=2, block_repeats=(2, 1)
)
CIFAR = NesTConfig(
    image_size=32,
    patch_size=1,
    num_classes=10,
    dim=24,
    heads=3,
    num_hierarchies=4,
    block_repeats=1,
    scale_dims=1,
    multi_query=True,
)
TIMM = replace(BASE, dim=(16, 32, 48), heads=(2, 4, 6), block_repeats=(1, 1, 2), approximate_gelu=False)
SYMMETRIC = replace(
    TWO_STAGES, num_classes=5, dim=(16, 40), heads=(4, 5), approximate_gelu=False, pool_padding="symmetric"
)
GOLDEN = {
    "nest-official": (BASE, "flax"),
    "nest-official-window7": (
        replace(BASE, image_size=56, patch_size=2, num_classes=5, dim=12, heads=3, block_repeats=1),
        "flax",
    ),
    "nest-official-2level-nobias": (replace(TWO_STAGES, mlp_mult=2, qkv_bias=False), "flax"),
    "nest-official-mqa-cifar": (CIFAR, "flax"),
    "nest-timm-jx": (TIMM, "timm"),
    "nest-timm-sym": (SYMMETRIC, "timm"),
}

SEED = NesTConfig(
    image_size=224, patch_size=4, dim=96, heads=3, num_hierarchies=3, block_repeats=(2, 2, 8), num_classes=1000
)
SEED_CALLS = {SEED: 17_057_608}
FULL_SIZE = {
    "nest-presets/nest_tiny_jx": (MODELS["nest"].presets["nest_tiny_jx"], "timm"),
    "nest-presets/nest_tiny": (MODELS["nest"].presets["nest_tiny"], "timm"),
    "nest-presets/seed_call": (SEED, "timm"),
}

CUT = 0.02 * 0.8796  # the deviation of a normal one of 0.02 that is cut at two deviations, as Flax has it
INITIAL = (
    replace(BASE, dim=48, num_classes=100),
    {
        "patch_embedding.linear.weight": ("normal", CUT),
        "stages.0.position_embedding": ("normal", CUT),
        "stages.1.aggregation.conv.weight": ("normal", CUT),
        "stages.1.blocks.block.attention.*.weight": ("normal", CUT),
        "stages.1.blocks.block.mlp.*.weight": ("normal", CUT),
        "head.weight": ("normal", CUT),
        "patch_embedding.linear.bias": ("constant", 0.0),
        "stages.1.aggregation.conv.bias": ("constant", 0.0),
        "stages.1.blocks.block.mlp.*.bias": ("constant", 0.0),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    window, patch_size = draw(st.tuples(*[st.integers(1, 5)] * 2)), draw(st.tuples(*[st.integers(1, 5)] * 2))
    stages, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = (side * patch * 2 ** (stages - 1) for side, patch in zip(window, patch_size, strict=True))
    config = NesTConfig(
        image_size=(height, width),
        patch_size=patch_size,
        num_classes=5,
        dim=4 * heads,
        heads=heads,
        num_hierarchies=stages,
        block_repeats=1,
        channels=draw(st.integers(1, 4)),
        multi_query=draw(st.booleans()),
        pool_padding=draw(st.sampled_from(["same", "symmetric"])),
    )
    return config, (height, width), (*window, 4 * heads * 2 ** (stages - 1))


REFUSED = [
    ({"heads": 3}, "dim 8 is not a multiple of heads 3"),
    ({"block_repeats": (1, 1, 1, 1)}, r"block_repeats has 4 values for 2 stages \(num_hierarchies\)"),
    ({"mlp_mult": 0.01}, "mlp_mult leaves no MLP"),
    ({"pool_padding": "valid"}, "pool_padding must be 'same' | 'symmetric'"),
]


@st.composite
def refused(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    patch_size, stages = draw(st.integers(1, 8)), draw(st.integers(2, 4))
    step = patch_size * 2 ** (stages - 1)
    size = draw(st.integers(1, 100).filter(lambda size: size % step))
    changes = {"image_size": size, "patch_size": patch_size, "num_hierarchies": stages, "block_repeats": 1}
    return changes, f"image_size {size} is not a multiple of {step}: use "
