"""DeepViT against the golden files of the official code."""

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
from eqx_vit import DeepViT, DeepViTConfig
from eqx_vit.layers import resize_table
from eqx_vit.testing import shapes

BASE = DeepViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=3, heads=4, mlp_dim=144)
STEM = replace(BASE, convolutional_stem=True, branch_scale=0.5)
CASES = {
    "deepvit-full": BASE,
    "deepvit-S": replace(STEM, heads=6, re_attention_depth=1, re_attention_scale=True),
    "deepvit-L": replace(STEM, patch_size=16, dim=36, depth=2, heads=3, mlp_dim=108, re_attention_depth=1),
    "deepvit-vit": replace(BASE, re_attention_depth=0, qkv_bias=False),
    "deepvit-eps": replace(STEM, depth=2, mlp_dim=96),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, CASES[name], "official")


def test_initialisation_is_the_official_one() -> None:
    config = replace(STEM, dim=192, heads=12, mlp_dim=192, depth=4, re_attention_depth=3)
    model, state = eqx_vit.create(config, key=jax.random.key(0))
    for stack in (model.blocks, model.re_attention_blocks):
        assert np.isclose(np.std(stack.block.attention.qkv.weight), 0.02, rtol=0.02)
        assert np.isclose(np.std(stack.block.mlp.expand.weight), 0.02, rtol=0.02)
        assert not np.any(stack.block.mlp.expand.bias)
        assert not np.any(stack.block.attention.projection.bias)
    attention = model.re_attention_blocks.block.attention
    for array in (attention.mix.weight, attention.mix.bias):
        assert np.abs(array).max() <= 1 / np.sqrt(12)
        assert np.isclose(np.std(array), 1 / np.sqrt(3 * 12), rtol=0.15)
    assert np.isclose(np.std(model.stem.conv1.weight), 1 / np.sqrt(3 * 7 * 7 * 3), rtol=0.02)
    assert np.isclose(np.std(model.patch_embedding.linear.weight), 1 / np.sqrt(3 * 4 * 4 * 64), rtol=0.02)
    for array in (model.class_token, model.position_embedding, model.head.weight):
        assert np.isclose(np.std(array), 0.02, rtol=0.15)
    mean, variance = model.re_attention_blocks.state_at(state, 0).get(attention.mix_norm.statistics)
    assert not np.any(mean)
    assert np.all(np.asarray(variance) == 1)


def test_resize_resamples_the_positions_of_the_patches() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    larger = eqx_vit.resize(model, (48, 32))
    assert larger.config == replace(BASE, image_size=(48, 32))
    expected = resize_table(model.position_embedding, (4, 4), (6, 4))
    np.testing.assert_array_equal(larger.position_embedding, expected)
    assert np.array_equal(larger.position_embedding[0], model.position_embedding[0])


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    depth=st.integers(1, 3),
    mixing=st.integers(0, 3),
    channels=st.integers(1, 4),
    stem=st.booleans(),
    pool=st.sampled_from(["cls", "mean"]),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    heads: int,
    depth: int,
    mixing: int,
    channels: int,
    stem: bool,
    pool: Any,
) -> None:
    if stem:
        patch_size = (2 * patch_size[0], 2 * patch_size[1])
    image_size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = DeepViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        mlp_dim=16,
        pool=pool,
        channels=channels,
        re_attention_depth=min(mixing, depth),
        convolutional_stem=stem,
    )
    features, logits = shapes(DeepViT, config, image_size)
    assert features == (1 + grid[0] * grid[1], 8 * heads)
    assert logits == (5,)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 64))
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int) -> None:
    assume(size % patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, patch_size=patch_size)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_size 7 is not a multiple of 2: use 6 or 8"):
        replace(STEM, image_size=28, patch_size=7)
    with pytest.raises(ValueError, match="re_attention_depth 4 must be between 0 and depth 3"):
        replace(BASE, re_attention_depth=4)
    with pytest.raises(ValueError, match="branch_scale must be positive"):
        replace(BASE, branch_scale=0.0)


def test_seed_call_has_the_official_structure() -> None:
    config = DeepViTConfig(
        image_size=256,
        patch_size=32,
        num_classes=1000,
        dim=1024,
        depth=6,
        heads=16,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
    )
    model = eqx.filter_eval_shape(DeepViT, config, key=jax.random.key(0))
    # The shapes of the initial BatchNorm statistics are still in it: counted by name, as parameters only.
    assert eqx_vit.count_params(eqx.nn.delete_init_state(model)) == 54_642_440
