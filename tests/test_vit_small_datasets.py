"""SmallDatasetViT, SPT and LSA against the golden files of the official code."""

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
from eqx_vit import LSA, SPT, SmallDatasetViT, SmallDatasetViTConfig
from eqx_vit.models.vit_small_datasets import ShiftedMerging, shifted
from eqx_vit.testing import shapes

BASE = SmallDatasetViTConfig(image_size=16, patch_size=4, num_classes=7, dim=48, depth=2, heads=4, mlp_dim=96)
CASES = {
    "vit_small_datasets-sl": (BASE, "official"),
    "vit_small_datasets-lsa": (replace(BASE, image_size=(24, 40), patch_size=8, shifted_patches=False), "official"),
    "vit_small_datasets-spt": (
        replace(BASE, image_size=(12, 18), patch_size=6, heads=3, dim_head=20, locality_attention=False),
        "official",
    ),
    "vit_small_datasets-oddpatch": (replace(BASE, image_size=15, patch_size=5), "official"),
    "vit_small_datasets-base": (
        replace(BASE, image_size=32, patch_size=8, heads=1, shifted_patches=False, locality_attention=False),
        "official",
    ),
    "vit_small_datasets-eps": (BASE, "official"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


def with_weights(spt: SPT, weights: dict[str, np.ndarray]) -> SPT:
    return eqx.tree_at(
        lambda spt: (spt.norm.weight, spt.norm.bias, spt.linear.weight, spt.linear.bias),
        spt,
        tuple(jnp.asarray(weights[f"merging.{part}"]) for part in ("1.weight", "1.bias", "2.weight", "2.bias")),
    )


def test_spt_alone() -> None:
    golden = golden_files.read("vit_small_datasets-spt-module")
    images = golden.image_batch()
    channels_first = jnp.moveaxis(jax.vmap(lambda image: shifted(image, (4, 4)))(images), -1, 1)
    golden_files.close(channels_first, golden.arrays["shifted"], 0, "shifted")
    spt = with_weights(SPT(24, 4, key=jax.random.key(0)), golden.state)
    tokens = eqx.filter_vmap(spt)(images)
    golden_files.close(tokens, golden.arrays["output"], 2e-5, "output")
    assert np.abs(tokens - golden.arrays["output_vit_pytorch"]).max() > 0.1  # its shifts are others


@pytest.mark.parametrize("mode", ["pool", "pool_cls"])
def test_spt_merges_tokens(mode: str) -> None:
    golden = golden_files.read("vit_small_datasets-spt-module")
    prefix = f"{mode}/state/"
    weights = {key.removeprefix(prefix): array for key, array in golden.arrays.items() if key.startswith(prefix)}
    merging = ShiftedMerging(16, 2, channels=8, class_token=mode == "pool_cls", key=jax.random.key(0))
    merging = eqx.tree_at(lambda merging: merging.merging, merging, with_weights(merging.merging, weights))
    if merging.class_linear is not None:
        merging = eqx.tree_at(
            lambda merging: (merging.class_linear.weight, merging.class_linear.bias),
            merging,
            tuple(jnp.asarray(weights[f"class_linear.{part}"]) for part in ("weight", "bias")),
        )
    tokens = jax.vmap(lambda tokens: merging(tokens, (4, 4)))(jnp.asarray(golden.arrays[f"{mode}/input"]))
    golden_files.close(tokens, golden.arrays[f"{mode}/output"], 2e-5, mode)


def test_spt_refuses_images_that_do_not_fit() -> None:
    spt = SPT(24, (4, 2), key=jax.random.key(0))
    assert spt(jnp.ones((8, 6, 3))).shape == (6, 24)
    with pytest.raises(ValueError, match=r"\(8, 5\) is not a multiple of \(4, 2\): use \(8, 4\) or \(8, 6\)"):
        spt(jnp.ones((8, 5, 3)))
    with pytest.raises(ValueError, match=r"takes images of \(height, width, 3\), given \(3, 8, 6\)"):
        spt(jnp.ones((3, 8, 6)))


def test_lsa_leaves_out_the_token_itself() -> None:
    lsa = LSA(8, 2, key=jax.random.key(0))
    np.testing.assert_array_equal(lsa.scale, np.full(2, 4**-0.5, np.float32))
    # A value reaches every output but its own: with one constant query, outputs depend on the other tokens alone.
    silent = eqx.tree_at(lambda lsa: lsa.qkv.weight, lsa, lsa.qkv.weight.at[:16].set(0))
    slopes = jax.jacobian(silent)(jax.random.normal(jax.random.key(1), (5, 8)))
    own = np.abs(slopes).sum(axis=(1, 3))
    assert np.all((own == 0) == np.eye(5, dtype=bool))


def test_resize() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    resized = eqx_vit.resize(model, (24, 12))
    assert resized.position_embedding.shape == (19, 48)
    np.testing.assert_array_equal(resized.position_embedding[0], model.position_embedding[0])
    assert resized(jnp.zeros((24, 12, 3))).shape == (7,)


def test_initialisation_is_the_official_one() -> None:
    model, _ = eqx_vit.create(replace(BASE, dim=192, heads=12, mlp_dim=384, depth=3), key=jax.random.key(0))
    block = model.blocks.block
    linears = {
        192 + 3 * 192: block.attention.qkv,
        192 + 192: block.attention.projection,
        192 + 384: block.mlp.expand,
        5 * 48 + 192: model.patch_embedding.linear,
    }
    for fans, linear in linears.items():
        assert np.isclose(np.std(linear.weight), np.sqrt(2 / fans), rtol=0.02)
        assert np.abs(linear.weight).max() > np.sqrt(6 / fans)  # normal, not uniform
        assert linear.bias is None or not np.any(linear.bias)
    for table in (model.class_token, model.position_embedding):
        assert np.isclose(np.std(table), 1, rtol=0.15)
    np.testing.assert_array_equal(block.attention.scale, np.full((3, 12), 16**-0.5, np.float32))
    plain = eqx.filter_eval_shape(SmallDatasetViT, CASES["vit_small_datasets-base"][0], key=jax.random.key(0))
    assert plain.blocks.block.attention.scale is None
    assert isinstance(plain.blocks.block.attention.projection, eqx.nn.Identity)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    dim_head=st.none() | st.integers(1, 9),
    depth=st.integers(1, 3),
    channels=st.integers(1, 4),
    pool=st.sampled_from(["cls", "mean"]),
    shifted_patches=st.booleans(),
    locality_attention=st.booleans(),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    heads: int,
    dim_head: int | None,
    depth: int,
    channels: int,
    pool: Any,
    shifted_patches: bool,
    locality_attention: bool,
) -> None:
    image_size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = SmallDatasetViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        mlp_dim=16,
        channels=channels,
        dim_head=dim_head,
        pool=pool,
        shifted_patches=shifted_patches,
        locality_attention=locality_attention,
    )
    features, logits = shapes(SmallDatasetViT, config, image_size)
    assert features == (1 + grid[0] * grid[1], 8 * heads)
    assert logits == (5,)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 64))
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int) -> None:
    assume(size % patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, patch_size=patch_size)


def test_seed_calls_have_the_official_structure() -> None:
    config = SmallDatasetViTConfig(
        image_size=256,
        patch_size=16,
        num_classes=1000,
        dim=1024,
        depth=6,
        heads=16,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
    )
    model = eqx.filter_eval_shape(SmallDatasetViT, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 55_613_000
    spt: Any = eqx.filter_eval_shape(SPT, dim=1024, patch_size=16, key=jax.random.key(0))
    assert eqx_vit.count_params(spt) == 3_940_864
    assert eqx.filter_eval_shape(spt, jnp.zeros((256, 256, 3))).shape == (256, 1024)
