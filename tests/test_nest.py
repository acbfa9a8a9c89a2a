"""NesT against the golden files of the official Flax code and timm."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import NesT, NesTConfig
from eqx_vit.testing import shapes
from eqx_vit.weights.names import name_map

BASE = NesTConfig(
    image_size=64, patch_size=4, num_classes=7, dim=16, heads=2, num_hierarchies=3, block_repeats=(1, 2, 1)
)
CASES = {
    "nest-official": (BASE, "flax"),
    "nest-official-window7": (
        replace(BASE, image_size=56, patch_size=2, num_classes=5, dim=12, heads=3, block_repeats=1),
        "flax",
    ),
    "nest-official-2level-nobias": (
        NesTConfig(
            image_size=48,
            patch_size=4,
            num_classes=6,
            dim=24,
            heads=3,
            num_hierarchies=2,
            block_repeats=(2, 1),
            mlp_mult=2,
            qkv_bias=False,
        ),
        "flax",
    ),
    "nest-official-mqa-cifar": (
        NesTConfig(
            image_size=32,
            patch_size=1,
            num_classes=10,
            dim=24,
            heads=3,
            num_hierarchies=4,
            block_repeats=1,
            scale_dims=1,
            multi_query=True,
        ),
        "flax",
    ),
    "nest-timm-jx": (
        replace(BASE, dim=(16, 32, 48), heads=(2, 4, 6), block_repeats=(1, 1, 2), approximate_gelu=False),
        "timm",
    ),
    "nest-timm-sym": (
        NesTConfig(
            image_size=48,
            patch_size=4,
            num_classes=5,
            dim=(16, 40),
            heads=(4, 5),
            num_hierarchies=2,
            block_repeats=(2, 1),
            approximate_gelu=False,
            pool_padding="symmetric",
        ),
        "timm",
    ),
}
SEED_CALL = NesTConfig(
    image_size=224,
    patch_size=4,
    dim=96,
    heads=3,
    num_hierarchies=3,
    block_repeats=(2, 2, 8),
    num_classes=1000,
)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


@pytest.mark.parametrize("name", [name for name in CASES if "official" in name])
def test_exact_gelu_is_the_other_golden_output(name: str) -> None:
    config, source = CASES[name]
    golden, model, state = golden_files.loaded(name, replace(config, approximate_gelu=False), source)
    logits, _ = eqx.filter_jit(eqx_vit.forward)(model, state, golden.image_batch())
    golden_files.close(logits, golden.arrays["output_exact_gelu"], 2e-5, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("nest_tiny_jx", eqx_vit.MODELS["nest"].presets["nest_tiny_jx"]),
        ("nest_tiny", eqx_vit.MODELS["nest"].presets["nest_tiny"]),
        ("seed_call", SEED_CALL),
    ],
)
def test_full_size(variant: str, config: NesTConfig) -> None:
    golden_files.check_preset("nest-presets", variant, config, "timm")


def test_timm_has_no_multi_query_names() -> None:
    with pytest.raises(ValueError, match="use source='official'"):
        name_map(CASES["nest-official-mqa-cifar"][0], "timm")


def test_initialisation_is_the_official_one() -> None:
    model, _ = eqx_vit.create(replace(BASE, dim=48, num_classes=100), key=jax.random.key(0))
    block = model.levels[1].blocks.block
    for weight in (
        model.patch_embedding.linear.weight,
        model.levels[0].position_embedding,
        model.levels[1].aggregation.conv.weight,
        block.attention.qkv.weight,
        block.attention.projection.weight,
        block.mlp.contract.weight,
        model.head.weight,
    ):
        assert np.abs(weight).max() <= 0.04
        assert np.isclose(np.std(weight), 0.0176, rtol=0.05)
    for bias in (model.patch_embedding.linear.bias, model.levels[1].aggregation.conv.bias, block.mlp.expand.bias):
        assert not np.any(bias)
    assert not np.allclose(block.mlp.expand.weight[0], block.mlp.expand.weight[1])


def test_resize_is_refused() -> None:
    with pytest.raises(ValueError, match="position tables belong to windows of"):
        eqx_vit.resize(eqx.filter_eval_shape(NesT, BASE, key=jax.random.key(0)), 96)


@given(
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    patch_size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    levels=st.integers(1, 3),
    heads=st.integers(1, 3),
    channels=st.integers(1, 4),
    multi_query=st.booleans(),
    padding=st.sampled_from(["same", "symmetric"]),
)
def test_shapes(
    window: tuple[int, int],
    patch_size: tuple[int, int],
    levels: int,
    heads: int,
    channels: int,
    multi_query: bool,
    padding: Any,
) -> None:
    height, width = (side * patch * 2 ** (levels - 1) for side, patch in zip(window, patch_size, strict=True))
    config = NesTConfig(
        image_size=(height, width),
        patch_size=patch_size,
        num_classes=5,
        dim=4 * heads,
        heads=heads,
        num_hierarchies=levels,
        block_repeats=1,
        channels=channels,
        multi_query=multi_query,
        pool_padding=padding,
    )
    features, logits = shapes(NesT, config, (height, width))
    assert features == (*window, 4 * heads * 2 ** (levels - 1))
    assert logits == (5,)


@given(patch_size=st.integers(1, 8), levels=st.integers(1, 4), size=st.integers(1, 100))
def test_maps_that_do_not_split_into_windows_are_refused(patch_size: int, levels: int, size: int) -> None:
    step = patch_size * 2 ** (levels - 1)
    assume(size % step)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {step}: use "):
        replace(BASE, image_size=size, patch_size=patch_size, num_hierarchies=levels, block_repeats=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
        ({"block_repeats": (1, 1, 1, 1)}, "block_repeats has 4 values for num_hierarchies=3"),
        ({"mlp_mult": 0.01}, "mlp_mult leaves no MLP"),
        ({"pool_padding": "valid"}, "pool_padding must be 'same' | 'symmetric'"),
    ],
)
def test_wrong_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)


def test_seed_call_has_the_official_structure() -> None:
    model = eqx.filter_eval_shape(NesT, SEED_CALL, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 17_057_608
