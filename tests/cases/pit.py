"""PiT: golden files of the official code and timm."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqx_vit import MODELS, PiTConfig

TINY = PiTConfig(image_size=24, patch_size=8, num_classes=5, dim=8, depth=(1, 2), heads=(2, 4), distillation=True)

BASE = PiTConfig(image_size=40, patch_size=8, num_classes=5, dim=16, depth=(1, 1, 1), heads=(2, 4, 8))
DISTILLED = PiTConfig(
    image_size=42,
    patch_size=14,
    num_classes=6,
    dim=12,
    depth=(1, 1, 2),
    heads=(1, 2, 4),
    mlp_ratio=3,
    distillation=True,
)
GOLDEN = {
    "pit-basic": (replace(BASE, num_classes=7, depth=(1, 2, 1)), "official"),
    "pit-distilled": (DISTILLED, "official"),
    "pit-evenmap": (replace(BASE, image_size=36, dim=(16, 48, 96), heads=(2, 4, 6), mlp_ratio=2), "official"),
    "pit-2stage": (replace(BASE, image_size=32, patch_size=16, dim=32, depth=(2, 1), heads=(2, 4)), "official"),
    "pit-timm-rect-distilled": (replace(BASE, image_size=(40, 56), distillation=True), "timm"),
}

SEED = PiTConfig(
    image_size=224,
    patch_size=14,
    dim=256,
    num_classes=1000,
    depth=(3, 3, 3),
    heads=16,
    mlp_dim=2048,
    dropout=0.1,
    emb_dropout=0.1,
)
OFFICIAL_RATIOS = replace(SEED, heads=(4, 8, 16), mlp_dim=None)
SEED_CALLS = {SEED: 40_698_344, OFFICIAL_RATIOS: 51_711_464}
PRESETS = MODELS["pit"].presets
FULL_SIZE = {
    "pit-presets/pit_ti": (PRESETS["pit_ti_224"], "official"),
    "pit-presets/pit_s_distilled": (PRESETS["pit_s_distilled_224"], "official"),
    "pit-presets/pit_b": (PRESETS["pit_b_224"], "official"),
    "pit-presets/seed_call": (SEED, "official"),
    "pit-presets/seed_call_official_ratios": (OFFICIAL_RATIOS, "official"),
}

INITIAL = (
    replace(BASE, dim=96, depth=(2, 2, 2), num_classes=200),
    {
        "stages.1.block.attention.*": ("uniform", 1 / np.sqrt(192)),
        "stages.1.block.mlp.fc1.*": ("uniform", 1 / np.sqrt(192)),
        "stages.1.block.mlp.fc2.*": ("uniform", 1 / np.sqrt(768)),
        "pools.0.conv.*": ("uniform", 1 / np.sqrt(9)),
        "pools.0.linear.*": ("uniform", 1 / np.sqrt(96)),
        "patch_embedding.*": ("uniform", 1 / np.sqrt(8 * 8 * 3)),
        "position_embedding": ("normal", 0.02),
        "class_token": ("normal", 0.02),
        "head.*": ("uniform", 1 / np.sqrt(384)),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    patch_size, extra = draw(st.tuples(*[st.integers(1, 9)] * 2)), draw(st.tuples(*[st.integers(0, 40)] * 2))
    stages, heads, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.none() | st.integers(1, 6))
    config = replace(
        TINY,
        image_size=(patch_size[0] + extra[0], patch_size[1] + extra[1]),
        patch_size=patch_size,
        dim=4 * heads,
        depth=(1,) * stages,
        heads=heads,
        channels=draw(st.integers(1, 4)),
        stride=stride,
        distillation=draw(st.booleans()),
    )
    strides = [stride or max(size // 2, 1) for size in patch_size]
    rows, columns = (1 + more // step for more, step in zip(extra, strides, strict=True))
    for _ in range(stages - 1):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return config, config.image_size, (1 + config.distillation + rows * columns, 4 * heads * 2 ** (stages - 1))


REFUSED = [
    ({"heads": 3}, "dim 8 is not a multiple of heads 3"),
    ({"heads": (2, 4, 8)}, "heads has 3 values for 2 stages"),
    ({"mlp_ratio": 0.01}, "mlp_ratio leaves no MLP"),
    ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
]


@st.composite
def refused(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    if draw(st.booleans()):
        patch_size = draw(st.integers(2, 16))
        size = draw(st.integers(1, patch_size - 1))
        message = f"image_size {size} is smaller than patch_size {patch_size}"
        return {"image_size": size, "patch_size": patch_size}, message
    before = draw(st.integers(2, 32))
    after = draw(st.integers(1, 64).filter(lambda after: after % before))
    return {"dim": (before, after), "heads": 1}, f"{after} after {before} is not: use "
