"""CrossFormer: the groups of a map, blocks in turn, checkpoints of the first release, and the sizes of images."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.crossformer import BASE, GOLDEN, TINY
from hypothesis import assume, given, settings, strategies as st

import eqx_vit
from eqx_vit import CrossFormer
from eqx_vit.models.crossformer import CooledBlock, from_groups, padding_mask, to_groups
from eqx_vit.weights import load_state_dict, to_state_dict


def test_checkpoints_of_the_first_release_load() -> None:
    golden, model, state = golden_files.loaded("crossformer-lsda", *GOLDEN["crossformer-lsda"])
    tables = {
        f"layers.{stage}.blocks.{block}.attn.{name}": np.zeros(1)
        for stage, depth in enumerate((2, 2, 2, 1))
        for block in range(depth)
        for name in ("biases", "relative_position_index")
    }
    loaded, _ = load_state_dict(model, state, golden.state | tables, source="official")
    assert eqx.tree_equal(loaded, model)


ONE_STAGE = replace(TINY, dim=(64,), depth=14, global_window_size=4, cooling=True, cross_embed_kernel_sizes=((2, 4),))


@pytest.mark.parametrize(
    ("depth", "cooled", "scanned"),
    [(2, [], 0), (3, [], 0), (4, [2], 0), (6, [2], 0), (7, [2, 5], 6), (14, [2, 5, 8, 11], 12)],
)
def test_every_third_block_is_cooled_but_for_the_last(depth: int, cooled: list[int], scanned: int) -> None:
    (blocks,) = eqx.filter_eval_shape(CrossFormer, replace(ONE_STAGE, depth=depth), key=jax.random.key(0)).stages
    stacked = [] if blocks.periods is None else [*blocks.periods.block.blocks] * len(blocks.periods)
    assert len(stacked) == scanned
    each = [*stacked, *blocks.rest]
    assert [index for index, block in enumerate(each) if isinstance(block, CooledBlock)] == cooled
    plain = [block.block if isinstance(block, CooledBlock) else block for block in each]
    assert [block.attention.interval for block in plain] == [(1, 4)[index % 2] for index in range(depth)]


def test_names_follow_the_blocks_of_several_periods() -> None:
    """Depth 14 is two periods and a rest; the golden files have at most five blocks."""
    model, state = eqx.filter_eval_shape(eqx_vit.create, ONE_STAGE, key=jax.random.key(0))
    random = np.random.RandomState(0)
    model = jax.tree.map(
        lambda leaf: (
            jnp.asarray(random.standard_normal(leaf.shape)) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        ),
        model,
    )
    names = to_state_dict(model, state, "official")
    for index, block in enumerate(model.stages[0]):
        prefix = f"layers.0.blocks.{index}"
        plain: Any = block.block if isinstance(block, CooledBlock) else block
        np.testing.assert_array_equal(names[f"{prefix}.mlp.fc1.weight"], plain.mlp.fc1.weight)
        assert (f"{prefix}.ex_conv.weight" in names) == isinstance(block, CooledBlock)
        if isinstance(block, CooledBlock):
            np.testing.assert_array_equal(names[f"{prefix}.ex_conv.weight"], block.cooling.conv.weight)


@settings(max_examples=8)  # each example compiles
@given(size=st.tuples(st.integers(1, 20), st.integers(1, 20)), side=st.integers(1, 5), interval=st.integers(1, 4))
def test_groups_are_evenly_spaced_and_go_back(size: tuple[int, int], side: int, interval: int) -> None:
    rows, columns = size
    where = np.moveaxis(np.indices((rows, columns), dtype=np.float32), 0, -1) + 1
    groups = to_groups(jnp.asarray(where), side, interval)
    np.testing.assert_array_equal(from_groups(groups, side, interval, size), where)
    mask = padding_mask(size, side, interval)
    assert mask is None or np.array_equal(mask, groups[..., 0] > 0)
    for group in np.asarray(groups):
        inside = group.reshape(side, side, 2)
        for axis in (0, 1):
            gaps = np.diff(inside[..., axis], axis=axis)
            assert set(gaps[(inside > 0).all(-1).take(range(1, side), axis)]) <= {interval}


@given(size=st.integers(1, 300))
def test_images_whose_maps_cannot_be_halved_are_refused(size: int) -> None:
    assume(size // 4 % 8 or size < 32)
    with pytest.raises(ValueError, match=r"does not divide by 32 .*: use \d+.* instead of"):
        BASE.check_image_size(64, size)


def test_resize_gives_the_model_as_it_is() -> None:
    model = eqx.filter_eval_shape(CrossFormer, BASE, key=jax.random.key(0))
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 64)), model)
