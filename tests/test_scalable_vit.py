"""ScalableViT against the golden files of the official code."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import ScalableViT, ScalableViTConfig
from eqx_vit.models.scalable_vit import FullAttention, ReducedAttention, WindowAttention
from eqx_vit.testing import shapes

CASES = {
    "scalable_vit-head4096": ScalableViTConfig(
        num_classes=5,
        dim=8,
        depth=(2, 3, 2, 2),
        heads=(1, 2, 4, 8),
        reduction_factor=(8, 4, 2, 1),
        ssa_dim_key=(10, 10, 10, 8),
        window_size=(4, 4, 2, 2),
    ),
    "scalable_vit-plain-nonsquare": ScalableViTConfig(
        num_classes=6,
        dim=12,
        depth=(2, 2, 3, 2),
        heads=(3, 2, 4, 8),
        ssa_dim_key=(8, 3, 15, 15),
        reduction_factor=(4, 2, 2, 1),
        window_size=(8, 4, 4, 2),
        head_dim=None,
    ),
    "scalable_vit-wholemap": ScalableViTConfig(
        num_classes=7,
        dim=16,
        depth=(1, 2, 2, 1),
        heads=(2, 2, 4, 4),
        reduction_factor=(8, 4, 2, 1),
        ssa_dim_key=(10, 20, 20, 32),
        window_size=None,
        head_dim=None,
    ),
}
SEED = ScalableViTConfig(
    num_classes=1000,
    dim=64,
    heads=(2, 4, 8, 16),
    depth=(2, 2, 20, 2),
    ssa_dim_key=(40, 40, 40, 32),
    reduction_factor=(8, 4, 2, 1),
    window_size=(64, 32, None, None),
    dropout=0.1,
)
TINY = ScalableViTConfig(
    num_classes=5, dim=8, depth=(2, 3), heads=(1, 2), reduction_factor=(2, 1), window_size=(4, None), head_dim=12
)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, CASES[name], "official")


def test_initialisation_is_the_official_one() -> None:
    model, _ = eqx_vit.create(replace(TINY, dim=64, depth=(4, 2), heads=2), key=jax.random.key(0))
    first, second = model.stages
    pairs = first.pairs.block
    linears = [first.first.attention.qkv, pairs.scalable.attention.key, pairs.windowed.mlp.expand, model.head.contract]
    for linear in (*linears, second.last.attention.key_value):
        assert np.isclose(np.std(linear.weight), 0.02, rtol=0.1)
        assert not np.any(linear.bias)
    fans = [
        (first.patch_embedding, 7 * 7 * 64),
        (second.patch_embedding, 3 * 3 * 128),
        (first.position, 3 * 3),
        (first.first.attention.interaction, 3 * 3),
        (pairs.scalable.attention.reduction, 2 * 2),
        (pairs.scalable.attention.stretch, 2 * 32),
    ]
    for layer, fan_out in fans:
        assert np.isclose(np.std(layer.weight), np.sqrt(2 / fan_out), rtol=0.15)
        assert not np.any(layer.bias)
    assert first.norm.eps == second.first.norm2.eps == model.norm.eps == model.head.norm.eps == 1e-6
    assert pairs.scalable.attention.norm.eps == 1e-5


def test_windowed_and_global_blocks_take_turns() -> None:
    model = eqx.filter_eval_shape(ScalableViT, replace(TINY, depth=(4, 3)), key=jax.random.key(0))
    first, second = model.stages
    assert type(first.first.attention) is WindowAttention
    assert type(first.pairs.block.scalable.attention) is ReducedAttention
    assert type(first.pairs.block.windowed.attention) is WindowAttention
    assert type(first.last.attention) is ReducedAttention
    assert type(second.pairs.block.scalable.attention) is FullAttention
    assert second.last is None
    config = replace(TINY, window_size=1, depth=(4,), heads=1, reduction_factor=2)
    alone = eqx.filter_eval_shape(ScalableViT, config, key=jax.random.key(0))
    blocks = (alone.stages[0].first, alone.stages[0].pairs.block.windowed, alone.stages[0].last)
    assert all(type(block.attention) is ReducedAttention for block in blocks)


@given(
    multiples=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    depth=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    heads=st.integers(1, 2),
    key_dim=st.integers(1, 9),
    reduction=st.integers(1, 3),
    window=st.none() | st.integers(1, 7),
    channels=st.integers(1, 4),
)
def test_shapes(
    multiples: tuple[int, int],
    depth: list[int],
    heads: int,
    key_dim: int,
    reduction: int,
    window: int | None,
    channels: int,
) -> None:
    config = ScalableViTConfig(
        num_classes=5,
        dim=8,
        depth=tuple(depth),
        heads=heads,
        ssa_dim_key=key_dim,
        reduction_factor=reduction,
        window_size=window,
        channels=channels,
        head_dim=12,
    )
    stride = 4 * 2 ** (len(depth) - 1)
    unit = stride * (window or reduction) * (1 if window is None or window >= reduction else reduction)
    height, width = multiples[0] * unit, multiples[1] * unit
    features, logits = shapes(ScalableViT, config, (height, width))
    assert features == (height // stride, width // stride, 8 * 2 ** (len(depth) - 1))
    assert logits == (5,)


def test_maps_that_the_reduction_does_not_divide_lose_their_edge() -> None:
    config = replace(TINY, depth=(2,), heads=1, reduction_factor=3, window_size=None)
    assert shapes(ScalableViT, config, (28, 44)) == ((7, 11, 8), (5,))


@given(size=st.integers(1, 200))
def test_images_that_stages_and_windows_do_not_divide_are_refused(size: int) -> None:
    config = replace(TINY, window_size=(3, 4), reduction_factor=1)
    unit = 96  # a multiple of 4 * 3 and of 8 * 4
    if size % unit:
        with pytest.raises(ValueError, match=rf"image_size \(96, {size}\) is not a multiple of 96: use \(96, "):
            config.check_image_size(96, size)
    else:
        config.check_image_size(96, size)


def test_maps_smaller_than_the_reduction_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stage 0 a map that cannot be reduced 8 times: use at least 32"):
        replace(TINY, window_size=None, reduction_factor=(8, 1)).check_image_size(16, 64)


def test_resize_changes_nothing_but_refuses_what_does_not_fit() -> None:
    model = eqx.filter_eval_shape(ScalableViT, TINY, key=jax.random.key(0))
    assert model.resized((32, 64)) == (TINY, {})
    with pytest.raises(ValueError, match="is not a multiple of 16"):
        model.resized(24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "the stage of width 8 cannot have 3 heads"),
        ({"reduction_factor": (4, 2, 1)}, "reduction_factor has 3 values for 2 stages"),
        ({"window_size": (0, None)}, "window_size must be at least 1"),
    ],
)
def test_wrong_stages_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_seed_call_has_the_official_structure() -> None:
    model = eqx.filter_eval_shape(ScalableViT, SEED, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 32_000_472
    assert shapes(ScalableViT, SEED, (256, 256)) == ((8, 8, 512), (1000,))
