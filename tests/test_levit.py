"""LeViT against the golden files of the official code and timm."""

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
from eqx_vit import LeViT, LeViTConfig
from eqx_vit.layers import BATCH_AXIS
from eqx_vit.testing import shapes

BASE = LeViTConfig(image_size=64, num_classes=5, dim_key=8, dim_value=16, depth=1)
CASES = {
    "levit-distilled": (
        replace(BASE, dim=(32, 48, 64), heads=(4, 6, 8), num_classes=7, num_distill_classes=7),
        "official",
    ),
    "levit-nodistill": (
        replace(BASE, image_size=96, dim=(32, 40, 48), heads=(3, 5, 6), depth=(1, 2, 1), num_classes=6),
        "official",
    ),
    "levit-big112": (
        replace(BASE, image_size=112, dim=(24, 32, 40), heads=(2, 3, 4), num_distill_classes=5),
        "official",
    ),
    "levit-ratios": (
        LeViTConfig(
            image_size=80,
            num_classes=5,
            stages=2,
            dim=(32, 48),
            depth=1,
            heads=(2, 3),
            mlp_mult=(2, 3),
            dim_key=16,
            dim_value=(16, 32),
            num_distill_classes=5,
            shrink_heads=(2,),
            shrink_dim_value=48,
        ),
        "official",
    ),
    "levit-timm-rect": (
        replace(BASE, image_size=(64, 112), dim=(24, 32, 40), heads=(3, 4, 5), num_distill_classes=5),
        "timm",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, *CASES[name])


def test_heads_and_their_training_gradients() -> None:
    name = "levit-distilled"
    golden, model, state = golden_files.loaded(name, *CASES[name])

    def pair(model: Any, images: Any) -> Any:
        heads = jax.vmap(lambda image, state: model.heads(image, state)[0], in_axes=(0, None), axis_name=BATCH_AXIS)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("LeViT_128S", eqx_vit.MODELS["levit"].presets["levit_128s"]),
        ("LeViT_256", eqx_vit.MODELS["levit"].presets["levit_256"]),
        ("LeViT_384", eqx_vit.MODELS["levit"].presets["levit_384"]),
        ("seed_call", LeViTConfig()),
    ],
)
def test_full_size(variant: str, config: LeViTConfig) -> None:
    golden_files.check_preset("levit-presets", variant, config, "official")


def test_initialisation_is_the_official_one() -> None:
    model, state = eqx_vit.create(CASES["levit-distilled"][0], key=jax.random.key(0))
    block = model.stages[0].block
    assert not np.any(block.attention.projection.norm.weight)
    assert not np.any(block.mlp.contract.norm.weight)
    assert np.all(np.asarray(model.shrinks[0].attention.projection.norm.weight) == 1)
    assert not np.any(block.attention.position_bias)
    weight = np.asarray(block.mlp.expand.linear.weight)
    assert np.abs(weight).max() <= 1 / np.sqrt(32)
    assert np.isclose(weight.std(), 1 / np.sqrt(3 * 32), rtol=0.05)
    mean, variance = state.get(model.head.norm.statistics)
    assert not np.any(mean)
    assert np.all(np.asarray(variance) == 1)


def test_resize_is_refused() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="attention biases belong to maps of"):
        eqx_vit.resize(model, 96)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stages=st.integers(1, 3),
    heads=st.integers(1, 3),
    depth=st.integers(1, 2),
    channels=st.integers(1, 4),
)
def test_shapes(grid: tuple[int, int], stages: int, heads: int, depth: int, channels: int) -> None:
    image_size = (16 * grid[0], 16 * grid[1])
    config = LeViTConfig(
        image_size=image_size,
        num_classes=5,
        stages=stages,
        dim=16,
        depth=depth,
        heads=heads,
        dim_key=4,
        dim_value=8,
        channels=channels,
    )
    features, logits = shapes(LeViT, config, image_size)
    for _ in range(stages - 1):
        grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    assert features == (grid[0] * grid[1], 16)
    assert logits == (5,)


@given(size=st.integers(1, 300))
def test_images_that_the_stem_cannot_halve_four_times_are_refused(size: int) -> None:
    assume(size % 16)
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple of 16: use "):
        replace(BASE, image_size=size)


def test_seed_call_has_the_official_structure() -> None:
    config = LeViTConfig(
        image_size=224,
        num_classes=1000,
        stages=3,
        dim=(256, 384, 512),
        depth=4,
        heads=(4, 6, 8),
        mlp_mult=2,
        dropout=0.1,
    )
    model = eqx.filter_eval_shape(LeViT, config, key=jax.random.key(0))
    # The shapes of the initial BatchNorm statistics are still in it: counted by name, as parameters only.
    assert eqx_vit.count_params(eqx.nn.delete_init_state(model)) == 18_379_852
