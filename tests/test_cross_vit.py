"""CrossViT beyond the tables: how images are resampled, drop-path rates by block, and images of any size."""

from dataclasses import replace

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
from cases.cross_vit import BASE

import eqx_vit
from eqx_vit import CrossViT
from eqx_vit.models.cross_vit import drop_path_scales, scale_image
from eqx_vit.testing import shapes


def test_images_resample_as_in_torch() -> None:
    golden = golden_files.read("crossvit-bicubic")
    for index, (_, size) in enumerate(golden.meta["pairs"]):
        image = jnp.asarray(np.moveaxis(golden.arrays[f"in{index}"][0], 0, -1))
        expected = np.moveaxis(golden.arrays[f"out{index}"][0], 0, -1)
        golden_files.close(scale_image(image, tuple(size), crop=False), expected, 2e-5, f"out{index}")


def test_drop_path_rates_follow_the_official_order() -> None:
    scales = drop_path_scales(replace(BASE, sm_enc_depth=(1, 2), lg_enc_depth=(2, 3), cross_attn_depth=1))
    for found, expected in zip(scales, ([0, 1, 2], [3, 4, 5, 6]), strict=True):
        np.testing.assert_allclose(found, np.array(expected) / 6, rtol=1e-6)
    # Without cross_attn_depth the fusion shares the rate of the last large block.
    for found, expected in zip(drop_path_scales(BASE), ([0, 1], [2, 3]), strict=True):
        np.testing.assert_allclose(found, np.array(expected) / 3, rtol=1e-6)


def test_images_of_any_size_are_taken() -> None:
    features, logits = shapes(CrossViT, BASE, (31, 77))
    assert features == ((17, 16), (17, 24))
    assert logits == (5,)
    model = eqx.filter_eval_shape(CrossViT, BASE, key=jax.random.key(0))
    assert eqx_vit.resize(model, 96).config == BASE
    # Without a head, the pooled features of both branches.
    assert shapes(CrossViT, replace(BASE, num_classes=0), (48, 48))[1] == (16 + 24,)
