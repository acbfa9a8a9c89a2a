"""CvT beyond the tables: its names in transformers, BatchNorm in a stack, its maps, and images of any size."""

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
from cases.cvt import GOLDEN, TINY

import eqx_vit
from eqx_vit import CvT, CvTConfig
from eqx_vit.weights import load_state_dict, to_state_dict


def test_hugging_face_names_say_the_same() -> None:
    _, model, state = golden_files.loaded("cvt-gelu", *GOLDEN["cvt-gelu"])
    arrays = to_state_dict(model, state, "hf")
    assert arrays["cvt.encoder.stages.2.cls_token"].shape == (1, 1, 32)
    name = "cvt.encoder.stages.1.layers.1.attention.attention.convolution_projection_key.convolution_projection"
    assert arrays[f"{name}.convolution.weight"].shape == (24, 1, 3, 3)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if eqx.is_array(leaf) else leaf, model)
    again = load_state_dict(zeros, state, arrays, source="hf")
    assert eqx.tree_equal(again, (model, state))


def test_statistics_start_as_those_of_a_standard_normal() -> None:
    model, state = eqx_vit.create(TINY, key=jax.random.key(0))
    blocks = model.stages[2].blocks
    mean, variance = blocks.state_at(state, 1).get(blocks[1].attention.query_projection.norm.statistics)
    np.testing.assert_array_equal(mean, np.zeros(16))
    np.testing.assert_array_equal(variance, np.ones(16))


def test_official_maps() -> None:
    grids = [(224, 225)]
    for sizes in CvTConfig().stages:
        grids.append(sizes.grid(*grids[-1]))
    assert grids[1:] == [(56, 56), (28, 28), (14, 14)]


def test_any_size_needs_no_resize() -> None:
    model, _ = eqx.filter_eval_shape(eqx.nn.make_with_state(CvT), TINY, key=jax.random.key(0))
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 33)), model)
