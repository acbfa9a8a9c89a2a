"""NesT beyond the tables: the other GELU, the windows, and what it refuses."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import numpy as np
import pytest
from cases.nest import BASE, CIFAR, GOLDEN
from jaxtyping import Array

import eqx_vit
from eqx_vit import NesT
from eqx_vit.layers import kernels
from eqx_vit.weights.names import name_map


@pytest.mark.parametrize("name", [name for name in GOLDEN if "official" in name])
def test_exact_gelu_is_the_other_golden_output(name: str) -> None:
    config, source = GOLDEN[name]
    golden, model, state = golden_files.loaded(name, replace(config, approximate_gelu=False), source)
    logits, _ = eqx.filter_jit(eqx_vit.forward)(model, state, golden.image_batch())
    golden_files.close(logits, golden.arrays["output_exact_gelu"], 2e-5, name)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("typed", [True, False])
def test_windows_in_chunks_are_those_one_by_one(count: int, typed: bool) -> None:
    """Each window meets its own key, whatever the chunks."""
    windows = jax.random.normal(jax.random.key(0), (count, 3, 2))
    keys = jax.random.split(jax.random.key(1) if typed else jax.random.PRNGKey(1), count)

    def add_noise(window: Array, key: Array | None) -> Array:
        return window if key is None else window + jax.random.normal(key, window.shape)

    expected = np.stack([add_noise(window, key) for window, key in zip(windows, keys, strict=True)])
    np.testing.assert_array_equal(kernels.map_windows(add_noise, windows, keys), expected)
    np.testing.assert_array_equal(kernels.map_windows(add_noise, windows, None), windows)


def test_timm_has_no_multi_query_names() -> None:
    with pytest.raises(ValueError, match="use source='official'"):
        name_map(CIFAR, "timm")


def test_resize_is_refused() -> None:
    with pytest.raises(ValueError, match="position tables belong to windows of"):
        eqx_vit.resize(eqx.filter_eval_shape(NesT, BASE, key=jax.random.key(0)), 96)
