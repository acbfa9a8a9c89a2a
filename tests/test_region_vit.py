"""RegionViT beyond the tables: its windows, their masks and its position table."""

import equinox as eqx
import golden_files
import jax.numpy as jnp
import numpy as np
import pytest
from cases.region_vit import GOLDEN, TINY
from hypothesis import given, settings, strategies as st

import eqx_vit
from eqx_vit.models.region_vit import from_tokens, pad_for_regions, to_tokens, window_masks, wrapped_offsets


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
    assert np.asarray(window_masks((1, 1), (2, 1), 2)).all()  # one side padded: the corner attends to everything


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


def test_three_convolutions_take_one_row() -> None:
    TINY.check_image_size(1, 9)


def test_resize_gives_the_model_as_it_is() -> None:
    _, model, _ = golden_files.loaded("regionvit-odd", *GOLDEN["regionvit-odd"])
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 64)), model)
