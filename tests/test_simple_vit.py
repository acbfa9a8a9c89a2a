"""SimpleViT against the golden files of big_vision."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import SimpleViT, SimpleViTConfig
from eqx_vit.layers import resize_grid_corners, sincos_2d
from eqx_vit.testing import shapes
from eqx_vit.weights import load_state_dict, to_state_dict

BASE = SimpleViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=3, mlp_dim=96)
CASES = {
    "simple_vit-gap": (BASE, "official"),
    "simple_vit-rep": (
        SimpleViTConfig(
            image_size=(24, 40), patch_size=8, num_classes=7, dim=32, depth=2, heads=4, representation_size=32
        ),
        "official",
    ),
    "simple_vit-scan": (replace(BASE, representation_size=20), "official_scan"),
    "simple_vit-map-learn": (replace(BASE, pool="map", learned_positions=True), "official"),
    "simple_vit-tok-learn": (replace(BASE, pool="cls", learned_positions=True), "official"),
    "simple_vit-eps": (replace(BASE, learned_positions=True), "official"),
}
# Parameters with a linear head, and with a tanh layer as wide as the tokens before it.
PARAMETERS = {
    "simple_vit_mu16": (70_376, 71_432),
    "simple_vit_ti16": (5_679_400, 5_716_456),
    "simple_vit_s16": (21_974_632, 22_122_472),
    "simple_vit_s32": (22_859_368, 23_007_208),
    "simple_vit_m16": (38_736_360, 38_999_016),
    "simple_vit_b16": (86_415_592, 87_006_184),
    "simple_vit_b32": (88_185_064, 88_775_656),
    "simple_vit_l16": (304_123_880, 305_173_480),
    "simple_vit_h14": (631_715_560, 633_355_240),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_golden_tokens(name: str) -> None:
    golden, model, _ = golden_files.loaded(name, *CASES[name])
    images = golden.image_batch()
    tokens = eqx.filter_vmap(model.features)(images)
    golden_files.close(tokens, golden.arrays["aux/encoded"], 2e-5, name)
    patches = eqx.filter_vmap(model.patch_embedding)(images)
    positions = sincos_2d(*model.config.grid, model.config.dim)
    if model.position_embedding is not None:
        positions = model.position_embedding.reshape(positions.shape)
    placed = (patches + positions[None]).reshape(len(images), -1, model.config.dim)
    golden_files.close(placed, golden.arrays["aux/with_posemb"], 2e-5, name)


def test_sine_cosine_tables() -> None:
    for name, expected in golden_files.read("simple_vit-sincos").arrays.items():
        rows, columns, dim = map(int, name.removeprefix("table/").split("x"))
        golden_files.close(sincos_2d(rows, columns, dim).reshape(expected.shape), expected, 2e-5, name)


@pytest.mark.parametrize("name", ["simple_vit-gap", "simple_vit-rep", "simple_vit-map-learn", "simple_vit-tok-learn"])
def test_weights_travel_through_timms_names(name: str) -> None:
    golden, model, state = golden_files.loaded(name, *CASES[name])
    weights = to_state_dict(model, state, "timm")
    assert weights["pos_embed"].shape == (1, *golden.arrays["aux/with_posemb"].shape[1:])
    fresh, state = eqx_vit.create(model.config, key=jax.random.key(1))
    again, _ = load_state_dict(fresh, state, weights, source="timm")
    assert eqx.tree_equal(again, model)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 5)), ((7, 5), (3, 9)), ((5, 6), (1, 2)), ((3, 4), (3, 4))])
def test_learned_positions_resize_as_in_big_vision(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = np.random.RandomState(0).standard_normal((*old, 8)).astype(np.float32)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = scipy.ndimage.zoom(table, zoom, order=1)
    golden_files.close(resize_grid_corners(jnp.asarray(table), new), expected, 2e-5, f"{old} to {new}")


def test_resize() -> None:
    model, _ = eqx_vit.create(replace(BASE, learned_positions=True), key=jax.random.key(0))
    image = jnp.zeros((40, 24, 3))
    with pytest.raises(ValueError, match=r"eqx_vit\.resize\(model, \(40, 24\)\)"):
        model(image)
    resized = eqx_vit.resize(model, (40, 24))
    assert resized.position_embedding.shape == (15, 48)
    assert resized(image).shape == (7,)


def test_fixed_positions_take_any_number_of_patches() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (40, 24, 3))
    assert model.features(image).shape == (15, 48)
    np.testing.assert_array_equal(eqx_vit.resize(model, (40, 24)).features(image), model.features(image))
    with pytest.raises(ValueError, match=r"\(40, 25\) is not a multiple of 8: use \(40, 24\) or \(40, 32\)"):
        model(jnp.zeros((40, 25, 3)))


def test_initialisation_is_the_official_one() -> None:
    config = replace(BASE, dim=192, mlp_dim=768, depth=3, pool="map", learned_positions=True, representation_size=192)
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    block, pool = model.blocks.block, model.attention_pool
    limit = np.sqrt(6 / (192 + 192))
    for linear in (block.attention.qkv, block.attention.projection, pool.query, pool.key_value, pool.projection):
        assert np.abs(linear.weight).max() <= limit
        assert np.isclose(np.std(linear.weight), limit / np.sqrt(3), rtol=0.02)
        assert not np.any(linear.bias)
    assert np.isclose(np.std(block.mlp.expand.weight), np.sqrt(2 / (192 + 768)), rtol=0.02)
    assert np.isclose(np.std(block.mlp.expand.bias), 1e-6, rtol=0.1)
    assert np.isclose(np.std(model.patch_embedding.linear.weight), 1 / np.sqrt(8 * 8 * 3), rtol=0.02)
    assert np.isclose(np.std(model.position_embedding), 1 / np.sqrt(192), rtol=0.1)
    assert np.isclose(np.std(pool.probe), np.sqrt(2 / (1 + 192)), rtol=0.2)
    assert np.isclose(np.std(model.pre_logits.weight), 1 / np.sqrt(192), rtol=0.02)
    assert not np.any(model.head.weight)
    assert not np.array_equal(model.blocks[0].attention.qkv.weight, model.blocks[1].attention.qkv.weight)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    depth=st.integers(1, 3),
    channels=st.integers(1, 4),
    pool=st.sampled_from(["mean", "cls", "map", "first"]),
    learned_positions=st.booleans(),
    representation_size=st.none() | st.integers(1, 9),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    heads: int,
    depth: int,
    channels: int,
    pool: Any,
    learned_positions: bool,
    representation_size: int | None,
) -> None:
    image_size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = SimpleViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        mlp_dim=16,
        channels=channels,
        pool=pool,
        learned_positions=learned_positions,
        representation_size=representation_size,
    )
    features, logits = shapes(SimpleViT, config, image_size)
    assert features == ((pool == "cls") + grid[0] * grid[1], 8 * heads)
    assert logits == (5,)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 64))
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int) -> None:
    assume(size % patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, patch_size=patch_size)


@pytest.mark.parametrize("dim", [4, 10])
def test_widths_that_the_table_cannot_have_are_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4 and at least 8, given {dim}"):
        replace(BASE, dim=dim, heads=1)
    replace(BASE, dim=dim, heads=1, learned_positions=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_official_size(name: str) -> None:
    config = eqx_vit.MODELS["simple_vit"].presets[name]
    for preset, count in zip((config, replace(config, representation_size=config.dim)), PARAMETERS[name], strict=True):
        model = eqx.filter_eval_shape(SimpleViT, preset, key=jax.random.key(0))
        assert eqx_vit.count_params(model) == count


def test_seed_call_has_the_official_structure() -> None:
    config = SimpleViTConfig(image_size=256, patch_size=32, num_classes=1000, dim=1024, depth=6, heads=16, mlp_dim=2048)
    model = eqx.filter_eval_shape(SimpleViT, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 54_573_032
