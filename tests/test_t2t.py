"""T2T-ViT: its soft splits, its fixed tables, other image sizes."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.t2t import BASE, GOLDEN
from hypothesis import assume, given, settings, strategies as st

import eqx_vit
from eqx_vit.layers import unfold
from eqx_vit.models.t2t import sinusoid
from eqx_vit.paths import named_leaves


def test_resize_as_the_official_code() -> None:
    golden, model, _ = golden_files.loaded("t2t-posresize-48to80", BASE, "official")
    model = eqx_vit.inference_mode(eqx_vit.resize(model, 80))
    golden_files.close(model.position_embedding.array, golden.arrays["resized_pos_embed"][0], 2e-5, "table")
    golden_files.close(eqx.filter_vmap(model)(golden.image_batch()), golden.arrays["output"], 2e-5, "output")


def test_the_random_features_are_orthogonal_and_differ_between_layers() -> None:
    model, _ = eqx_vit.create(replace(BASE, token_dim=64), key=jax.random.key(0))
    matrices = [np.asarray(leaf) for name, leaf in named_leaves(model).items() if name.endswith("features.array")]
    for matrix in matrices:
        np.testing.assert_allclose(matrix @ matrix.T, 32 * np.eye(32), atol=1e-4)
    first, second = matrices
    assert not np.allclose(first, second)


def test_the_table_is_the_official_one() -> None:
    golden = golden_files.read("t2t-performer")
    model, _ = eqx_vit.create(GOLDEN["t2t-performer"][0], key=jax.random.key(0))
    expected = golden.state["pos_embed"][0]
    np.testing.assert_array_equal(model.position_embedding.array, expected)
    np.testing.assert_array_equal(sinusoid(10, 32).astype(np.float32), expected)


def test_the_buffers_are_not_trained() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    images = jnp.ones((48, 48, 3))
    gradients = eqx.filter_grad(lambda model: jnp.sum(model(images, key=jax.random.key(1))))(model)
    parameters = named_leaves(eqx_vit.trainable(model))
    for name in ("position_embedding.array", "token_layers.0.features.array", "token_layers.1.features.array"):
        assert not np.any(np.asarray(named_leaves(gradients)[name]))
        assert name not in parameters


def test_the_performers_dropout_is_active_by_default() -> None:
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0))
    with pytest.raises(ValueError, match="T2TViT has active dropout and got no key"):
        model(jnp.ones((48, 48, 3)))
    model, _ = eqx_vit.create(BASE, key=jax.random.key(0), tokens_type="transformer")
    assert eqx.filter_eval_shape(model, jnp.ones((48, 48, 3))).shape == (5,)


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
