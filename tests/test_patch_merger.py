"""PatchMerger, alone and in a ViT, against the golden files of vit-pytorch, the formula and timm's blocks."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import PatchMerger, PatchMergerViT, PatchMergerViTConfig
from eqx_vit.testing import shapes
from eqx_vit.weights import to_state_dict
from eqx_vit.weights.names import name_map

BASE = PatchMergerViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=3, heads=3, mlp_dim=96)
VIT_PYTORCH = replace(BASE, qkv_bias=False, patch_norm=True, norm_eps=1e-5, patch_merge_num_tokens=5)
CASES = {
    "patch_merger-plain": (replace(BASE, patch_merge_layer=1, patch_merge_num_tokens=4), "timm"),
    "patch_merger-vitpt": (replace(VIT_PYTORCH, patch_merge_layer=2), "vit_pytorch"),
    "patch_merger-vitpt-default": (
        replace(
            VIT_PYTORCH,
            image_size=(24, 40),
            num_classes=6,
            dim=16,
            depth=4,
            heads=1,
            mlp_dim=40,
            project_out=False,
            patch_merge_num_tokens=3,
        ),
        "vit_pytorch",
    ),
    "patch_merger-eps": (replace(VIT_PYTORCH, mlp_dim=64, patch_merge_layer=1), "vit_pytorch"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name], spare=("pos_embedding",))


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
    golden, model, state = golden_files.loaded("patch_merger-vitpt", *CASES["patch_merger-vitpt"])
    table = golden.state["pos_embedding"]
    np.testing.assert_array_equal(model.position_embedding, table[0, :-1])
    returned = to_state_dict(model, state, "vit_pytorch")["pos_embedding"]
    np.testing.assert_array_equal(returned[0], np.concatenate([table[0, :-1], np.zeros((1, 48))]))


def test_timm_has_no_norms_around_the_patch_embedding() -> None:
    with pytest.raises(ValueError, match="use the vit_pytorch layout"):
        name_map(VIT_PYTORCH, "timm")


def test_initialisation() -> None:
    model, _ = eqx_vit.create(replace(BASE, dim=192, mlp_dim=768, num_classes=100), key=jax.random.key(0))
    block, later = model.blocks.block, model.merged_blocks.block
    linears = [model.patch_embedding.linear, block.attention.qkv, block.mlp.expand, later.attention.projection]
    for linear in (*linears, later.mlp.contract, model.head):
        assert np.isclose(np.std(linear.weight), 0.02, rtol=0.05)
        assert not np.any(linear.bias)
    assert np.isclose(np.std(model.position_embedding), 0.02, rtol=0.1)
    assert np.isclose(np.std(model.patch_merger.queries), 1, rtol=0.1)


def test_resize() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    resized = eqx_vit.resize(model, (48, 16))
    table = model.position_embedding.reshape(4, 4, -1)
    expected = jax.image.resize(table, (6, 2, 48), jax.image.ResizeMethod.CUBIC_PYTORCH, antialias=True)
    np.testing.assert_allclose(resized.position_embedding, expected.reshape(12, 48), atol=1e-6)
    assert eqx.filter_eval_shape(eqx.nn.inference_mode(resized), jnp.zeros((48, 16, 3))).shape == (7,)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    depth=st.integers(1, 4),
    merged=st.integers(1, 40),
    channels=st.integers(1, 4),
    patch_norm=st.booleans(),
    data=st.data(),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    heads: int,
    depth: int,
    merged: int,
    channels: int,
    patch_norm: bool,
    data: Any,
) -> None:
    image_size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = PatchMergerViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        mlp_dim=16,
        patch_merge_layer=data.draw(st.none() | st.integers(1, depth)),
        patch_merge_num_tokens=merged,
        channels=channels,
        patch_norm=patch_norm,
    )
    features, logits = shapes(PatchMergerViT, config, image_size)
    assert features == (merged, 8 * heads)
    assert logits == (5,)


@pytest.mark.parametrize("layer", [-1, 0, 4])
def test_layers_that_are_not_there_are_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=f"patch_merge_layer counts blocks from 1: use 1 to 3, given {layer}"):
        replace(BASE, patch_merge_layer=layer)


def test_attention_without_projection_needs_the_full_width() -> None:
    with pytest.raises(ValueError, match="project_out=False needs heads"):
        replace(BASE, project_out=False, dim_head=8)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 64))
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int) -> None:
    assume(size % patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, patch_size=patch_size)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 102_885_352),
        ({"dim_head": 64}, 77_701_096),
        # vit-pytorch's counts, less the row of its position table that is never read.
        ({"qkv_bias": False, "patch_norm": True}, 102_853_096 - 1024),
        ({"qkv_bias": False, "patch_norm": True, "dim_head": 64}, 77_687_272 - 1024),
    ],
)
def test_seed_call(changes: dict[str, Any], count: int) -> None:
    config = PatchMergerViTConfig(
        image_size=256,
        patch_size=16,
        num_classes=1000,
        dim=1024,
        depth=12,
        heads=8,
        patch_merge_layer=6,
        patch_merge_num_tokens=8,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
    )
    model = eqx.filter_eval_shape(PatchMergerViT, replace(config, **changes), key=jax.random.key(0))
    assert eqx_vit.count_params(model) == count
