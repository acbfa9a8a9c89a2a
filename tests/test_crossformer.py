"""CrossFormer against the golden files of the official code."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import CrossFormer, CrossFormerConfig
from eqx_vit.models.crossformer import CrossScaleEmbedding, Stage, from_groups, real_members, to_groups
from eqx_vit.testing import shapes
from eqx_vit.weights import load_state_dict

BASE = CrossFormerConfig(num_classes=5, dim=(16, 32, 64, 128), heads=(2, 2, 4, 4), depth=(2, 3, 2, 1))
CASES = {
    "crossformer-lsda": replace(
        BASE,
        num_classes=8,
        depth=(2, 2, 2, 1),
        heads=(1, 2, 2, 4),
        local_window_size=4,
        global_window_size=(4, 2, 1, 1),
    ),
    "crossformer-pad": replace(BASE, local_window_size=5, global_window_size=(3, 2, 1, 1)),
    "crossformer-wide": CrossFormerConfig(
        num_classes=6, dim=(24, 48, 96, 192), depth=(1, 2, 1, 1), heads=(2, 4, 3, 6), mlp_ratio=(4.0, 4.0, 2.0, 1.0)
    ),
    "crossformer-pp": replace(
        BASE,
        depth=(2, 1, 5, 1),
        local_window_size=(4, 4, 4, 2),
        global_window_size=(4, 2, 1, 1),
        mlp_ratio=2.0,
        cooling=True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, CASES[name], "official")


def test_checkpoints_of_the_first_release_load() -> None:
    golden, model, state = golden_files.loaded("crossformer-lsda", CASES["crossformer-lsda"], "official")
    tables = {
        f"layers.{stage}.blocks.{block}.attn.{name}": np.zeros(1)
        for stage, depth in enumerate((2, 2, 2, 1))
        for block in range(depth)
        for name in ("biases", "relative_position_index")
    }
    loaded, _ = load_state_dict(model, state, golden.state | tables, source="official")
    assert eqx.tree_equal(loaded, model)


def test_stages_run_their_blocks_in_turn() -> None:
    """Depth 14 with cooling is two cycles of six and a rest; the golden files have at most five blocks."""
    config = CrossFormerConfig(
        dim=(16,),
        depth=14,
        global_window_size=4,
        local_window_size=2,
        heads=2,
        cross_embed_kernel_sizes=((4, 8),),
        cross_embed_strides=4,
        cooling=True,
    )
    stage = Stage(config, 0, key=jax.random.key(0))
    assert len(stage.coolings) == 4
    x = jax.random.normal(jax.random.key(1), (4, 12, 16))
    expected = x
    for index, block in enumerate(stage.blocks):
        expected = block(expected, (1, 4)[index % 2])
        expected = stage.coolings[index // 3](expected) if index in (2, 5, 8, 11) else expected
    golden_files.close(stage(x, jnp.ones(14)), np.asarray(expected), 1e-5, "stage")


def test_initialisation_is_the_official_one() -> None:
    block = Stage(replace(BASE, dim=(128, 256, 512, 1024)), 0, key=jax.random.key(0)).blocks.block
    position_bias = block.attention.position_bias
    for linear in (block.attention.qkv, block.attention.projection, block.mlp.expand, block.mlp.contract):
        assert np.isclose(np.std(linear.weight), 0.02, rtol=0.05)
        assert not np.any(linear.bias)
    for linear in (position_bias.embedding, *position_bias.linears):
        assert np.isclose(np.std(linear.weight), 0.02, rtol=0.5)
        assert not np.any(linear.bias)
    assert not np.array_equal(block.mlp.expand.weight[0], block.mlp.expand.weight[1])
    conv = CrossScaleEmbedding(3, 64, (4, 8), 4, key=jax.random.key(0)).convs[1]
    assert np.abs(conv.weight).max() <= 1 / np.sqrt(3 * 8 * 8)
    assert np.isclose(np.std(conv.weight), 1 / np.sqrt(3 * 3 * 8 * 8), rtol=0.05)
    assert np.any(conv.bias)


@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    rest=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    stages=st.integers(1, 3),
    depth=st.integers(1, 7),
    side=st.integers(1, 6),
    interval=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 4]),
    channels=st.integers(1, 4),
    cooling=st.booleans(),
)
def test_shapes(
    grid: tuple[int, int],
    rest: tuple[int, int],
    stages: int,
    depth: int,
    side: int,
    interval: int,
    heads: int,
    channels: int,
    cooling: bool,
) -> None:
    config = CrossFormerConfig(
        num_classes=5,
        dim=(16, 24, 32)[:stages],
        depth=depth,
        global_window_size=interval,
        local_window_size=side,
        heads=heads,
        mlp_ratio=1.5,
        cross_embed_kernel_sizes=((4, 8, 16, 32), (2, 4))[:stages],
        cross_embed_strides=(4, 2)[:stages],
        channels=channels,
        cooling=cooling,
    )
    step = 4 * 2 ** (stages - 1)
    features, logits = shapes(CrossFormer, config, (step * grid[0] + rest[0], step * grid[1] + rest[1]))
    assert features == (*grid, config.dim[-1])
    assert logits == (5,)


@settings(max_examples=8)  # each example compiles
@given(size=st.tuples(st.integers(1, 20), st.integers(1, 20)), side=st.integers(1, 5), interval=st.integers(1, 4))
def test_groups_are_evenly_spaced_and_go_back(size: tuple[int, int], side: int, interval: int) -> None:
    rows, columns = size
    where = np.moveaxis(np.indices((rows, columns), dtype=np.float32), 0, -1) + 1
    groups = to_groups(jnp.asarray(where), side, interval)
    np.testing.assert_array_equal(from_groups(groups, side, interval, size), where)
    real = real_members(size, side, interval)
    assert real is None or np.array_equal(real, groups[..., 0] > 0)
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


def test_impossible_configs_are_refused() -> None:
    for changes, message in (
        ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
        ({"heads": None}, "dim 16 is below 32"),
        ({"dim": (12, 24, 48, 96)}, "dim 12 is below 16"),
        ({"depth": (1, 2, 3, 4, 5)}, "depth has 5 values for 4 stages"),
        ({"cross_embed_kernel_sizes": ((4, 7),)}, "must each be stride 4 plus an even number"),
        ({"dim": (20, 40, 80, 160), "heads": 2}, "dim 20 is not a multiple of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(BASE, **changes)


def test_resize_gives_the_model_as_it_is() -> None:
    _, model, _ = golden_files.loaded("crossformer-lsda", CASES["crossformer-lsda"], "official")
    assert eqx.tree_equal(eqx_vit.resize(model, (96, 64)), model)


def test_seed_call_has_the_official_structure() -> None:
    config = CrossFormerConfig(
        num_classes=1000,
        dim=(64, 128, 256, 512),
        depth=(2, 2, 8, 2),
        global_window_size=(8, 4, 2, 1),
        local_window_size=7,
    )
    model = eqx.filter_eval_shape(CrossFormer, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 15_404_140
