"""CaiT against the golden files of the official code."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import CaiT, CaiTConfig
from eqx_vit.testing import shapes

BASE = CaiTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=4, mlp_dim=192)
CASES = {
    "cait-base": BASE,
    "cait-nobias": CaiTConfig(
        image_size=(24, 40),
        patch_size=8,
        num_classes=7,
        dim=36,
        depth=3,
        cls_depth=1,
        heads=3,
        mlp_dim=72,
        cls_mlp_dim=108,
        qkv_bias=False,
    ),
    "cait-eps": replace(BASE, mlp_dim=96),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, CASES[name], "official")


def test_initialisation_is_the_official_one() -> None:
    config = replace(BASE, dim=192, depth=3, heads=24, dim_head=8, mlp_dim=768)
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    block, class_block = model.blocks.block, model.class_blocks.block
    attention, class_attention = block.attention, class_block.attention
    linears = [attention.qkv, attention.mix_scores, attention.mix_weights, attention.projection, block.mlp.contract]
    linears += [class_attention.query, class_attention.key_value, class_block.mlp.expand, model.head]
    for linear in linears:
        assert np.isclose(np.std(linear.weight), 0.02, rtol=0.1)
        assert not np.any(linear.bias)
    for table in (model.class_token, model.position_embedding):
        assert np.isclose(np.std(table), 0.02, rtol=0.15)
    patches = model.patch_embedding.linear
    limit = 1 / np.sqrt(8 * 8 * 3)
    for array in (patches.weight, patches.bias):
        assert np.abs(array).max() <= limit
        assert np.isclose(np.std(array), limit / np.sqrt(3), rtol=0.1)
    assert not np.any(attention.qkv.weight[0] == attention.qkv.weight[1])
    for blocks in (eqx_vit.trainable(model).blocks.block, eqx_vit.trainable(model).class_blocks.block):
        for factors in (blocks.scale1.scale, blocks.scale2.scale):
            np.testing.assert_array_equal(factors, np.float32(0.1))


@pytest.mark.parametrize(("depth", "scale"), [(1, 0.1), (18, 0.1), (24, 1e-5), (36, 1e-6)])
def test_scales_start_by_the_depth_of_the_network(depth: int, scale: float) -> None:
    assert replace(BASE, depth=depth).initial_scale == scale
    assert replace(BASE, depth=depth, layer_scale=0.5).initial_scale == 0.5


def test_layer_dropout_drops_whole_branches_per_image() -> None:
    """Each of the two branches of the one block is kept and rescaled, or dropped: four outcomes, over many keys."""
    config = replace(BASE, dim=16, depth=1, heads=2, mlp_dim=16, layer_dropout=0.4, layer_scale=1.0)
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    block = model.blocks[0]
    tokens = jax.random.normal(jax.random.key(1), (4, 16))

    @eqx.filter_jit
    def outcomes_and_expected() -> tuple[jax.Array, jax.Array]:
        outcomes = jax.vmap(lambda key: block(tokens, key=key))(jax.random.split(jax.random.key(2), 200))
        expected = []
        for first in (0.0, 1 / 0.6):
            middle = tokens + first * block.scale1(block.attention(block.norm1(tokens)))
            expected += [middle + second * block.scale2(block.mlp(block.norm2(middle))) for second in (0.0, 1 / 0.6)]
        return outcomes, jnp.stack(expected)

    outcomes, expected = map(np.asarray, outcomes_and_expected())
    distances = np.abs(outcomes[:, None] - expected[None]).max(axis=(2, 3))
    assert np.all(distances.min(axis=1) < 1e-5)
    shares = np.bincount(distances.argmin(axis=1), minlength=4) / 200
    np.testing.assert_allclose(shares, [0.16, 0.24, 0.24, 0.36], atol=0.1)


def test_resize_is_bicubic_without_antialiasing() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    resized = eqx_vit.resize(model, (48, 16))
    table = model.position_embedding.reshape(4, 4, -1)
    expected = jax.image.resize(table, (6, 2, 48), jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=False)
    np.testing.assert_allclose(resized.position_embedding, expected.reshape(12, 48), atol=1e-6)
    assert eqx.filter_eval_shape(eqx.nn.inference_mode(resized), jnp.zeros((48, 16, 3))).shape == (7,)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    depth=st.integers(1, 3),
    cls_depth=st.integers(1, 3),
    channels=st.integers(1, 4),
    dim_head=st.none() | st.integers(1, 8),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    heads: int,
    depth: int,
    cls_depth: int,
    channels: int,
    dim_head: int | None,
) -> None:
    image_size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = CaiTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        cls_depth=cls_depth,
        heads=heads,
        mlp_dim=16,
        channels=channels,
        dim_head=dim_head,
    )
    features, logits = shapes(CaiT, config, image_size)
    assert features == (1 + grid[0] * grid[1], 8 * heads)
    assert logits == (5,)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 64))
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int) -> None:
    assume(size % patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, patch_size=patch_size)


def test_seed_call_has_the_official_structure() -> None:
    config = CaiTConfig(
        image_size=256,
        patch_size=32,
        num_classes=1000,
        dim=1024,
        depth=12,
        cls_depth=2,
        heads=16,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
        layer_dropout=0.05,
    )
    model = eqx.filter_eval_shape(CaiT, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 121_873_768
    wide = eqx.filter_eval_shape(CaiT, replace(config, cls_mlp_dim=4096), key=jax.random.key(0))
    assert eqx_vit.count_params(wide) == 130_266_472
