"""Twins: what is not decayed, the sizes of images, and which block has which attention."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import pytest
from cases.twins_svt import BASE, by_stage
from hypothesis import given, strategies as st

import eqx_vit
from eqx_vit import TwinsSVT, TwinsSVTConfig
from eqx_vit.models.twins_svt import GlobalAttention, LocalAttention
from eqx_vit.weights import to_state_dict


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
    window=st.integers(1, 2),
)
def test_each_map_holds_a_patch_of_its_global_attention(
    patch: tuple[int, ...], global_k: tuple[int, ...], last_depth: int, local: bool, window: int
) -> None:
    config = TwinsSVTConfig(
        local_attention=local,
        **by_stage(patch_size=patch, global_k=global_k, depth=(1, 1, 1, last_depth), local_patch_size=window),
    )
    least, stride = 1, 1
    for index, step in enumerate(patch):
        stride *= step
        least = max(least, stride * (1 if local and window > 1 and index == 3 and last_depth == 1 else global_k[index]))
    config.check_image_size(least, least + 7)
    with pytest.raises(ValueError, match=r"takes images of at least \("):
        config.check_image_size(least + 7, least - 1)


def test_any_size_needs_no_resize() -> None:
    model = eqx.filter_eval_shape(TwinsSVT, BASE, key=jax.random.key(0))
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 33)), model)


@pytest.mark.parametrize(
    ("changes", "attentions"),
    [
        ({}, ["lg", "lg", "lglg", "lgl"]),
        ({"pairs": False}, ["l", "l", "lg", "lgl"]),
        ({"pairs": False, **by_stage(depth=(3, 1, 5, 2))}, ["lgl", "l", "lglgl", "lg"]),
        ({"s3_local_patch_size": 1}, ["lg", "lg", "gggg", "lgl"]),
        ({"local_attention": False}, ["g", "g", "gg", "ggg"]),
    ],
)
def test_local_and_global_attention_take_turns(changes: dict[str, Any], attentions: list[str]) -> None:
    """In the model, and in the official names: a local block has `qkv`, a global one `q` and `kv`."""
    model, state = golden_files.zeros(replace(BASE, **changes))
    depths = tuple(map(len, attentions))
    assert tuple(sizes.depth for sizes in model.config.stages) == depths
    kinds = {LocalAttention: "l", GlobalAttention: "g"}
    for stage, expected in zip(model.stages, attentions, strict=True):
        assert "".join(kinds[type(block.attention)] for block in (stage.first_block, *stage.blocks)) == expected
    weights = to_state_dict(model, state, "official")
    for stage, expected in enumerate(attentions):
        names = (f"blocks.{stage}.{index}.attn" for index in range(len(expected)))
        assert "".join("l" if f"{name}.qkv.weight" in weights else "g" for name in names) == expected
        assert f"blocks.{stage}.{len(expected)}.norm1.weight" not in weights
