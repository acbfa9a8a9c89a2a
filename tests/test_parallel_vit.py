"""Parallel ViT, with and without the hMLP stem: its branches, their names, other image sizes."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.parallel_vit import BASE, TIMM
from cases.parallel_vit_hmlp import HMLP

import eqx_vit
from eqx_vit.layers import resize_table
from eqx_vit.paths import named_leaves
from eqx_vit.weights import load_state_dict, to_state_dict


def test_a_block_is_the_sum_of_its_branches() -> None:
    model, _ = eqx_vit.create(replace(BASE, layer_scale=0.5), key=jax.random.key(0))
    block, scale = model.encoder.blocks[0], jnp.ones(())
    tokens = jax.random.normal(jax.random.key(1), (5, 48))
    one, two = block.attentions
    expected = tokens + one(tokens, scale) + two(tokens, scale)
    one, two = block.mlps
    expected = expected + one(expected, scale) + two(expected, scale)
    np.testing.assert_allclose(block(tokens, scale), expected, atol=1e-6)


@pytest.mark.parametrize("source", ["timm", "official"])
def test_one_branch_has_the_names_of_ordinary_blocks(source: str) -> None:
    model, state = eqx_vit.create(replace(BASE, num_parallel_branches=1, layer_scale=0.1), key=jax.random.key(0))
    weights = to_state_dict(model, state, source)
    assert {"blocks.1.norm1.weight", "blocks.1.attn.qkv.weight", "blocks.1.mlp.fc2.bias"} < set(weights)
    again, _ = load_state_dict(model, state, weights, source=source)
    assert eqx.tree_equal(again, model)


@pytest.mark.parametrize("prefix_positions", [False, True])
def test_without_a_class_token_and_with_the_norm_after_the_pool(prefix_positions: bool) -> None:
    """timm's options: its table is one of the patches, its norm is called `fc_norm`; DeiT's code has neither."""
    config = replace(BASE, prefix_positions=prefix_positions, class_token=False, pool="mean", pool_norm=True)
    model, state = golden_files.zeros(config)
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(array.shape, dtype=np.float32) / 5
        for name, array in to_state_dict(model, state, "timm").items()
    }
    assert weights["pos_embed"].shape == (1, 16, 48)
    assert "fc_norm.weight" in weights
    assert not {"cls_token", "norm.weight"} & set(weights)
    model, state = load_state_dict(model, state, weights, source="timm")
    image = jnp.asarray(random.standard_normal((32, 32, 3), dtype=np.float32))
    tokens = model.patch_embedding(image).reshape(16, 48) + weights["pos_embed"][0]
    for block in model.encoder.blocks:
        tokens = block(tokens)
    np.testing.assert_allclose(model.features(image), tokens, atol=1e-5, strict=True)
    pooled = np.mean(tokens, axis=0)
    normed = (pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-6) * weights["fc_norm.weight"]
    expected = weights["head.weight"] @ (normed + weights["fc_norm.bias"]) + weights["head.bias"]
    np.testing.assert_allclose(model(image), expected, atol=1e-5)
    with pytest.raises(ValueError, match="DeiT's ViT cannot have this model's class_token"):
        to_state_dict(model, state, "official")


def test_three_branches_have_no_official_names() -> None:
    model, state = eqx_vit.create(replace(BASE, num_parallel_branches=3), key=jax.random.key(0))
    with pytest.raises(ValueError, match="one or two branches, not 3: use 'timm'"):
        to_state_dict(model, state, "official")


@pytest.mark.parametrize("config", [BASE, TIMM, HMLP, replace(TIMM, class_token=False, pool="mean")])
def test_resize_resamples_the_positions_of_the_patches(config: Any) -> None:
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    larger = eqx_vit.resize(model, (64, 32))
    assert larger.config == replace(config, image_size=(64, 32))
    before, after = (jnp.asarray(named_leaves(each)["encoder.position_embedding"]) for each in (model, larger))
    np.testing.assert_array_equal(after, resize_table(before, config.grid, replace(config, image_size=(64, 32)).grid))
