"""DeepViT beyond the tables: the start of its statistics, re-attention in any of the blocks, its position table."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.deepvit import BASE, indices
from hypothesis import given, strategies as st

import eqx_vit
from eqx_vit.layers import gelu, resize_table
from eqx_vit.models.deepvit import ReAttention
from eqx_vit.paths import named_leaves
from eqx_vit.weights import load_state_dict, to_state_dict


def test_statistics_of_the_attention_maps_start_at_zero_and_one() -> None:
    model, state = eqx_vit.create(BASE, key=jax.random.key(0))
    assert model.re_attention_blocks is not None
    attention = model.re_attention_blocks.block.attention
    assert isinstance(attention, ReAttention)
    mean, variance = model.re_attention_blocks.state_at(state, 0).get(attention.mix_norm.statistics)
    np.testing.assert_array_equal(mean, np.zeros(4))
    np.testing.assert_array_equal(variance, np.ones(4))


@given(indices=st.integers(1, 6).flatmap(lambda depth: st.tuples(st.just(depth), indices(depth))))
def test_the_runs_of_blocks_are_those_of_the_indices(indices: tuple[int, tuple[int, ...]]) -> None:
    depth, chosen = indices
    depths = replace(BASE, depth=depth, re_attention_indices=chosen).depths
    kinds = [run % 2 == 1 for run, count in enumerate(depths) for _ in range(count)]
    assert kinds == [index in chosen for index in range(depth)]
    assert len(depths) >= 2
    assert all(depths[2:])


def test_the_last_blocks_can_be_said_by_their_indices() -> None:
    one, two = (
        eqx.filter_eval_shape(eqx_vit.create, replace(BASE, **changes), key=jax.random.key(0))
        for changes in ({"re_attention_depth": 2}, {"re_attention_indices": (1, 2)})
    )
    assert named_leaves(one[0]) == named_leaves(two[0])


@pytest.mark.parametrize("chosen", [(1,), (0, 2)])
def test_re_attention_in_any_of_the_blocks(chosen: tuple[int, ...]) -> None:
    """In turn by hand, each block under the number that it has in the official code."""
    config = replace(BASE, dim=12, mlp_dim=16, depth=4, re_attention_indices=chosen)
    model, state = golden_files.zeros(config)
    random = np.random.default_rng(0)
    weights = {
        name: random.uniform(0.2, 1.2, array.shape).astype(np.float32) * (1 if "var" in name else 0.5)
        for name, array in to_state_dict(model, state, "official").items()
    }
    assert {int(name.split(".")[1]) for name in weights if name.endswith("reatten_matrix.weight")} == set(chosen)
    model, state = load_state_dict(model, state, weights, source="official")
    tokens = expected = random.standard_normal((5, 12), dtype=np.float32)
    for index in range(4):
        expected = block_by_hand(weights, f"blocks.{index}.", expected, 4, index in chosen)
    features, _ = eqx.nn.inference_mode(model).encode(jnp.asarray(tokens), state, key=None)
    np.testing.assert_allclose(features, norm_by_hand(weights, "norm", expected), atol=2e-5)


def block_by_hand(
    weights: dict[str, np.ndarray], prefix: str, tokens: np.ndarray, heads: int, re_attention: bool
) -> np.ndarray:
    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{prefix}{name}.weight"].T + weights[f"{prefix}{name}.bias"]

    qkv = linear("attn.qkv", norm_by_hand(weights, f"{prefix}norm1", tokens))
    query, keys, value = qkv.reshape(len(tokens), 3, heads, -1).transpose(1, 2, 0, 3)
    maps = np.exp(query @ keys.transpose(0, 2, 1) * query.shape[-1] ** -0.5)
    maps = maps / maps.sum(-1, keepdims=True)
    if re_attention:
        mixed = np.tensordot(weights[f"{prefix}attn.reatten_matrix.weight"][:, :, 0, 0], maps, 1)
        names = [f"var_norm.{name}" for name in ("running_mean", "running_var", "weight", "bias")]
        bias, mean, variance, scale, shift = (
            weights[f"{prefix}attn.{name}"][:, None, None] for name in ("reatten_matrix.bias", *names)
        )
        maps = (mixed + bias - mean) / np.sqrt(variance + 1e-5) * scale + shift
    tokens = tokens + linear("attn.proj", (maps @ value).transpose(1, 0, 2).reshape(len(tokens), -1))
    hidden = linear("mlp.fc1", norm_by_hand(weights, f"{prefix}norm2", tokens))
    return tokens + linear("mlp.fc2", np.asarray(gelu(jnp.asarray(hidden))))


def norm_by_hand(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def test_resize_resamples_the_positions_of_the_patches() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    larger = eqx_vit.resize(model, (48, 32))
    assert larger.config == replace(BASE, image_size=(48, 32))
    expected = resize_table(model.position_embedding, (4, 4), (6, 4))
    np.testing.assert_array_equal(larger.position_embedding, expected)
    assert np.array_equal(larger.position_embedding[0], model.position_embedding[0])
