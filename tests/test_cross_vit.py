"""CrossViT against the golden files of the official code and timm."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import CrossViT, CrossViTConfig
from eqx_vit.models.cross_vit import drop_scales, fitted
from eqx_vit.testing import shapes

BASE = CrossViTConfig(
    image_size=48,
    image_scale=(1.0, 64 / 48),
    num_classes=5,
    depth=2,
    sm_dim=16,
    sm_enc_heads=2,
    sm_enc_mlp_dim=48,
    lg_dim=24,
    lg_enc_depth=2,
    lg_enc_heads=3,
    lg_enc_mlp_dim=48,
    cross_attn_depth=0,
)
PLAIN = replace(BASE, sm_dim=24, sm_enc_heads=3, sm_enc_mlp_dim=72, lg_dim=32, lg_enc_heads=4, lg_enc_mlp_dim=128)
SHRUNK = replace(BASE, image_size=60, image_scale=(1.0, 0.8))
WIDE = replace(SHRUNK, lg_dim=32, lg_enc_heads=4, lg_enc_mlp_dim=96)
SEED = CrossViTConfig(
    image_size=256,
    num_classes=1000,
    depth=4,
    sm_dim=192,
    sm_patch_size=16,
    sm_enc_depth=2,
    sm_enc_heads=8,
    sm_enc_mlp_dim=2048,
    lg_dim=384,
    lg_patch_size=64,
    lg_enc_depth=3,
    lg_enc_heads=8,
    lg_enc_mlp_dim=2048,
    cross_attn_depth=2,
    cross_attn_heads=8,
    dropout=0.1,
    emb_dropout=0.1,
)
CASES = {
    "crossvit-plain": (replace(PLAIN, num_classes=7), "official"),
    "crossvit-dagger": (
        replace(BASE, num_classes=6, convolutional_embedding=True, sm_enc_depth=(1, 2), lg_enc_heads=2),
        "official",
    ),
    # The image of 48 pixels is not the config's 60: each branch resamples it to its own size.
    "crossvit-up240": (replace(WIDE, depth=1, sm_enc_mlp_dim=64), "official"),
    "crossvit-down": (replace(WIDE, lg_enc_depth=1, convolutional_embedding=True), "official"),
    "crossvit-crossdepth2": (
        replace(
            BASE,
            image_size=64,
            image_scale=(1.0, 1.0),
            sm_patch_size=8,
            sm_enc_depth=2,
            sm_enc_mlp_dim=64,
            lg_patch_size=32,
            lg_enc_depth=3,
            cross_attn_depth=2,
        ),
        "official",
    ),
    "crossvit-nobias-equal": (
        CrossViTConfig(
            image_size=32,
            num_classes=5,
            depth=1,
            sm_dim=24,
            sm_patch_size=8,
            sm_enc_heads=4,
            sm_enc_mlp_dim=60,
            lg_dim=24,
            lg_enc_depth=2,
            lg_enc_heads=6,
            lg_enc_mlp_dim=72,
            qkv_bias=False,
        ),
        "official",
    ),
    "crossvit-timm-rect-avg": (
        replace(SHRUNK, image_size=(48, 60), lg_enc_depth=(2, 1), lg_enc_mlp_dim=96, pool="mean"),
        "timm",
    ),
    "crossvit-timm-crop": (
        replace(SHRUNK, depth=1, lg_enc_mlp_dim=96, convolutional_embedding=True, crop_scale=True),
        "timm",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


def test_images_resample_as_in_torch() -> None:
    golden = golden_files.read("crossvit-bicubic")
    for index, (_, size) in enumerate(golden.meta["pairs"]):
        image = jnp.asarray(np.moveaxis(golden.arrays[f"in{index}"][0], 0, -1))
        expected = np.moveaxis(golden.arrays[f"out{index}"][0], 0, -1)
        golden_files.close(fitted(image, tuple(size), crop=False), expected, 2e-5, f"out{index}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("crossvit_tiny_240", eqx_vit.MODELS["cross_vit"].presets["crossvit_tiny_240"]),
        ("crossvit_9_240", eqx_vit.MODELS["cross_vit"].presets["crossvit_9_240"]),
        ("crossvit_15_dagger_240", eqx_vit.MODELS["cross_vit"].presets["crossvit_15_dagger_240"]),
        ("seed_call", SEED),
    ],
)
def test_full_size(variant: str, config: CrossViTConfig) -> None:
    golden_files.check_preset("crossvit-presets", variant, config, "official")


def test_initialisation_is_the_official_one() -> None:
    model, _ = eqx_vit.create(replace(BASE, sm_dim=192, lg_dim=96), key=jax.random.key(0))
    block = model.blocks[0].block
    for weight in (
        block.branches[0].block.attention.qkv.weight,
        block.exchanges[1].fusion[0].key_value.weight,
        block.exchanges[1].reversion.linear.weight,
        model.embeddings[0].position_embedding,
    ):
        assert np.isclose(np.std(weight), 0.02, rtol=0.05)
    for embedding in model.embeddings:
        assert np.any(embedding.class_token)
    patches = model.embeddings[0].patch_embedding.linear
    limit = 1 / np.sqrt(12 * 12 * 3)
    for array in (patches.weight, patches.bias):
        assert np.abs(array).max() <= limit
        assert np.isclose(np.std(array), limit / np.sqrt(3), rtol=0.1)
    assert not np.any(block.branches[0].block.attention.qkv.bias)


def test_drop_path_rates_follow_the_official_order() -> None:
    scales = drop_scales(replace(BASE, sm_enc_depth=(1, 2), lg_enc_depth=(2, 3), cross_attn_depth=1))
    total = 7
    expected = [([0], [0, 1], 2), ([3, 4], [3, 4, 5], 6)]
    for (small, large, fusion), found in zip(expected, scales, strict=True):
        for rates, scale in zip((small, large, fusion), found, strict=True):
            np.testing.assert_allclose(scale, np.array(rates) / (total - 1), rtol=1e-6)
    # Without cross_attn_depth the fusion shares the rate of the last large block.
    assert [float(fusion) for *_, fusion in drop_scales(BASE)] == pytest.approx([1 / 3, 1.0])


def test_images_of_any_size_are_taken() -> None:
    features, logits = shapes(CrossViT, BASE, (31, 77))
    assert features == ((17, 16), (17, 24))
    assert logits == (5,)
    model = eqx.filter_eval_shape(CrossViT, BASE, key=jax.random.key(0))
    assert eqx_vit.resize(model, 96).config == BASE
    # Without a head, the pooled features of both branches.
    assert shapes(CrossViT, replace(BASE, num_classes=0), (48, 48))[1] == (16 + 24,)


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    factors=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    depths=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=3),
    cross_attn_depth=st.integers(0, 2),
    channels=st.integers(1, 4),
    scale=st.sampled_from([1.0, 2.0, 4 / 3]),
    pool=st.sampled_from(["cls", "mean"]),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    factors: tuple[int, int],
    heads: tuple[int, int],
    depths: list[tuple[int, int]],
    cross_attn_depth: int,
    channels: int,
    scale: float,
    pool: Any,
) -> None:
    large_patch = (patch_size[0] * factors[0], patch_size[1] * factors[1])
    image_size = (grid[0] * large_patch[0], grid[1] * large_patch[1])
    config = CrossViTConfig(
        image_size=image_size,
        image_scale=(scale, 1.0),
        num_classes=5,
        depth=len(depths),
        sm_dim=4 * heads[0],
        sm_patch_size=patch_size,
        sm_enc_depth=tuple(small for small, _ in depths),
        sm_enc_heads=heads[0],
        sm_enc_mlp_dim=8,
        lg_dim=8 * heads[1],
        lg_patch_size=large_patch,
        lg_enc_depth=tuple(large for _, large in depths),
        lg_enc_heads=heads[1],
        lg_enc_mlp_dim=12,
        cross_attn_depth=cross_attn_depth,
        channels=channels,
        pool=pool,
    )
    features, logits = shapes(CrossViT, config, image_size)
    rows, columns = (int(side * scale + 1e-6) // patch for side, patch in zip(image_size, patch_size, strict=True))
    assert features == ((1 + rows * columns, 4 * heads[0]), (1 + grid[0] * grid[1], 8 * heads[1]))
    assert logits == (5,)


@given(patch_size=st.sampled_from([12, 16]), size=st.integers(12, 100), dagger=st.booleans())
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int, dagger: bool) -> None:
    assume(size % patch_size)
    changes = {"sm_patch_size": patch_size, "lg_patch_size": patch_size, "convolutional_embedding": dagger}
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, image_scale=(1.0, 1.0), **changes)


def test_impossible_configs_say_what_would_work() -> None:
    with pytest.raises(ValueError, match="needs patches of 12 or 16"):
        replace(BASE, sm_patch_size=8, convolutional_embedding=True)
    with pytest.raises(ValueError, match=r"is not a multiple of \(16, 16\): use \(32, 32\) or \(48, 48\)"):
        replace(BASE, image_size=48, image_scale=(1.0, 0.8), convolutional_embedding=True)
    with pytest.raises(ValueError, match=r"dim 24 is not a multiple of cross_attn_heads 5.*give cross_attn_dim_head"):
        replace(BASE, sm_dim=20, cross_attn_heads=5)
    with pytest.raises(ValueError, match="lg_enc_depth has 3 values for depth=2"):
        replace(BASE, lg_enc_depth=(1, 2, 3))


def test_seed_call_has_the_official_structure() -> None:
    model = eqx.filter_eval_shape(CrossViT, SEED, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 46_141_200
