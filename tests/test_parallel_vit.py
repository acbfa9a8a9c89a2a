"""Parallel ViT, with and without the hMLP stem, against the golden files of DeiT's code and timm."""

from dataclasses import asdict, replace
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
from eqx_vit import ParallelViT, ParallelViTConfig, ParallelViTHMLP, ParallelViTHMLPConfig
from eqx_vit.layers import resize_table
from eqx_vit.testing import shapes
from eqx_vit.weights import load_state_dict, to_state_dict

BASE = ParallelViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=3, mlp_dim=96)
TIMM = replace(BASE, prefix_positions=True)
HMLP = ParallelViTHMLPConfig(**asdict(BASE) | {"patch_size": 16, "layer_scale": 1e-4})
CASES = {
    "parallel_vit-x2": (replace(BASE, mlp_dim=192), "official"),
    "parallel_vit-x2ls": (
        replace(BASE, image_size=(24, 40), dim=40, heads=5, mlp_dim=80, qkv_bias=False, layer_scale=1e-4),
        "official",
    ),
    "parallel_vit-hmlp": (replace(HMLP, image_size=(64, 48)), "official"),
    "parallel_vit-timm3ls": (replace(TIMM, num_parallel_branches=3, layer_scale=1e-5), "timm"),
    "parallel_vit-headdim": (replace(TIMM, heads=2, dim_head=8), "timm"),
    "parallel_vit-eps": (HMLP, "official"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


def test_a_block_is_the_sum_of_its_branches() -> None:
    model, _ = eqx_vit.create(replace(BASE, layer_scale=0.5), key=jax.random.key(0))
    block, scale = model.blocks[0], jnp.ones(())
    tokens = jax.random.normal(jax.random.key(1), (5, 48))
    one, two = block.attentions
    expected = tokens + one(tokens, scale) + two(tokens, scale)
    one, two = block.mlps
    expected = expected + one(expected, scale) + two(expected, scale)
    np.testing.assert_allclose(block(tokens, scale), expected, atol=1e-6)


@pytest.mark.parametrize("source", ["timm", "official"])
def test_one_branch_has_the_names_of_ordinary_blocks(source: str) -> None:
    model, state = eqx_vit.create(replace(BASE, num_parallel_branches=1, layer_scale=0.1), key=jax.random.key(0))
    weights = to_state_dict(model, state, source)
    assert {"blocks.1.norm1.weight", "blocks.1.attn.qkv.weight", "blocks.1.mlp.fc2.bias"} < set(weights)
    again, _ = load_state_dict(model, state, weights, source=source)
    assert eqx.tree_equal(again, model)


def test_three_branches_have_no_official_names() -> None:
    model, state = eqx_vit.create(replace(BASE, num_parallel_branches=3), key=jax.random.key(0))
    with pytest.raises(ValueError, match="one or two branches, not 3: use 'timm'"):
        to_state_dict(model, state, "official")


def test_initialisation_is_the_official_one() -> None:
    model, _ = eqx_vit.create(replace(HMLP, dim=192), key=jax.random.key(0))
    attentions, mlps = model.blocks.block.attentions.block, model.blocks.block.mlps.block
    for weight in (attentions.attention.qkv.weight, attentions.attention.projection.weight, mlps.mlp.expand.weight):
        assert np.isclose(np.std(weight), 0.02, rtol=0.02)
    assert not np.any(attentions.attention.qkv.bias)
    assert np.all(np.asarray(attentions.scale.scale) == np.float32(1e-4))
    for array in (model.class_token, model.position_embedding, model.head.weight):
        assert np.isclose(np.std(array), 0.02, rtol=0.15)
    for cut, fan_in in zip(model.patch_embedding.cuts, (4 * 4 * 3, 2 * 2 * 48, 2 * 2 * 48), strict=True):
        assert np.abs(cut.linear.weight).max() <= 1 / np.sqrt(fan_in)
        assert np.isclose(np.std(cut.linear.weight), 1 / np.sqrt(3 * fan_in), rtol=0.05)
        assert np.any(cut.linear.bias)


@pytest.mark.parametrize("config", [BASE, TIMM, HMLP])
def test_resize_resamples_the_positions_of_the_patches(config: Any) -> None:
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    larger = eqx_vit.resize(model, (64, 32))
    assert larger.config == replace(config, image_size=(64, 32))
    expected = resize_table(model.position_embedding, config.grid, larger.config.grid)
    np.testing.assert_array_equal(larger.position_embedding, expected)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    depth=st.integers(1, 3),
    branches=st.integers(1, 3),
    channels=st.integers(1, 4),
    prefix_positions=st.booleans(),
    pool=st.sampled_from(["cls", "mean"]),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    heads: int,
    depth: int,
    branches: int,
    channels: int,
    prefix_positions: bool,
    pool: Any,
) -> None:
    image_size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = ParallelViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        mlp_dim=16,
        num_parallel_branches=branches,
        pool=pool,
        channels=channels,
        prefix_positions=prefix_positions,
    )
    features, logits = shapes(ParallelViT, config, image_size)
    assert features == (1 + grid[0] * grid[1], 8 * heads)
    assert logits == (5,)


@given(grid=st.tuples(st.integers(1, 6), st.integers(1, 6)), heads=st.integers(1, 3), channels=st.integers(1, 4))
def test_shapes_with_the_stem(grid: tuple[int, int], heads: int, channels: int) -> None:
    image_size = (16 * grid[0], 16 * grid[1])
    config = replace(HMLP, image_size=image_size, dim=8 * heads, heads=heads, channels=channels)
    features, logits = shapes(ParallelViTHMLP, config, image_size)
    assert features == (1 + grid[0] * grid[1], 8 * heads)
    assert logits == (7,)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 64))
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int) -> None:
    assume(size % patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, patch_size=patch_size)


def test_what_the_stem_cannot_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cuts patches of 16 .*given patch_size 8: use 16, or ParallelViTConfig"):
        replace(HMLP, patch_size=8)
    with pytest.raises(ValueError, match="dim to be a multiple of 4, given 42"):
        replace(HMLP, dim=42)


def test_seed_call_has_the_official_structure() -> None:
    config = ParallelViTConfig(
        image_size=256,
        patch_size=16,
        num_classes=1000,
        dim=1024,
        depth=6,
        heads=8,
        mlp_dim=2048,
        num_parallel_branches=2,
        dropout=0.1,
        emb_dropout=0.1,
    )
    counts = {None: 102_876_136, 64: 77_691_880}
    for dim_head, count in counts.items():
        model = eqx.filter_eval_shape(ParallelViT, replace(config, dim_head=dim_head), key=jax.random.key(0))
        assert eqx_vit.count_params(model) == count
