"""The Flax API of every architecture: the contract of `init` and `apply`, and the native model's numbers."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, slow_but_for, tiny_size

import eqx_vit
import eqx_vit.flax
from eqx_vit import MODELS
from eqx_vit.functional import set_training, to_dicts

every_model = pytest.mark.parametrize("name", MODELS)
KEYS = {"params": jax.random.PRNGKey(1), "dropout": jax.random.PRNGKey(2)}


def describe(name: str, config: Any = None) -> Any:
    """The linen-like description of a config (the tiny one)."""
    config = TINY[name] if config is None else config
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return getattr(eqx_vit.flax, MODELS[name].model.__name__)(**fields)


def images_for(name: str, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(7), (batch, *tiny_size(name), TINY[name].channels))


def same(left: Any, right: Any) -> None:
    """Equal trees, bit for bit."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


@slow_but_for("vit", "levit")
def test_numbers_are_the_native_ones(name: str) -> None:
    v, images = describe(name), images_for(name)
    variables = v.init(KEYS, images)
    model, state = eqx_vit.create(TINY[name], key=KEYS["params"])
    same(variables, v.from_equinox(model, state))
    same(eqx_vit.flax.Description.from_equinox(v, *v.to_equinox(variables)), variables)

    expected, _ = eqx.filter_jit(eqx_vit.forward)(eqx_vit.inference_mode(model), state, images)
    same(v.apply(variables, images), expected)

    live = set_training(model, dropout=False, statistics=True)

    def native(model: Any) -> Any:
        logits, after = eqx_vit.forward(model, state, images)
        return jnp.sum(jnp.sin(logits)), (logits, after)

    def flax_shaped(params: Any) -> Any:
        logits, updates = v.apply({**variables, "params": params}, images, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits)), (logits, updates)

    gradients, (logits, after) = eqx.filter_jit(eqx.filter_grad(native, has_aux=True))(live)
    found, (flax_logits, updates) = jax.jit(jax.grad(flax_shaped, has_aux=True))(variables["params"])
    same(flax_logits, logits)
    same(updates, {key: tree for key, tree in v.from_equinox(model, after).items() if key == "batch_stats"})
    # Two programs, compiled apart: XLA may fuse a sum differently.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(to_dicts(gradients, after)[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@every_model
def test_what_makes_it_train(name: str) -> None:
    rates = {
        field.name: 0.5 for field in dataclasses.fields(TINY[name]) if "drop" in field.name and field.type is float
    }
    v, images = describe(name, dataclasses.replace(TINY[name], **rates)), images_for(name)
    variables = jax.eval_shape(v.init, KEYS, images)
    shape = (2, TINY[name].num_classes)
    for arguments in ({}, {"rngs": KEYS}, {"rngs": KEYS["dropout"]}, {"rngs": KEYS, "deterministic": True}):
        logits = jax.eval_shape(
            lambda variables, arguments=arguments: v.apply(variables, images, **arguments), variables
        )
        assert logits.shape == shape
    logits, updates = jax.eval_shape(lambda variables: v.apply(variables, images, rngs=KEYS, mutable=True), variables)
    assert logits.shape == shape
    assert jax.tree.structure(updates) == jax.tree.structure(variables)
    if "batch_stats" in variables:
        with pytest.raises(ValueError, match="add mutable="):
            v.apply(variables, images, rngs=KEYS, train=True)
    if rates:
        with pytest.raises(ValueError, match="rngs has no stream 'dropout'"):
            v.apply(variables, images, train=True, mutable=["batch_stats"])


def test_dropout_key_is_live_and_reproducible() -> None:
    v = describe("vit", dataclasses.replace(TINY["vit"], dropout=0.5))
    images = images_for("vit")
    logits, variables = v.init_with_output({"params": KEYS["params"]}, images)
    variables["params"]["head"]["weight"] = jnp.ones_like(variables["params"]["head"]["weight"])
    still = v.apply(variables, images)
    live = v.apply(variables, images, rngs=KEYS)
    assert logits.shape == still.shape
    assert not np.array_equal(live, still)
    same(live, v.apply(variables, images, rngs={"dropout": KEYS["dropout"]}))
    same(live, v.apply(variables, images, rngs=KEYS["dropout"]))
    same(still, v.apply(variables, images, rngs=KEYS, train=False))
    other = v.apply(variables, images, rngs={**KEYS, "emb_dropout": jax.random.key(5)})
    assert not np.array_equal(live, other)


