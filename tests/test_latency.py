"""Models for low latency: the same numbers, names and files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, slow_but_for, tiny_size

import eqx_vit
from eqx_vit import latency
from eqx_vit.layers import Stack, Unstacked
from eqx_vit.paths import named_leaves
from eqx_vit.testing import randomise

KEY = jax.random.key(0)
# A plain one, one with state and a stage's rest, stacks in stacks, and a period.
few_models = slow_but_for("vit", "region_vit", "parallel_vit_hmlp", "twins_svt")


def images_for(name: str) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, *tiny_size(name), TINY[name].channels))


def stacks_of(model: Any) -> list[Stack]:
    leaves = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Stack))
    return [leaf for leaf in leaves if isinstance(leaf, Stack)]


@few_models
def test_numbers_and_state_are_the_same(name: str) -> None:
    """In training mode, dropout and batch statistics included."""
    model, state = randomise(TINY[name])
    apart = eqx_vit.unstacked(model)
    assert stacks_of(model)
    assert not stacks_of(apart)
    run = eqx.filter_jit(lambda model: eqx_vit.forward(model, state, images_for(name), jax.random.key(2)))
    (logits, after), (expected, expected_after) = run(apart), run(model)
    np.testing.assert_allclose(logits, expected, atol=2e-6, rtol=1e-5)
    statistics, expected_statistics = (jax.tree.leaves(tree) for tree in (after, expected_after))
    assert len(statistics) == len(expected_statistics)
    for one, other in zip(statistics, expected_statistics, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_the_way_back_and_the_names(name: str) -> None:
    model, state = eqx_vit.create_abstract(TINY[name])
    apart = eqx_vit.unstacked(model)
    assert eqx.tree_equal(eqx_vit.stacked(apart), model)
    assert named_leaves(apart) == named_leaves(model)
    assert eqx_vit.count_params(apart) == eqx_vit.count_params(model)
    image = jax.ShapeDtypeStruct((*tiny_size(name), model.config.channels), jnp.float32)
    shapes = [
        eqx.filter_eval_shape(
            lambda model, state, image: model(image, state)[0], eqx.nn.inference_mode(one), state, image
        )
        for one in (model, apart)
    ]
    assert shapes[0] == shapes[1]


def test_every_stack_of_every_model_is_taken_apart() -> None:
    for config in TINY.values():
        assert not stacks_of(eqx_vit.unstacked(eqx_vit.create_abstract(config)[0]))


def test_files_are_the_same(tmp_path: Path) -> None:
    model, state = randomise(TINY["levit"])
    eqx_vit.save(tmp_path / "stacked", model, state)
    eqx_vit.save(tmp_path / "unstacked", eqx_vit.unstacked(model), state)
    assert (tmp_path / "stacked").read_bytes() == (tmp_path / "unstacked").read_bytes()
    loaded, loaded_state = eqx_vit.load(tmp_path / "unstacked")
    assert eqx.tree_equal(eqx_vit.unstacked(loaded), eqx_vit.unstacked(model))
    assert eqx.tree_equal(loaded_state, state)


def test_what_is_seen_is_the_same() -> None:
    model, state = randomise(TINY["vit"])
    apart = eqx_vit.unstacked(model)
    assert eqx_vit.observable(apart) == eqx_vit.observable(model)
    images = images_for("vit")
    for one, other in zip(
        jax.tree.leaves(eqx_vit.observe(apart, state, images, "blocks.*", jax.random.key(3))),
        jax.tree.leaves(eqx_vit.observe(model, state, images, "blocks.*", jax.random.key(3))),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    maps, expected = (eqx_vit.attention_maps(one, state, images) for one in (apart, model))
    assert [one.shape for one in maps] == [one.shape for one in expected]


def test_it_can_be_changed() -> None:
    """Parts, head and size: it stays taken apart."""
    model, state = randomise(TINY["vit"])
    apart = eqx_vit.unstacked(model)
    changes = [
        lambda model: eqx_vit.replace(model, "blocks.mlp", lambda key: eqx.nn.Identity(), key=KEY, state=state),
        lambda model: eqx_vit.resize(model, 64),
        lambda model: eqx_vit.replace_head(model, 3, key=KEY),
    ]
    for change in changes:
        changed = change(apart)
        assert isinstance(changed.blocks, Unstacked)
        assert eqx.tree_equal(eqx_vit.stacked(changed), change(model))


@pytest.mark.parametrize("name", ["vit", "levit"])
def test_compiled_gives_the_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where most weights are arguments, which the tiny models' are too small to be."""
    model, state = randomise(TINY[name])
    images = images_for(name)
    expected, _ = eqx_vit.forward(eqx.nn.inference_mode(model), state, images)
    for limit in (latency.MOST_FOLDED, 100):
        monkeypatch.setattr(latency, "MOST_FOLDED", limit)
        run = eqx_vit.compiled(model, state, len(images))
        np.testing.assert_allclose(run(images), expected, atol=2e-5)
        np.testing.assert_allclose(run(np.asarray(images, dtype=np.float64)), expected, atol=2e-5)


def test_compiled_is_read_back() -> None:
    model, state = randomise(TINY["vit"])
    run = eqx_vit.compiled(model, state)
    again = eqx_vit.compiled(model, state, serialized=run.serialize())
    np.testing.assert_array_equal(again(images_for("vit")[:1]), run(images_for("vit")[:1]))
    with pytest.raises(ValueError, match="serialised for another model, batch"):
        eqx_vit.compiled(model, state, batch=2, serialized=run.serialize())


@pytest.mark.parametrize("name", ["vit", "levit"])
def test_each_tuned_program_gives_the_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is the fastest; and where JAX has no such option, the only one there is."""
    model, state = randomise(TINY[name])
    images = images_for(name)
    expected, _ = eqx_vit.forward(eqx.nn.inference_mode(model), state, images)
    for fastest in range(1 + len(latency.ALTERNATIVES)):
        monkeypatch.setattr(np, "argmin", lambda seconds, fastest=fastest: fastest)
        run = eqx_vit.compiled(model, state, len(images), tune=True)
        np.testing.assert_allclose(run(images), expected, atol=2e-5)
        again = eqx_vit.compiled(model, state, len(images), serialized=run.serialize())
        np.testing.assert_array_equal(again(images), run(images))
    monkeypatch.undo()
    monkeypatch.setattr(latency, "ALTERNATIVES", ({"xla_cpu_is_no_option": True},))
    run = eqx_vit.compiled(model, state, len(images), tune=True)
    np.testing.assert_allclose(run(images), expected, atol=2e-5)


def test_what_it_was_not_compiled_for_is_refused() -> None:
    model, state = randomise(TINY["vit"])
    run = eqx_vit.compiled(model, state)
    with pytest.raises(ValueError, match=r"images of shape \(1, .*given shape \(2, "):
        run(images_for("vit"))
    with pytest.raises(ValueError, match="must be floats"):
        run(np.zeros(run.shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="batch must be a number"):
        eqx_vit.compiled(model, state, batch=0)
    with pytest.raises(ValueError, match="takes images of"):
        eqx_vit.compiled(model, state, image_size=5)


@pytest.mark.parametrize("function", [eqx_vit.unstacked, eqx_vit.stacked])
def test_what_is_no_model_is_refused(function: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="stacked: model must be"):
        function({"weight": jnp.zeros(3)})
