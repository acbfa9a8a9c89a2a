"""CvT against the golden files of the official code and transformers."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import CvT, CvTConfig
from eqx_vit.testing import shapes
from eqx_vit.weights import load_state_dict, to_state_dict


def by_stage(**values: Any) -> dict[str, Any]:
    """`emb_dim=(8, 16, 24)` as `s1_emb_dim=8, s2_emb_dim=16, ...`; one value stands for all stages."""
    each = {name: value if isinstance(value, tuple) else (value,) * 3 for name, value in values.items()}
    return {f"s{stage + 1}_{name}": value[stage] for name, value in each.items() for stage in range(3)}


CASES = {
    "cvt-cls": (
        CvTConfig(num_classes=8, **by_stage(emb_dim=(16, 32, 48), heads=(1, 2, 3), depth=(1, 2, 2))),
        "official",
    ),
    "cvt-meanpool-odd": (
        CvTConfig(
            num_classes=5,
            class_token=False,
            qkv_bias=False,
            **by_stage(emb_dim=(24, 24, 40), heads=(2, 3, 4), depth=(1, 2, 1), mlp_mult=(2, 3, 4)),
            **by_stage(proj_kernel=(3, 5, 3), kv_proj_stride=(2, 2, 1)),
        ),
        "official",
    ),
    "cvt-gelu": (
        CvTConfig(num_classes=6, quick_gelu=False, **by_stage(emb_dim=(16, 24, 32), heads=(1, 3, 4), depth=(1, 2, 3))),
        "official",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


def test_hugging_face_names_say_the_same() -> None:
    _, model, state = golden_files.loaded("cvt-gelu", *CASES["cvt-gelu"])
    arrays = to_state_dict(model, state, "hf")
    assert arrays["cvt.encoder.stages.2.cls_token"].shape == (1, 1, 32)
    name = "cvt.encoder.stages.1.layers.1.attention.attention.convolution_projection_key.convolution_projection"
    assert arrays[f"{name}.convolution.weight"].shape == (24, 1, 3, 3)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if eqx.is_array(leaf) else leaf, model)
    again = load_state_dict(zeros, state, arrays, source="hf")
    assert eqx.tree_equal(again, (model, state))


def test_initialisation_is_the_official_one() -> None:
    model, state = eqx_vit.create(CASES["cvt-cls"][0], key=jax.random.key(0))
    stage = model.stages[2]
    attention = stage.blocks.block.attention
    for conv, fan_in in ((stage.token_embedding, 9 * 32), (attention.query_projection.conv, 9)):
        assert np.abs(conv.weight).max() <= 1 / np.sqrt(fan_in)
        assert np.isclose(np.std(conv.weight), 1 / np.sqrt(3 * fan_in), rtol=0.06)
    assert np.isclose(np.std(attention.query_projection.linear.weight), 0.02, rtol=0.05)
    assert np.isclose(np.std(stage.class_token), 0.02, rtol=0.4)
    assert np.any(model.head.bias)
    assert np.abs(model.head.bias).max() <= 1 / np.sqrt(48)
    mean, variance = stage.blocks.state_at(state, 1).get(stage.blocks[1].attention.query_projection.norm.statistics)
    assert not np.any(mean)
    assert np.all(np.asarray(variance) == 1)


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kernel=st.tuples(*[st.integers(1, 7)] * 3),
    stride=st.tuples(*[st.integers(1, 4)] * 3),
    kv_stride=st.integers(1, 3),
    proj_kernel=st.sampled_from([1, 3, 5]),
    channels=st.integers(1, 4),
    class_token=st.booleans(),
)
def test_shapes(
    size: tuple[int, int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    kv_stride: int,
    proj_kernel: int,
    channels: int,
    class_token: bool,
) -> None:
    config = CvTConfig(
        num_classes=5,
        channels=channels,
        class_token=class_token,
        **by_stage(emb_dim=(8, 16, 24), heads=2, depth=1, emb_kernel=kernel, emb_stride=stride),
        **by_stage(proj_kernel=proj_kernel, kv_proj_stride=kv_stride),
    )
    rows, columns = size
    for width, step in zip(kernel, stride, strict=True):
        padding = max(0, (width - step + 1) // 2)
        if min(rows, columns) + 2 * padding < width:
            with pytest.raises(ValueError, match="too small for the token embedding of stage"):
                config.check_image_size(*size)
            return
        rows, columns = ((length + 2 * padding - width) // step + 1 for length in (rows, columns))
    features, logits = shapes(CvT, config, size)
    assert features == (class_token + rows * columns, 24)
    assert logits == (5,)


def test_official_maps() -> None:
    grids = [(224, 225)]
    for sizes in CvTConfig().stages:
        grids.append(sizes.grid(*grids[-1]))
    assert grids[1:] == [(56, 56), (28, 28), (14, 14)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2_heads": 5}, "s2_emb_dim 192 is not a multiple of s2_heads 5"),
        ({"s1_proj_kernel": 2}, "s1_proj_kernel must be odd"),
        ({"s3_depth": 0}, "s3_depth must be at least 1"),
    ],
)
def test_wrong_configs_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CvTConfig(), **change)


def test_any_size_needs_no_resize() -> None:
    model, _ = eqx.filter_eval_shape(eqx.nn.make_with_state(CvT), CASES["cvt-cls"][0], key=jax.random.key(0))
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 33)), model)


def test_seed_call_has_the_official_structure() -> None:
    config = CvTConfig(
        num_classes=1000,
        **by_stage(emb_dim=(64, 192, 384), emb_kernel=(7, 3, 3), emb_stride=(4, 2, 2), proj_kernel=3),
        **by_stage(kv_proj_stride=2, heads=(1, 3, 4), depth=(1, 2, 10), mlp_mult=4),
        dropout=0.0,
    )
    model, _ = eqx.filter_eval_shape(eqx.nn.make_with_state(CvT), config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 19_997_480
