"""RegionViT against the golden files of the official code."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import RegionViT, RegionViTConfig
from eqx_vit.models.region_vit import (
    LocalStem,
    Stage,
    from_tokens,
    pad_for_regions,
    to_tokens,
    window_masks,
    wrapped_offsets,
)
from eqx_vit.testing import shapes

BASE = RegionViTConfig(num_classes=5, dim=(16, 32, 64, 128), heads=2, window_size=2)
CASES = {
    "regionvit-3conv": replace(
        BASE, num_classes=8, depth=(1, 2, 2, 1), heads=(1, 2, 4, 4), window_size=3, tokenize_local_3_conv=True
    ),
    "regionvit-1conv": replace(BASE, num_classes=6, depth=(2, 1, 2, 1), heads=(2, 2, 4, 8)),
    "regionvit-peg": replace(BASE, depth=(2, 1, 2, 1), heads=(2, 4, 4, 8), tokenize_local_3_conv=True, use_peg=True),
    "regionvit-w14like": replace(
        BASE, num_classes=7, depth=(1, 1, 2, 2), heads=(1, 2, 4, 8), window_size=4, use_peg=True
    ),
    "regionvit-odd": replace(BASE, depth=(2, 1, 2, 2), heads=(2, 2, 4, 4), window_size=3, tokenize_local_3_conv=True),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, CASES[name], "official")


def test_masks_follow_the_official_rule() -> None:
    """A 2 x 3 map of windows of 2 x 2, one row and one column padded; tokens are the region, then a b / c d."""
    masks = np.asarray(window_masks((2, 3), (3, 5), 2)).reshape(2, 3, 5, 5)
    rows, columns = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    in_rows, in_columns = np.outer(rows, rows), np.outer(columns, columns)
    assert masks[0, :2].all()
    np.testing.assert_array_equal(masks[0, 2], in_columns)
    np.testing.assert_array_equal(masks[1, 0], in_rows)
    np.testing.assert_array_equal(masks[1, 1], in_rows)
    np.testing.assert_array_equal(masks[1, 2], in_rows | in_columns)
    assert window_masks((2, 3), (4, 6), 2) is None
    assert np.asarray(window_masks((1, 1), (2, 1), 2)).all()  # one side padded: the corner sees everything


@pytest.mark.parametrize("window", [2, 3, 4, 7, 14])
def test_position_table_is_wrapped(window: int) -> None:
    index = wrapped_offsets(window)
    length = 2 * window - 1
    assert len(np.unique(index)) == length**2
    half = window // 2
    assert (np.diag(index) == half * length + half).all()  # offset 0
    assert index[1, 0] == half * length + (half - 1) % length  # one to the left
    assert index[0, window] == (half + 1) % length * length + half  # one below


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), patch_size=st.integers(2, 12))
@settings(max_examples=20)  # each example compiles
def test_padding_for_regions(size: tuple[int, int], patch_size: int) -> None:
    image = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (*size, 1)).astype(np.float32))
    padded = np.asarray(pad_for_regions(image, patch_size))
    assert not any(side % patch_size for side in padded.shape[:2])
    assert (padded > 0).sum() == image.size
    top, left = np.argwhere(padded[..., 0] > 0)[0]
    if size[0] % patch_size or size[1] % patch_size:
        assert (top, left) == tuple((patch_size - side % patch_size) // 2 for side in size)
    else:
        assert padded.shape == image.shape


def test_windows_go_back() -> None:
    local = jnp.arange(5.0 * 7 * 2).reshape(5, 7, 2)
    regions = -jnp.arange(2.0 * 3 * 2).reshape(2, 3, 2)
    tokens = to_tokens(regions, local, 3)
    assert tokens.shape == (6, 10, 2)
    np.testing.assert_array_equal(tokens[4, 1:4], [local[3, 3], local[3, 4], local[3, 5]])
    back = from_tokens(tokens, (2, 3), (5, 7), 3)
    np.testing.assert_array_equal(back[0], regions)
    np.testing.assert_array_equal(back[1], local)


def test_initialisation_is_the_official_one() -> None:
    config = replace(CASES["regionvit-peg"], dim=(128, 256), depth=2, heads=4)
    stage = Stage(config, 1, key=jax.random.key(0))
    block = stage.blocks.block
    for linear in (block.attention.qkv, block.attention.projection, block.mlp.expand, block.mlp.contract):
        assert np.isclose(np.std(linear.weight), 0.02, rtol=0.05)
        assert not np.any(linear.bias)
        assert not np.array_equal(linear.weight[0], linear.weight[1])
    assert np.isclose(np.std(block.attention.position_bias), 0.02, rtol=0.3)
    for conv in (stage.downsample.conv, stage.peg):  # depthwise: nine inputs
        assert np.abs(conv.weight).max() <= 1 / 3
        assert np.isclose(np.std(conv.weight), 1 / (3 * np.sqrt(3)), rtol=0.05)
    assert np.any(stage.downsample.conv.bias)
    assert stage.peg.bias is None
    stem = LocalStem(replace(config, tokenize_local_3_conv=False), key=jax.random.key(0))
    assert np.isclose(np.std(stem.convs[0].weight), 1 / np.sqrt(3 * 3 * 8 * 8), rtol=0.05)


@given(
    size=st.tuples(st.integers(2, 70), st.integers(2, 70)),
    stages=st.integers(1, 3),
    depth=st.integers(1, 2),
    window=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 4]),
    channels=st.integers(1, 4),
    three_convs=st.booleans(),
    peg=st.booleans(),
)
def test_shapes(
    size: tuple[int, int],
    stages: int,
    depth: int,
    window: int,
    heads: int,
    channels: int,
    three_convs: bool,
    peg: bool,
) -> None:
    config = RegionViTConfig(
        num_classes=5,
        dim=(8, 16, 16)[:stages],
        depth=depth,
        window_size=window,
        tokenize_local_3_conv=three_convs,
        use_peg=peg,
        heads=heads,
        mlp_ratio=1.5,
        channels=channels,
    )
    features, logits = shapes(RegionViT, config, size)
    patch = config.region_patch_size
    whole = size[0] % patch == size[1] % patch == 0
    regions = [side // patch + (not whole) for side in size]  # the official padding adds to both sides or none
    for _ in range(stages - 1):
        regions = [(count + 1) // 2 for count in regions]
    assert features == (*regions, config.dim[-1])
    assert logits == (5,)


def test_impossible_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes images of at least \(2, 2\), given \(1, 9\)"):
        CASES["regionvit-1conv"].check_image_size(1, 9)
    replace(CASES["regionvit-1conv"], tokenize_local_3_conv=True).check_image_size(1, 9)


def test_impossible_configs_are_refused() -> None:
    for changes, message in (
        ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
        ({"heads": None}, "dim 16 is below 32"),
        ({"dim": (16, 24, 48, 96), "heads": 2}, "dim 24 is not a multiple of 16"),
        ({"depth": (1, 2, 3, 4, 5)}, "depth has 5 values for 4 stages"),
        ({"local_patch_size": 8, "tokenize_local_3_conv": True}, "and 4 with tokenize_local_3_conv"),
        ({"dim": (18, 36), "heads": 2, "depth": 1, "tokenize_local_3_conv": True}, "dim 18 is not a multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CASES["regionvit-1conv"], **changes)


def test_resize_gives_the_model_as_it_is() -> None:
    _, model, _ = golden_files.loaded("regionvit-odd", CASES["regionvit-odd"], "official")
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 64)), model)


def test_seed_call_has_the_official_structure() -> None:
    config = RegionViTConfig(
        dim=(64, 128, 256, 512),
        depth=(2, 2, 8, 2),
        window_size=7,
        num_classes=1000,
        tokenize_local_3_conv=False,
        use_peg=False,
    )
    model = eqx.filter_eval_shape(RegionViT, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 13_831_348
