"""ScalableViT: which blocks are windowed, and the sizes of images."""

from dataclasses import replace

import equinox as eqx
import jax
import pytest
from cases.scalable_vit import SEED, TINY
from hypothesis import given, strategies as st

from eqx_vit import ScalableViT
from eqx_vit.layers import LayerNorm
from eqx_vit.models.scalable_vit import InteractiveWindowAttention, ScalableSelfAttention
from eqx_vit.testing import shapes


def test_windowed_and_global_blocks_take_turns() -> None:
    model = eqx.filter_eval_shape(ScalableViT, replace(TINY, depth=(4, 3)), key=jax.random.key(0))
    for stage in model.stages:
        assert type(stage.first_block.attention) is InteractiveWindowAttention
        for index, kind in enumerate((ScalableSelfAttention, InteractiveWindowAttention)):
            assert type(stage.blocks.periods.block.blocks[index].attention) is kind
    first, second = model.stages
    assert [type(block.attention) for block in first.blocks.rest] == [ScalableSelfAttention]
    assert first.blocks.rest[0].attention.reduction is not None
    assert second.blocks.rest == ()
    assert second.blocks.periods.block.blocks[0].attention.reduction is None
    config = replace(TINY, window_size=1, depth=(4,), heads=1, reduction_factor=2, ssa_dim_key=8)
    (alone,) = eqx.filter_eval_shape(ScalableViT, config, key=jax.random.key(0)).stages
    blocks = (alone.first_block, *alone.blocks.periods.block.blocks, *alone.blocks.rest)
    assert all(type(block.attention) is ScalableSelfAttention for block in blocks)


def test_only_the_norm_of_the_reduction_has_an_eps_of_its_own() -> None:
    model = eqx.filter_eval_shape(ScalableViT, replace(TINY, norm_eps=1e-3), key=jax.random.key(0))
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, LayerNorm))
    eps = [node.eps for node in nodes if isinstance(node, LayerNorm)]
    assert set(eps) == {1e-3, 1e-5}
    assert eps.count(1e-5) == 1


def test_maps_that_the_reduction_does_not_divide_lose_their_edge() -> None:
    config = replace(TINY, depth=(2,), heads=1, reduction_factor=3, ssa_dim_key=8, window_size=None)
    assert shapes(ScalableViT, config, (28, 44)) == ((7, 11, 8), (5,))


@given(size=st.integers(1, 200))
def test_images_that_stages_and_windows_do_not_divide_are_refused(size: int) -> None:
    config = replace(TINY, window_size=(3, 4), reduction_factor=1)
    unit = 96  # a multiple of 4 * 3 and of 8 * 4
    if size % unit:
        with pytest.raises(ValueError, match=rf"the image's size \(96, {size}\) is not a multiple of 96: use \(96, "):
            config.check_image_size(96, size)
    else:
        config.check_image_size(96, size)


def test_resize_changes_nothing_but_refuses_what_does_not_fit() -> None:
    model = eqx.filter_eval_shape(ScalableViT, TINY, key=jax.random.key(0))
    assert model.resize_spec((32, 64)) == (TINY, {})
    with pytest.raises(ValueError, match="is not a multiple of 16"):
        model.resize_spec(24)


def test_seed_call_takes_images_of_its_windows() -> None:
    assert shapes(ScalableViT, SEED, (256, 256)) == ((8, 8, 512), (1000,))
