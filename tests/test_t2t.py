"""T2T-ViT against the golden files of the official code."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eqx_vit
from eqx_vit import T2TViT, T2TViTConfig
from eqx_vit.layers import unfold
from eqx_vit.models.t2t import sinusoid
from eqx_vit.testing import shapes

BASE = T2TViTConfig(image_size=48, num_classes=5, dim=24, depth=1, heads=4, mlp_dim=48, token_dim=8)
SEED = T2TViTConfig(
    dim=512,
    image_size=224,
    depth=5,
    heads=8,
    mlp_dim=512,
    num_classes=1000,
    t2t_layers=((7, 4), (3, 2), (3, 2)),
)
CASES = {
    "t2t-performer": replace(BASE, num_classes=7, dim=32, depth=2, mlp_dim=64, token_dim=16),
    "t2t-transformer": replace(
        BASE, num_classes=6, depth=2, heads=3, mlp_dim=72, token_dim=12, tokens_type="transformer"
    ),
    "t2t-transformer-qkvbias-scale": replace(
        BASE,
        image_size=32,
        dim=32,
        depth=2,
        heads=2,
        mlp_dim=96,
        tokens_type="transformer",
        qkv_bias=True,
        attention_scale=32**-0.5,
    ),
    "t2t-performer-randpos64": replace(BASE, image_size=64, mlp_dim=60, token_dim=10),
    "t2t-performer-defaults": replace(BASE, image_size=32, dim=64, mlp_dim=128, token_dim=64),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    golden_files.check(name, CASES[name], "official")


def test_resize_as_the_official_code() -> None:
    golden, model, _ = golden_files.loaded("t2t-posresize-48to80", BASE, "official")
    model = eqx_vit.inference_mode(eqx_vit.resize(model, 80))
    golden_files.close(model.position_embedding.array, golden.arrays["resized_pos_embed"][0], 2e-5, "table")
    golden_files.close(eqx.filter_vmap(model)(golden.image_batch()), golden.arrays["output"], 2e-5, "output")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("t2t_vit_7", eqx_vit.MODELS["t2t"].presets["t2t_vit_7"]),
        ("t2t_vit_14", eqx_vit.MODELS["t2t"].presets["t2t_vit_14"]),
        ("t2t_vit_t_14", eqx_vit.MODELS["t2t"].presets["t2t_vit_t_14"]),
        ("seed_call", SEED),
        ("seed_call_transformer", replace(SEED, tokens_type="transformer")),
    ],
)
def test_full_size(variant: str, config: T2TViTConfig) -> None:
    golden_files.check_preset("t2t-presets", variant, config, "official")


def test_initialisation_is_the_official_one() -> None:
    config = replace(BASE, dim=192, mlp_dim=384, token_dim=64)
    model, _ = eqx_vit.create(config, key=jax.random.key(0))
    first, second = model.token_layers
    for weight in (first.qkv.weight, second.mlp.expand.weight, model.projection.weight, model.head.weight):
        assert np.isclose(np.std(weight), 0.02, rtol=0.05)
    assert not np.any(first.qkv.bias)
    assert np.any(model.class_token)
    for layer in (first, second):
        matrix = np.asarray(layer.features.array)
        np.testing.assert_allclose(matrix @ matrix.T, 32 * np.eye(32), atol=1e-4)
    assert not np.allclose(first.features.array, second.features.array)


def test_the_table_is_the_official_one() -> None:
    golden = golden_files.read("t2t-performer")
    model, _ = eqx_vit.create(CASES["t2t-performer"], key=jax.random.key(0))
    expected = golden.state["pos_embed"][0]
    np.testing.assert_array_equal(model.position_embedding.array, expected)
    np.testing.assert_array_equal(sinusoid(10, 32).astype(np.float32), expected)


def test_the_buffers_are_not_trained() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    images = jnp.ones((48, 48, 3))
    gradients = eqx.filter_grad(lambda model: jnp.sum(model(images, key=jax.random.key(1))))(model)
    assert not np.any(gradients.position_embedding.array)
    assert not np.any(gradients.token_layers[0].features.array)
    parameters = eqx_vit.trainable(model)
    assert parameters.position_embedding.array is None
    assert parameters.token_layers[0].features.array is None


def test_the_performers_dropout_is_live_by_default() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="T2TViT has live dropout and got no key"):
        model(jnp.ones((48, 48, 3)))
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0), tokens_type="transformer")
    assert model(jnp.ones((48, 48, 3))).shape == (5,)


@settings(max_examples=25)  # every size compiles
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 5),
    padding=st.integers(0, 3),
)
def test_unfold_is_slicing(size: tuple[int, int], kernel: int, stride: int, padding: int) -> None:
    image = np.random.default_rng(0).normal(size=(*size, 2)).astype(np.float32)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((side - kernel) // stride + 1 for side in padded.shape[:2])
    assume(min(rows, columns) > 0)
    found = unfold(jnp.asarray(image), kernel, stride, padding)
    assert found.shape == (rows, columns, kernel * kernel * 2)
    for row in {0, rows - 1}:
        for column in {0, columns - 1}:
            patch = padded[row * stride :, column * stride :][:kernel, :kernel]
            np.testing.assert_array_equal(found[row, column], patch.reshape(-1))


@given(
    image_size=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    layers=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    depth=st.integers(1, 2),
    channels=st.integers(1, 4),
    tokens_type=st.sampled_from(["performer", "transformer"]),
    pool=st.sampled_from(["cls", "mean"]),
)
def test_shapes(
    image_size: tuple[int, int],
    layers: list[tuple[int, int]],
    heads: int,
    depth: int,
    channels: int,
    tokens_type: Any,
    pool: Any,
) -> None:
    rows, columns = image_size
    for kernel, stride in layers:
        rows, columns = ((side + stride // 2 * 2 - kernel) // stride + 1 for side in (rows, columns))
        assume(min(rows, columns) > 0)
    config = T2TViTConfig(
        image_size=image_size,
        num_classes=5,
        dim=8 * heads,
        depth=depth,
        heads=heads,
        mlp_dim=12,
        t2t_layers=tuple(layers),
        channels=channels,
        tokens_type=tokens_type,
        token_dim=4,
        pool=pool,
    )
    features, logits = shapes(T2TViT, config, image_size)
    assert features == (1 + rows * columns, 8 * heads)
    assert logits == (5,)


@given(
    size=st.integers(1, 40), layers=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=3)
)
def test_images_too_small_for_the_splits_are_refused(size: int, layers: list[tuple[int, int]]) -> None:
    side = size
    for kernel, stride in layers:
        side = (side + stride // 2 * 2 - kernel) // stride + 1 if side > 0 else 0
    if side > 0:
        assert replace(BASE, image_size=size, t2t_layers=tuple(layers)).grid == (side, side)
        return
    with pytest.raises(ValueError, match=rf"image_size {size} is too small.*: use (\d+) or more") as error:
        replace(BASE, image_size=size, t2t_layers=tuple(layers))
    smallest = int(str(error.value).rsplit(": use ", 1)[1].split(" ")[0])
    assert smallest > size
    assert min(replace(BASE, image_size=smallest, t2t_layers=tuple(layers)).grid) > 0
    with pytest.raises(ValueError, match="is too small"):
        replace(BASE, image_size=smallest - 1, t2t_layers=tuple(layers))


def test_seed_call_has_the_official_structure() -> None:
    for tokens_type, count in (("performer", 8_858_062), ("transformer", 8_857_678)):
        config = replace(SEED, tokens_type=tokens_type)
        model = eqx.filter_eval_shape(T2TViT, config, key=jax.random.key(0))
        assert eqx_vit.count_params(model) == count
