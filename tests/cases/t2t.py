"""T2T-ViT: golden files of the official code."""

from dataclasses import replace
from typing import Any

from hypothesis import assume, strategies as st

from eqx_vit import MODELS, T2TViTConfig

TINY = T2TViTConfig(image_size=32, num_classes=5, dim=16, depth=2, heads=2, mlp_dim=24, token_dim=8, token_dropout=0.0)

BASE = T2TViTConfig(image_size=48, num_classes=5, dim=24, depth=1, heads=4, mlp_dim=48, token_dim=8)
TRANSFORMER = replace(BASE, depth=2, tokens_type="transformer")
BIAS_AND_SCALE = replace(
    TRANSFORMER, image_size=32, dim=32, heads=2, mlp_dim=96, qkv_bias=True, attention_scale=32**-0.5
)
GOLDEN = {
    "t2t-performer": (replace(BASE, num_classes=7, dim=32, depth=2, mlp_dim=64, token_dim=16), "official"),
    "t2t-transformer": (replace(TRANSFORMER, num_classes=6, heads=3, mlp_dim=72, token_dim=12), "official"),
    "t2t-transformer-qkvbias-scale": (BIAS_AND_SCALE, "official"),
    "t2t-performer-randpos64": (replace(BASE, image_size=64, mlp_dim=60, token_dim=10), "official"),
    "t2t-performer-defaults": (replace(BASE, image_size=32, dim=64, mlp_dim=128, token_dim=64), "official"),
}

SEED = T2TViTConfig(
    dim=512, image_size=224, depth=5, heads=8, mlp_dim=512, num_classes=1000, t2t_layers=((7, 4), (3, 2), (3, 2))
)
SEED_TRANSFORMER = replace(SEED, tokens_type="transformer")
SEED_CALLS = {SEED: 8_858_062, SEED_TRANSFORMER: 8_857_678}
PRESETS = MODELS["t2t"].presets
FULL_SIZE = {
    "t2t-presets/t2t_vit_7": (PRESETS["t2t_vit_7"], "official"),
    "t2t-presets/t2t_vit_14": (PRESETS["t2t_vit_14"], "official"),
    "t2t-presets/t2t_vit_t_14": (PRESETS["t2t_vit_t_14"], "official"),
    "t2t-presets/seed_call": (SEED, "official"),
    "t2t-presets/seed_call_transformer": (SEED_TRANSFORMER, "official"),
}

INITIAL = (
    replace(BASE, dim=192, mlp_dim=384, token_dim=64),
    {
        "token_layers.*.qkv.weight": ("normal", 0.02),
        "token_layers.*.qkv.bias": ("constant", 0.0),
        "token_layers.*.projection.linear.weight": ("normal", 0.02),
        "token_layers.*.mlp.*.weight": ("normal", 0.02),
        "projection.weight": ("normal", 0.02),
        "class_token": ("normal", 0.02),
        "blocks.block.attention.*.weight": ("normal", 0.02),
        "blocks.block.mlp.*.weight": ("normal", 0.02),
        "blocks.block.mlp.*.bias": ("constant", 0.0),
        "head.weight": ("normal", 0.02),
    },
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Any, ...]:
    image_size = draw(st.tuples(*[st.integers(16, 90)] * 2))
    layers = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3))
    heads = draw(st.integers(1, 3))
    rows, columns = image_size
    for kernel, stride in layers:
        rows, columns = ((side + stride // 2 * 2 - kernel) // stride + 1 for side in (rows, columns))
        assume(min(rows, columns) > 0)
    config = replace(
        TINY,
        image_size=image_size,
        dim=8 * heads,
        depth=draw(st.integers(1, 2)),
        heads=heads,
        t2t_layers=tuple(layers),
        channels=draw(st.integers(1, 4)),
        tokens_type=draw(st.sampled_from(["performer", "transformer"])),
        pool=draw(st.sampled_from(["cls", "mean"])),
    )
    return config, image_size, (1 + rows * columns, 8 * heads)


REFUSED = [
    ({"heads": 3}, "dim 16 is not a multiple of heads 3: change one, or give dim_head"),
    ({"token_dim": 1}, "token_dim 1 leaves no random features"),
    ({"t2t_layers": ((7, 4), (3,))}, r"each of t2t_layers is \(kernel, stride\) or .*, given \(3,\)"),
    ({"t2t_layers": ((7, 0), (3, 2))}, r"each of t2t_layers is .*, given \(7, 0\)"),
    ({"t2t_layers": ((7, 4, -1), (3, 2))}, "T2TViTConfig.t2t_layers must not be negative"),
]
