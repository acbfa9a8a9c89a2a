"""Twins: what is not decayed, and the sizes of images."""

import equinox as eqx
import jax
import pytest
from cases.twins_svt import BASE, by_stage
from hypothesis import given, strategies as st

import eqx_vit
from eqx_vit import TwinsSVT, TwinsSVTConfig


def test_weight_decay_leaves_the_position_encoding_out() -> None:
    model = eqx.filter_eval_shape(TwinsSVT, BASE, key=jax.random.key(0))
    mask = eqx_vit.decay_mask(model).stages[0]
    assert mask.patch_embedding.linear.weight
    assert not mask.position_encoding.weight


@given(
    patch=st.tuples(*[st.integers(1, 3)] * 4),
    global_k=st.tuples(*[st.integers(1, 4)] * 4),
    last_depth=st.integers(1, 2),
    local=st.booleans(),
)
def test_each_map_holds_a_patch_of_its_global_attention(
    patch: tuple[int, ...], global_k: tuple[int, ...], last_depth: int, local: bool
) -> None:
    config = TwinsSVTConfig(
        local_attention=local, **by_stage(patch_size=patch, global_k=global_k, depth=(1, 1, 1, last_depth))
    )
    least, stride = 1, 1
    for index, step in enumerate(patch):
        stride *= step
        least = max(least, stride * (1 if local and index == 3 and last_depth == 1 else global_k[index]))
    config.check_image_size(least, least + 7)
    with pytest.raises(ValueError, match=r"takes images of at least \("):
        config.check_image_size(least + 7, least - 1)


def test_any_size_needs_no_resize() -> None:
    model = eqx.filter_eval_shape(TwinsSVT, BASE, key=jax.random.key(0))
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 33)), model)
