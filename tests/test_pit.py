"""PiT: the pair of heads, the schedule of stochastic depth, other image sizes."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.pit import BASE, GOLDEN

import eqx_vit


def test_heads_are_the_golden_pair() -> None:
    golden, model, _ = golden_files.loaded("pit-distilled", *GOLDEN["pit-distilled"])
    logits, distilled = eqx.filter_vmap(model.logits_pair)(golden.image_batch())
    golden_files.close(logits, golden.arrays["output_cls"], 2e-5, "output_cls")
    golden_files.close(distilled, golden.arrays["output_dist"], 2e-5, "output_dist")


def test_heads_need_distillation() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="distillation=True"):
        model.logits_pair(jnp.zeros((40, 40, 3)))


def test_drop_path_rises_from_zero_to_just_under_the_rate() -> None:
    config = replace(BASE, depth=(1, 1), heads=2, drop_path=0.999)
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (40, 40, 3))
    logits = eqx.filter_jit(jax.vmap(lambda key: model(image, key=key)))(jax.random.split(jax.random.key(2), 64))
    # The first block never drops; the last drops each of its two branches half of the time.
    assert len(np.unique(np.round(np.asarray(logits), 4), axis=0)) == 4


def test_resize_resamples_the_position_map() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    resized = eqx_vit.resize(model, (48, 24))
    assert resized.position_embedding.shape == (11, 5, 16)
    assert eqx.filter_eval_shape(resized, jnp.zeros((48, 24, 3))).shape == (5,)
    with pytest.raises(ValueError, match=r"eqx_vit\.resize\(model, \(48, 24\)\)"):
        model(jnp.zeros((48, 24, 3)))
