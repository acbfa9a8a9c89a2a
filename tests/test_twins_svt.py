"""Twins against the golden files of the official code and timm."""

from typing import Any

import equinox as eqx
import golden_files
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import TwinsSVT, TwinsSVTConfig
from eqx_vit.testing import shapes


def by_stage(**values: Any) -> dict[str, Any]:
    """`emb_dim=(8, 16, ...)` as `s1_emb_dim=8, s2_emb_dim=16, ...`; one value stands for all stages."""
    each = {name: value if isinstance(value, tuple) else (value,) * 4 for name, value in values.items()}
    return {f"s{stage + 1}_{name}": value[stage] for name, value in each.items() for stage in range(4)}


CASES = {
    "twins_svt-svt": (
        TwinsSVTConfig(
            num_classes=8,
            **by_stage(emb_dim=(16, 32, 48, 64), heads=(1, 2, 4, 4), depth=(1, 1, 2, 3), local_patch_size=(4, 4, 2, 2)),
        ),
        "official",
    ),
    "twins_svt-nonsquare": (
        TwinsSVTConfig(
            num_classes=6,
            **by_stage(
                emb_dim=(16, 24, 40, 64),
                heads=(2, 3, 4, 8),
                depth=(1, 2, 1, 4),
                local_patch_size=(8, 4, 4, 2),
                global_k=(4, 4, 2, 2),
            ),
        ),
        "official",
    ),
    "twins_svt-timm-pad": (
        TwinsSVTConfig(
            num_classes=5,
            **by_stage(emb_dim=(16, 24, 48, 64), heads=(1, 2, 4, 2), depth=(1, 1, 2, 2), global_k=(5, 3, 2, 1)),
        ),
        "timm",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


def test_initialisation_is_the_official_one() -> None:
    model, _ = eqx_vit.create(CASES["twins_svt-svt"][0], key=jax.random.key(0))
    stage = model.stages[2]
    fan_out = 2 * 2 * 48
    for conv in (stage.patch_embedding, stage.last.attention.reduction):
        assert np.isclose(np.std(conv.linear.weight), np.sqrt(2 / fan_out), rtol=0.05)
        assert not np.any(conv.linear.bias)
    assert np.isclose(np.std(stage.position_encoding.weight), np.sqrt(2 / 9), rtol=0.1)
    assert np.isclose(np.std(stage.first.mlp.expand.weight), 0.02, rtol=0.05)
    assert not np.any(stage.first.mlp.expand.bias)
    assert not np.array_equal(stage.first.mlp.expand.weight, stage.last.mlp.expand.weight)


def test_weight_decay_leaves_the_position_encoding_out() -> None:
    model = eqx.filter_eval_shape(TwinsSVT, CASES["twins_svt-svt"][0], key=jax.random.key(0))
    mask = eqx_vit.decay_mask(model).stages[0]
    assert mask.patch_embedding.linear.weight
    assert not mask.position_encoding.weight


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    patch=st.tuples(*[st.integers(1, 3)] * 4),
    window=st.integers(1, 5),
    global_k=st.tuples(*[st.integers(1, 4)] * 4),
    depth=st.tuples(*[st.integers(1, 4)] * 4),
    channels=st.integers(1, 4),
    local=st.booleans(),
)
def test_shapes(
    size: tuple[int, int],
    patch: tuple[int, ...],
    window: int,
    global_k: tuple[int, ...],
    depth: tuple[int, ...],
    channels: int,
    local: bool,
) -> None:
    config = TwinsSVTConfig(
        num_classes=5,
        channels=channels,
        local_attention=local,
        **by_stage(emb_dim=(8, 16, 8, 24), heads=2, patch_size=patch, local_patch_size=window),
        **by_stage(global_k=global_k, depth=depth),
    )
    rows, columns = size
    reach = 1
    for index, step in enumerate(patch):
        rows, columns, reach = rows // step, columns // step, reach * step
        asked = global_k[index] if depth[index] > 1 or index < 3 or not local else 1
        if min(size) < reach * asked:
            with pytest.raises(ValueError, match=r"takes images of at least \("):
                config.check_image_size(*size)
            return
    features, logits = shapes(TwinsSVT, config, size)
    assert features == (rows, columns, 24)
    assert logits == (5,)


def test_even_position_encoding_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="peg_kernel_size must be odd"):
        TwinsSVTConfig(peg_kernel_size=2)


def test_any_size_needs_no_resize() -> None:
    model = eqx.filter_eval_shape(TwinsSVT, CASES["twins_svt-svt"][0], key=jax.random.key(0))
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 33)), model)


@pytest.mark.parametrize(("global_k", "count"), [(7, 64_978_792), ((8, 4, 2, 1), 24_060_776)])
def test_seed_call_has_the_official_structure(global_k: Any, count: int) -> None:
    config = TwinsSVTConfig(
        num_classes=1000,
        **by_stage(emb_dim=(64, 128, 256, 512), patch_size=(4, 2, 2, 2), local_patch_size=7, global_k=global_k),
        **by_stage(depth=(1, 1, 5, 4)),
        peg_kernel_size=3,
        dropout=0.0,
    )
    model = eqx.filter_eval_shape(TwinsSVT, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == count
