"""PiT against the golden files of the official code and timm."""

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
from eqx_vit import PiT, PiTConfig
from eqx_vit.testing import shapes

BASE = PiTConfig(image_size=40, patch_size=8, num_classes=5, dim=16, depth=(1, 1, 1), heads=(2, 4, 8))
CASES = {
    "pit-basic": (replace(BASE, num_classes=7, depth=(1, 2, 1)), "official"),
    "pit-distilled": (
        PiTConfig(
            image_size=42,
            patch_size=14,
            num_classes=6,
            dim=12,
            depth=(1, 1, 2),
            heads=(1, 2, 4),
            mlp_ratio=3,
            distillation=True,
        ),
        "official",
    ),
    "pit-evenmap": (replace(BASE, image_size=36, dim=(16, 48, 96), heads=(2, 4, 6), mlp_ratio=2), "official"),
    "pit-2stage": (
        PiTConfig(image_size=32, patch_size=16, num_classes=5, dim=32, depth=(2, 1), heads=(2, 4)),
        "official",
    ),
    "pit-timm-rect-distilled": (replace(BASE, image_size=(40, 56), distillation=True), "timm"),
}
SEED_CALL = PiTConfig(
    image_size=224,
    patch_size=14,
    dim=256,
    num_classes=1000,
    depth=(3, 3, 3),
    heads=16,
    mlp_dim=2048,
    dropout=0.1,
    emb_dropout=0.1,
)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("pit_ti", eqx_vit.MODELS["pit"].presets["pit_ti_224"]),
        ("pit_s_distilled", eqx_vit.MODELS["pit"].presets["pit_s_distilled_224"]),
        ("pit_b", eqx_vit.MODELS["pit"].presets["pit_b_224"]),
        ("seed_call", SEED_CALL),
        ("seed_call_official_ratios", replace(SEED_CALL, heads=(4, 8, 16), mlp_dim=None)),
    ],
)
def test_full_size(variant: str, config: PiTConfig) -> None:
    golden_files.check_preset("pit-presets", variant, config, "official")


def test_heads_are_the_golden_pair() -> None:
    golden, model, _ = golden_files.loaded("pit-distilled", *CASES["pit-distilled"])
    logits, distilled = eqx.filter_vmap(model.heads)(golden.image_batch())
    golden_files.close(logits, golden.arrays["output_cls"], 2e-5, "output_cls")
    golden_files.close(distilled, golden.arrays["output_dist"], 2e-5, "output_dist")


def test_heads_need_distillation() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="distillation=True"):
        model.heads(jnp.zeros((40, 40, 3)))


def test_initialisation_is_the_official_one() -> None:
    model, _ = eqx_vit.create(replace(BASE, dim=96, depth=(2, 2, 2), num_classes=200), key=jax.random.key(0))
    block = model.stages[1].block
    for layer, fan_in in (
        (block.attention.qkv, 192),
        (block.attention.projection, 192),
        (block.mlp.expand, 192),
        (block.mlp.contract, 768),
        (model.pools[0].linear, 96),
        (model.pools[0].conv, 9),
        (model.patch_embedding, 192),
        (model.head, 384),
    ):
        for array in (layer.weight, layer.bias):
            assert np.abs(array).max() <= 1 / np.sqrt(fan_in)
            assert np.isclose(np.std(array), 1 / np.sqrt(3 * fan_in), rtol=0.2 if array.size < 1000 else 0.05)
    assert np.isclose(np.std(model.position_embedding), 0.02, rtol=0.05)
    assert np.isclose(np.std(model.class_token), 0.02, rtol=0.2)
    assert not np.allclose(block.mlp.expand.weight[0], block.mlp.expand.weight[1])


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


@given(
    patch_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    extra=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    stride=st.none() | st.integers(1, 6),
    stages=st.integers(1, 3),
    heads=st.integers(1, 3),
    channels=st.integers(1, 4),
    distillation=st.booleans(),
)
def test_shapes(
    patch_size: tuple[int, int],
    extra: tuple[int, int],
    stride: int | None,
    stages: int,
    heads: int,
    channels: int,
    distillation: bool,
) -> None:
    image_size = (patch_size[0] + extra[0], patch_size[1] + extra[1])
    config = PiTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=5,
        dim=4 * heads,
        depth=(1,) * stages,
        heads=heads,
        channels=channels,
        stride=stride,
        distillation=distillation,
    )
    features, logits = shapes(PiT, config, image_size)
    strides = [stride or max(size // 2, 1) for size in patch_size]
    rows, columns = (1 + more // step for more, step in zip(extra, strides, strict=True))
    for _ in range(stages - 1):
        rows, columns = -(-rows // 2), -(-columns // 2)
    assert features == (1 + distillation + rows * columns, 4 * heads * 2 ** (stages - 1))
    assert logits == (5,)


@given(patch_size=st.integers(2, 16), size=st.integers(1, 16))
def test_images_smaller_than_a_patch_are_refused(patch_size: int, size: int) -> None:
    assume(size < patch_size)
    with pytest.raises(ValueError, match=f"image_size {size} is smaller than patch_size {patch_size}"):
        replace(BASE, image_size=size, patch_size=patch_size)


@given(before=st.integers(2, 32), after=st.integers(1, 64))
def test_widths_that_the_pool_cannot_multiply_are_refused(before: int, after: int) -> None:
    assume(after % before)
    with pytest.raises(ValueError, match=f"{after} after {before} is not: use "):
        replace(BASE, dim=(before, after), depth=(1, 1), heads=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "dim 16 is not a multiple of heads 3"),
        ({"heads": (2, 4, 8, 8)}, "heads has 4 values for 3 stages"),
        ({"mlp_ratio": 0.01}, "mlp_ratio leaves no MLP"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
    ],
)
def test_wrong_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)


def test_seed_call_has_the_official_structure() -> None:
    for config, count in (
        (SEED_CALL, 40_698_344),
        (replace(SEED_CALL, heads=(4, 8, 16), mlp_dim=None), 51_711_464),
    ):
        model = eqx.filter_eval_shape(PiT, config, key=jax.random.key(0))
        assert eqx_vit.count_params(model) == count