def test_it_traces_under_every_transformation() -> None:
    v, images = describe("levit"), images_for("levit", 4)
    variables = jax.jit(v.init)(KEYS, images)
    logits = v.apply(variables, images)
    np.testing.assert_allclose(jax.checkpoint(v.apply)(variables, images), logits, atol=1e-5)
    pairs = images.reshape(2, 2, *images.shape[1:])
    mapped = jax.vmap(lambda images: v.apply(variables, images))(pairs)
    np.testing.assert_allclose(mapped.reshape(logits.shape), logits, atol=1e-5)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
    step = jax.jit(functools.partial(v.apply, mutable=["batch_stats"]))
    for one, other in zip(*(jax.tree.leaves(step(variables, batch)) for batch in (images, sharded)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    shaped = v.lazy_init(KEYS, jax.ShapeDtypeStruct(images.shape, images.dtype))
    assert jax.tree.structure(shaped) == jax.tree.structure(variables)


def test_channels_and_layout_are_read_off_the_images() -> None:
    v = describe("vit")
    grey = v.init(KEYS, jnp.zeros((1, 16, 16, 1)))
    assert grey["params"]["patch_embedding"]["linear"]["weight"].shape == (16, 64)
    variables = v.init(KEYS, jnp.zeros((1, 3, 16, 16)))
    images = images_for("vit")
    same(v.apply(variables, jnp.moveaxis(images, -1, 1)), v.apply(variables, images))
    with pytest.raises(ValueError, match=r"fit in no layout: read channels-last.*read channels-first"):
        v.apply(variables, jnp.zeros((1, 16, 17, 3)))
    with pytest.raises(ValueError, match="fit in both layouts"):
        describe("vit", dataclasses.replace(TINY["vit"], channels=16)).init(KEYS, jnp.zeros((1, 16, 16, 16)))
    with pytest.raises(ValueError, match="one image is a batch of one"):
        v.apply(variables, jnp.zeros((16, 16, 3)))


def test_bound_tabulated_and_frozen() -> None:
    v, images = describe("levit"), images_for("levit")
    variables = v.init(KEYS, images)
    bound = v.bind(variables)
    same(bound(images), v.apply(variables, images))
    assert bound.unbind() == (v, variables)
    table = v.tabulate(KEYS, images)
    assert f"params: {eqx_vit.count_params(v.to_equinox(variables)[0]):,}" in table
    assert "head.linear.weight" in table
    assert hash(v) == hash(describe("levit"))
    assert "dim=16" in repr(v)
    with pytest.raises(dataclasses.FrozenInstanceError):
        v.dim = 3


def test_bad_input_is_named_by_its_path() -> None:
    v, images = describe("vit"), images_for("vit")
    variables = v.init(KEYS, images)
    params = variables["params"]
    wrong = {
        r"missing params\.head\.bias": {"params": {**params, "head": {"weight": params["head"]["weight"]}}},
        r"unexpected params\.extra": {"params": {**params, "extra": jnp.ones(2)}},
        r"params\.class_token has shape \(2, 16\), not \(1, 16\)": {
            "params": {**params, "class_token": jnp.ones((2, 16))}
        },
        "with the collection 'params'": {"weights": params},
        "unknown collections in variables: .'cache'": {**variables, "cache": {}},
        "given list": [params],
        "missing params": describe("levit").init(KEYS, images_for("levit")),
    }
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=message):
            v.apply(given, images)
    with pytest.raises(ValueError, match="init needs the stream 'params'"):
        v.init({"dropout": KEYS["dropout"]}, images)
    with pytest.raises(ValueError, match="the stream 'dropout' is missing in rngs"):
        v.apply(variables, images, rngs={"emb_dropout": KEYS["dropout"]})
    with pytest.raises(ValueError, match="key must be one random key"):
        v.init(0, images)
    with pytest.raises(ValueError, match="contradict"):
        v.apply(variables, images, train=True, deterministic=True)
    with pytest.raises(TypeError, match="dimm"):
        eqx_vit.flax.ViT(dimm=3)
    with pytest.raises(ValueError, match="the model's config is"):
        v.from_equinox(*eqx_vit.create(TINY["levit"], key=jax.random.key(0)))
