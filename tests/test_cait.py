"""CaiT beyond the tables: layer scale by depth, layer dropout, and its position table."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.cait import BASE

import eqx_vit


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
            middle = tokens + first * block.layer_scale1(block.attention(block.norm1(tokens)))
            expected += [
                middle + second * block.layer_scale2(block.mlp(block.norm2(middle))) for second in (0.0, 1 / 0.6)
            ]
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
