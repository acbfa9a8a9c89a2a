"""SPT and LSA alone, and SmallDatasetViT beyond the tables."""

import equinox as eqx
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.vit_small_datasets import BASE, PLAIN

import eqx_vit
from eqx_vit import LSA, SPT, SmallDatasetViT
from eqx_vit.models.vit_small_datasets import ShiftedMerging, concatenate_shifts


def with_weights(spt: SPT, weights: dict[str, np.ndarray]) -> SPT:
    return eqx.tree_at(
        lambda spt: (spt.norm.weight, spt.norm.bias, spt.linear.weight, spt.linear.bias),
        spt,
        tuple(jnp.asarray(weights[f"merging.{part}"]) for part in ("1.weight", "1.bias", "2.weight", "2.bias")),
    )


def test_spt_alone() -> None:
    golden = golden_files.read("vit_small_datasets-spt-module")
    images = golden.image_batch()
    channels_first = jnp.moveaxis(jax.vmap(lambda image: concatenate_shifts(image, (4, 4)))(images), -1, 1)
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


def test_one_head_as_wide_as_the_tokens_has_no_projection() -> None:
    attention = eqx.filter_eval_shape(SmallDatasetViT, PLAIN, key=jax.random.key(0)).blocks.block.attention
    assert attention.scale is None
    assert isinstance(attention.projection, eqx.nn.Identity)


def test_seed_call_of_spt_has_the_official_structure() -> None:
    spt = eqx.filter_eval_shape(SPT, dim=1024, patch_size=16, key=jax.random.key(0))
    assert eqx_vit.count_params(spt) == 3_940_864
    assert eqx.filter_eval_shape(spt, jnp.zeros((256, 256, 3))).shape == (256, 1024)
