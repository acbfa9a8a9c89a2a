"""SimpleViT beyond the tables: its tokens and its position tables, fixed and learned."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from cases.simple_vit import BASE, GOLDEN, LEARNED

import eqx_vit
from eqx_vit import SimpleViT
from eqx_vit.layers import Attention, OutputProjection, resize_grid_corners, sincos_2d
from eqx_vit.models.simple_vit import PRESETS
from eqx_vit.weights import load_state_dict, to_state_dict

# Parameters with a tanh layer as wide as the tokens before the head, as the official code has it by `rep_size=True`.
WITH_REPRESENTATION = {
    "simple_vit_mu16": 71_432,
    "simple_vit_ti16": 5_716_456,
    "simple_vit_s16": 22_122_472,
    "simple_vit_s32": 23_007_208,
    "simple_vit_m16": 38_999_016,
    "simple_vit_b16": 87_006_184,
    "simple_vit_b32": 88_775_656,
    "simple_vit_l16": 305_173_480,
    "simple_vit_h14": 633_355_240,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_features_are_the_golden_tokens(name: str) -> None:
    golden, model, _ = golden_files.loaded(name, *GOLDEN[name])
    images = golden.image_batch()
    golden_files.close(eqx.filter_vmap(model.features)(images), golden.arrays["aux/encoded"], 2e-5, name)
    placed = jax.vmap(lambda image: model.embed(image, key=None))(images)
    prefix = 0 if model.class_token is None else 1
    golden_files.close(placed[:, prefix:], golden.arrays["aux/with_posemb"], 2e-5, name)


def test_sine_cosine_tables() -> None:
    for name, expected in golden_files.read("simple_vit-sincos").arrays.items():
        rows, columns, dim = map(int, name.removeprefix("table/").split("x"))
        golden_files.close(sincos_2d(rows, columns, dim).reshape(expected.shape), expected, 2e-5, name)


@pytest.mark.parametrize("name", ["simple_vit-gap", "simple_vit-rep", "simple_vit-map-learn", "simple_vit-tok-learn"])
def test_weights_travel_through_timms_names(name: str) -> None:
    golden, model, state = golden_files.loaded(name, *GOLDEN[name])
    weights = to_state_dict(model, state, "timm")
    assert weights["pos_embed"].shape == (1, *golden.arrays["aux/with_posemb"].shape[1:])
    fresh, state = eqx_vit.create(model.config, key=jax.random.key(1))
    again, _ = load_state_dict(fresh, state, weights, source="timm")
    assert eqx.tree_equal(again, model)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 5)), ((7, 5), (3, 9)), ((5, 6), (1, 2)), ((3, 4), (3, 4))])
def test_learned_positions_resize_as_in_big_vision(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = np.random.RandomState(0).standard_normal((*old, 8)).astype(np.float32)
    expected = np.asarray(scipy.ndimage.zoom(table, (new[0] / old[0], new[1] / old[1], 1), order=1))
    golden_files.close(resize_grid_corners(jnp.asarray(table), new), expected, 2e-5, f"{old} to {new}")


def test_resize() -> None:
    model, _ = eqx_vit.create(LEARNED, key=jax.random.key(0))
    image = jnp.zeros((40, 24, 3))
    with pytest.raises(ValueError, match=r"eqx_vit\.resize\(model, \(40, 24\)\)"):
        model(image)
    resized = eqx_vit.resize(model, (40, 24))
    assert resized.features(image).shape == (15, 48)
    assert resized(image).shape == (7,)


def test_fixed_positions_take_any_number_of_patches() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (40, 24, 3))
    assert model.features(image).shape == (15, 48)
    np.testing.assert_array_equal(eqx_vit.resize(model, (40, 24)).features(image), model.features(image))
    with pytest.raises(ValueError, match=r"\(40, 25\) is not a multiple of 8"):
        model(jnp.zeros((40, 25, 3)))


def test_dropout_acts_after_the_attention_and_not_on_its_weights() -> None:
    attention = SimpleViT(replace(BASE, dropout=0.1), key=jax.random.key(0)).blocks[0].attention
    assert isinstance(attention, Attention)
    assert attention.attention_dropout.rate == 0
    assert isinstance(attention.projection, OutputProjection)
    assert attention.projection.dropout.rate == 0.1


@pytest.mark.parametrize("name", WITH_REPRESENTATION)
def test_presets_with_a_representation_have_the_official_size(name: str) -> None:
    config = replace(PRESETS[name], representation_size=PRESETS[name].dim)
    model = eqx.filter_eval_shape(SimpleViT, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == WITH_REPRESENTATION[name]
