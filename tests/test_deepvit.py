"""DeepViT beyond the tables: the start of its statistics, and its position table."""

from dataclasses import replace

import jax
import numpy as np
from cases.deepvit import BASE

import eqx_vit
from eqx_vit.layers import resize_table
from eqx_vit.models.deepvit import ReAttention


def test_statistics_of_the_attention_maps_start_at_zero_and_one() -> None:
    model, state = eqx_vit.create(BASE, key=jax.random.key(0))
    assert model.re_attention_blocks is not None
    attention = model.re_attention_blocks.block.attention
    assert isinstance(attention, ReAttention)
    mean, variance = model.re_attention_blocks.state_at(state, 0).get(attention.mix_norm.statistics)
    np.testing.assert_array_equal(mean, np.zeros(4))
    np.testing.assert_array_equal(variance, np.ones(4))


def test_resize_resamples_the_positions_of_the_patches() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    larger = eqx_vit.resize(model, (48, 32))
    assert larger.config == replace(BASE, image_size=(48, 32))
    expected = resize_table(model.position_embedding, (4, 4), (6, 4))
    np.testing.assert_array_equal(larger.position_embedding, expected)
    assert np.array_equal(larger.position_embedding[0], model.position_embedding[0])
