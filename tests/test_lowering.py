"""What a GPU gets, lowered on this machine: the plain formulation, with no loop but the one over the depth."""

from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import pytest

import eqx_vit
from eqx_vit.layers.config import pair
from eqx_vit.models.vit import PRESETS
from eqx_vit.paths import is_array


def count_loops(preset: str, platform: str) -> int:
    """The loops in the program of a preset's forward pass; nothing is computed or compiled."""
    config = PRESETS[preset]
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(eqx_vit.ViT), config, key=jax.random.key(0))
    arrays, rest = eqx.partition(eqx_vit.inference_mode(model), is_array)

    def logits(arrays: Any, images: jax.Array) -> jax.Array:
        return eqx_vit.forward(eqx.combine(arrays, rest), state, images)[0]

    images = jax.ShapeDtypeStruct((2, *pair(config.image_size), 3), jnp.float32)
    exported = jax.export.export(jax.jit(logits), platforms=[platform])(arrays, images)
    return exported.mlir_module().count("stablehlo.while")


@pytest.mark.parametrize("preset", ["vit_huge_patch14_224", "vit_base_patch16_384", "vit_small_patch8_224"])
def test_a_gpu_gets_one_loop_over_the_depth(preset: str) -> None:
    assert count_loops(preset, "cuda") == 1


def test_a_cpu_gets_a_loop_of_chunks_too() -> None:
    assert count_loops("vit_small_patch8_224", "cpu") > 1
