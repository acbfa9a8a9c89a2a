"""PatchMerger alone, against the golden file of vit-pytorch and the formula, and what its ViT loads and resizes."""

from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.patch_merger import BASE, GOLDEN, VIT_PYTORCH
from hypothesis import given, strategies as st

import eqx_vit
from eqx_vit import PatchMerger
from eqx_vit.weights import to_state_dict
from eqx_vit.weights.names import name_map


@pytest.mark.parametrize(
    ("output", "arguments"),
    [
        ("output", {}),
        ("output_paper", {"norm_eps": None, "scale": 1.0}),
        ("output_paper_scaled", {"norm_eps": None}),
    ],
)
def test_module_alone(output: str, arguments: dict[str, Any]) -> None:
    golden = golden_files.read("patch_merger-module")
    merger = PatchMerger(32, 8, **arguments, key=jax.random.key(0))
    merger = eqx.tree_at(lambda merger: merger.queries, merger, jnp.asarray(golden.state["queries"]))
    if "norm_eps" not in arguments:
        norm = [jnp.asarray(golden.state[f"norm.{name}"]) for name in ("weight", "bias")]
        merger = eqx.tree_at(lambda merger: [merger.norm.weight, merger.norm.bias], merger, norm)
    merged = jax.vmap(merger)(jnp.asarray(golden.arrays["input"]))
    golden_files.close(merged, golden.arrays[output], 2e-5, output)


@given(tokens=st.integers(1, 40), dim=st.integers(1, 20), merged=st.integers(1, 50))
def test_module_takes_any_number_of_tokens(tokens: int, dim: int, merged: int) -> None:
    merger = eqx.filter_eval_shape(PatchMerger, dim, merged, key=jax.random.key(0))
    result = eqx.filter_eval_shape(merger, jax.ShapeDtypeStruct((tokens, dim), jnp.float32))
    assert result.shape == (merged, dim)


def test_module_does_not_see_the_order_of_the_tokens() -> None:
    merger = PatchMerger(16, 3, key=jax.random.key(0))
    tokens = jax.random.normal(jax.random.key(1), (7, 16))
    np.testing.assert_allclose(merger(tokens[::-1]), merger(tokens), atol=1e-6)


def test_vit_pytorchs_last_position_is_dropped_and_comes_back_as_zero() -> None:
    golden, model, state = golden_files.loaded("patch_merger-vitpt", *GOLDEN["patch_merger-vitpt"][:2])
    table = golden.state["pos_embedding"]
    np.testing.assert_array_equal(model.position_embedding, table[0, :-1])
    returned = to_state_dict(model, state, "vit_pytorch")["pos_embedding"]
    np.testing.assert_array_equal(returned[0], np.concatenate([table[0, :-1], np.zeros((1, 48))]))


def test_timm_has_no_norms_around_the_patch_embedding() -> None:
    with pytest.raises(ValueError, match="use the vit_pytorch layout"):
        name_map(VIT_PYTORCH, "timm")


def test_resize() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    resized = eqx_vit.resize(model, (48, 16))
    table = model.position_embedding.reshape(4, 4, -1)
    expected = jax.image.resize(table, (6, 2, 48), jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=True)
    np.testing.assert_allclose(resized.position_embedding, expected.reshape(12, 48), atol=1e-6)
    assert eqx.filter_eval_shape(eqx.nn.inference_mode(resized), jnp.zeros((48, 16, 3))).shape == (7,)
