"""LeViT beyond the tables: two heads, BatchNorm in a replaced head, the downsampling, what cannot be resized."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.levit import BASE, GOLDEN, TINY

import eqx_vit
from eqx_vit import LeViT
from eqx_vit.layers import BATCH_AXIS, BatchNorm
from eqx_vit.models.levit import NormLinear
from eqx_vit.weights import load_state_dict, to_state_dict


def head_norm(model: LeViT) -> BatchNorm:
    assert isinstance(model.head, NormLinear)
    return model.head.norm


def test_heads_and_their_training_gradients() -> None:
    name = "levit-distilled"
    golden, model, state = golden_files.loaded(name, *GOLDEN[name])

    def pair(model: Any, images: Any) -> Any:
        heads = jax.vmap(
            lambda image, state: model.logits_pair(image, state)[0], in_axes=(0, None), axis_name=BATCH_AXIS
        )
        return heads(images, state)

    logits, distilled = eqx.filter_jit(pair)(eqx.nn.inference_mode(model), golden.image_batch())
    golden_files.close(logits, golden.arrays["output_cls"], 2e-5, "output_cls")
    golden_files.close(distilled, golden.arrays["output_dist"], 2e-5, "output_dist")

    @eqx.filter_jit
    @eqx.filter_grad
    def gradients(model: Any) -> Any:
        logits, distilled = pair(model, golden.image_batch("train_input"))
        cotangent, cotangent_dist = golden.arrays["train_cotangent"], golden.arrays["train_cotangent_dist"]
        return jnp.sum(logits * cotangent) + jnp.sum(distilled * cotangent_dist)

    # Batch 4 on maps down to 1x1 is noisy: the fact sheet allows 3e-4 of the largest element.
    golden_files.compare_gradients(golden, "train_grad/", gradients(model), state, "official", 3e-4, name)


def test_statistics_start_as_those_of_a_standard_normal() -> None:
    model, state = eqx_vit.create(TINY, key=jax.random.key(0))
    mean, variance = state.get(head_norm(model).statistics)
    np.testing.assert_array_equal(mean, np.zeros(16))
    np.testing.assert_array_equal(variance, np.ones(16))


def test_a_new_head_finds_its_statistics_in_the_old_state() -> None:
    model, state = eqx_vit.create(TINY, key=jax.random.key(0))
    state = state.set(head_norm(model).statistics, (jnp.full(16, 2.0, jnp.float32), jnp.full(16, 3.0, jnp.float32)))
    headless = eqx_vit.replace_head(model, 0, key=jax.random.key(1))
    again = eqx_vit.replace_head(headless, 9, key=jax.random.key(2))
    for swapped in (eqx_vit.replace_head(model, 9, key=jax.random.key(2)), again):
        mean, variance = state.get(head_norm(swapped).statistics)
        assert float(mean[0]) == 2
        assert float(variance[0]) == 3
        logits, _ = eqx.filter_eval_shape(eqx_vit.forward, swapped, state, jnp.zeros((2, 64, 64, 3)))
        assert logits.shape == (2, 9)


def test_the_downsampling_has_sizes_of_its_own() -> None:
    """By hand, of weights under official names: 4 x 4 tokens to 2 x 2, two heads of key size 5 and value size 3."""
    sizes = {"downsample_heads": (2,), "downsample_dim_key": 5, "downsample_dim_value": 3, "downsample_mlp_mult": 1.5}
    model, state = golden_files.zeros(replace(TINY, dim=(16, 24), depth=1, **sizes))
    random = np.random.default_rng(0)
    blank = to_state_dict(model, state, "official")
    weights = {
        name: array if "idxs" in name else random.uniform(0.2, 1.2, array.shape).astype(np.float32)
        for name, array in blank.items()
    }
    model, state = load_state_dict(model, state, weights, source="official")

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        ends = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (weights[f"blocks.{name}.bn.{end}"] for end in ends)
        return (x @ weights[f"blocks.{name}.c.weight"].T - mean) / np.sqrt(variance + 1e-5) * scale + shift

    tokens = random.standard_normal((16, 16), dtype=np.float32) / 16
    key_value = linear("2.kv", tokens).reshape(16, 2, 8).transpose(1, 0, 2)
    query = linear("2.q.1", tokens.reshape(4, 4, 16)[::2, ::2].reshape(4, 16)).reshape(4, 2, 5).transpose(1, 0, 2)
    rows, columns = np.divmod(np.arange(16), 4)
    index = np.abs(rows[[0, 2, 8, 10], None] - rows) * 4 + np.abs(columns[[0, 2, 8, 10], None] - columns)
    scores = query @ key_value[..., :5].transpose(0, 2, 1) * 5**-0.5 + weights["blocks.2.attention_biases"][:, index]
    maps = np.exp(scores - scores.max(-1, keepdims=True))
    attended = maps / maps.sum(-1, keepdims=True) @ key_value[..., 5:]
    expected = linear("2.proj.1", hard_swish(attended.transpose(1, 0, 2).reshape(4, 6)))
    assert weights["blocks.3.m.0.c.weight"].shape == (36, 24)
    expected = expected + linear("3.m.2", hard_swish(linear("3.m.0", expected)))
    found, _ = eqx.nn.inference_mode(model).downsamples[0](jnp.asarray(tokens), state)
    golden_files.close(found, expected, 1e-4 * float(np.abs(expected).max()), "downsampling")


def hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x + 3, 0, 6) / 6


@pytest.mark.parametrize("source", ["timm", "hf"])
def test_the_ports_have_no_names_for_such_a_downsampling(source: str) -> None:
    model, state = golden_files.zeros(replace(BASE, dim=(32, 48, 64), downsample_mlp_mult=3))
    with pytest.raises(ValueError, match="has downsampling blocks of"):
        to_state_dict(model, state, source)


def test_resize_is_refused() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="attention biases belong to maps of"):
        eqx_vit.resize(model, 96)
