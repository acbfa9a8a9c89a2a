"""ViT against the golden files of timm, DeiT, transformers and google-research."""

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
from eqx_vit import ViT, ViTConfig
from eqx_vit.layers import resize_table
from eqx_vit.testing import shapes

BASE = ViTConfig(image_size=32, patch_size=8, num_classes=7, dim=48, depth=2, heads=3, mlp_dim=192)
CASES = {
    "vit-cls": (BASE, "timm"),
    "vit-avg": (replace(BASE, pool="mean"), "timm"),
    "vit-gap": (replace(BASE, pool="mean", class_token=False, pool_norm=False), "timm"),
    "vit-reg4gap": (
        replace(
            BASE,
            image_size=(32, 48),
            pool="mean",
            class_token=False,
            register_tokens=4,
            prefix_positions=False,
            layer_scale=1e-5,
        ),
        "timm",
    ),
    "vit-clsreg2": (replace(BASE, register_tokens=2, layer_scale=1e-4), "timm"),
    "vit-qknorm": (replace(BASE, patch_size=(8, 4), mlp_dim=120, qk_norm=True, qkv_bias=False), "timm"),
    "vit-prenorm": (replace(BASE, pre_norm=True, prefix_positions=False), "timm"),
    "vit-headdim": (replace(BASE, heads=4, dim_head=8), "timm"),
    "vit-distilled": (replace(BASE, distillation=True), "timm"),
    "vit-deit3": (replace(BASE, prefix_positions=False, layer_scale=1e-6), "official"),
    "vit-hf": (replace(BASE, norm_eps=1e-12), "hf"),
    "vit-jax-token": (replace(BASE, approximate_gelu=True), "flax"),
    "vit-jax-gap-rep": (
        ViTConfig(
            image_size=(24, 40),
            patch_size=8,
            num_classes=6,
            dim=32,
            depth=2,
            heads=4,
            mlp_dim=96,
            pool="mean",
            class_token=False,
            pool_norm=False,
            representation_size=20,
            approximate_gelu=True,
        ),
        "flax",
    ),
    "vit-eps": (replace(BASE, mlp_dim=96, qk_norm=True), "timm"),
    "vit-eps-avg": (replace(BASE, mlp_dim=96, pool="mean", pre_norm=True), "timm"),
    "vit-eps-hf": (replace(BASE, mlp_dim=96, norm_eps=1e-12), "hf"),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


@pytest.mark.parametrize("name", ["vit-cls", "vit-gap", "vit-reg4gap", "vit-qknorm", "vit-distilled"])
def test_features_are_the_golden_tokens(name: str) -> None:
    golden, model, _ = golden_files.loaded(name, *CASES[name])
    tokens = eqx.filter_vmap(model.features)(golden.image_batch())
    golden_files.close(tokens, golden.arrays["aux/tokens"], 2e-5, name)


def test_heads_are_the_golden_pair() -> None:
    golden, model, _ = golden_files.loaded("vit-distilled", *CASES["vit-distilled"])
    logits, distilled = eqx.filter_vmap(model.heads)(golden.image_batch())
    golden_files.close(logits, golden.arrays["output_cls"], 2e-5, "output_cls")
    golden_files.close(distilled, golden.arrays["output_dist"], 2e-5, "output_dist")


@pytest.mark.parametrize(("name", "trained", "used"), [("up", 32, (56, 40)), ("down", 64, (40, 24))])
def test_resize_as_timm(name: str, trained: int, used: tuple[int, int]) -> None:
    golden, model, _ = golden_files.loaded(f"vit-interp-{name}", replace(BASE, image_size=trained), "timm")
    model = eqx_vit.resize(model, used)
    golden_files.close(eqx.filter_vmap(model)(golden.image_batch()), golden.arrays["output"], 2e-5, name)


def test_tables_resize_as_timm_and_hugging_face() -> None:
    golden = golden_files.read("vit-posembed")
    for case, grids in golden.meta["config"].items():
        old = jnp.asarray(golden.arrays[f"{case}/old"][0])
        for method, antialias in (("bicubic_antialias", True), ("bicubic", False)):
            table = resize_table(old, tuple(grids["old_grid"]), tuple(grids["new_grid"]), antialias=antialias)
            golden_files.close(table, golden.arrays[f"{case}/{method}"][0], 2e-5, f"{case}/{method}")


def test_initialisation_is_the_official_one() -> None:
    config = replace(BASE, dim=192, heads=3, mlp_dim=768, depth=3)
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    block = model.blocks.block
    limit = np.sqrt(6 / (192 + 192))
    for weight in (block.attention.qkv.weight, block.attention.projection.weight):
        assert np.abs(weight).max() <= limit
        assert np.isclose(np.std(weight), limit / np.sqrt(3), rtol=0.02)
    assert np.isclose(np.std(model.patch_embedding.linear.weight), 1 / np.sqrt(8 * 8 * 3), rtol=0.02)
    assert np.isclose(np.std(block.mlp.expand.bias), 1e-6, rtol=0.1)
    assert np.isclose(np.std(model.position_embedding), 0.02, rtol=0.1)
    assert not np.any(model.head.weight)
    assert not np.any(model.class_token)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    depth=st.integers(1, 3),
    channels=st.integers(1, 4),
    registers=st.integers(0, 3),
    pool=st.sampled_from(["cls", "mean"]),
)
def test_shapes(
    grid: tuple[int, int],
    patch_size: tuple[int, int],
    heads: int,
    depth: int,
    channels: int,
    registers: int,
    pool: Any,
) -> None:
    image_size = (grid[0] * patch_size[0], grid[1] * patch_size[1])
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        mlp_dim=16,
        channels=channels,
        register_tokens=registers,
        pool=pool,
    )
    features, logits = shapes(ViT, config, image_size)
    assert features == (1 + registers + grid[0] * grid[1], 8 * heads)
    assert logits == (5,)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 64))
def test_images_that_do_not_split_into_patches_are_refused(patch_size: int, size: int) -> None:
    assume(size % patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of {patch_size}: use "):
        replace(BASE, image_size=size, patch_size=patch_size)


def test_seed_call_has_the_official_structure() -> None:
    config = ViTConfig(
        image_size=256,
        patch_size=32,
        num_classes=1000,
        dim=1024,
        depth=6,
        heads=16,
        mlp_dim=2048,
        dropout=0.1,
        emb_dropout=0.1,
    )
    model = eqx.filter_eval_shape(ViT, config, key=jax.random.key(0))
    assert eqx_vit.count_params(model) == 54_640_616
