"""The Flax API of every architecture: the contract of `init` and `apply`, and the native model's numbers."""

import dataclasses
import functools
from collections.abc import Callable
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


@functools.cache
def zeros(name: str) -> Any:
    """Variables that nothing was compiled for; arrays, also where the first to ask is inside a trace."""
    shapes = jax.eval_shape(describe(name).init, KEYS, images_for(name))
    with jax.ensure_compile_time_eval():
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


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
        "given a list": [params],
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


def test_train_by_position_changes_nothing_but_the_output() -> None:
    v, images, key = describe("levit"), images_for("levit"), KEYS["params"]
    expected = jax.tree.structure(zeros("levit"))
    for arguments in ({}, {"train": False}, {"train": True}, {"deterministic": True}):
        assert (
            jax.tree.structure(jax.eval_shape(lambda arguments=arguments: v.init(key, images, **arguments))) == expected
        )
    logits, variables = jax.eval_shape(lambda: v.init_with_output(key, images, True))
    assert (logits.shape, jax.tree.structure(variables)) == ((2, 5), expected)
    logits, updates = jax.eval_shape(lambda: v.apply(zeros("levit"), images, True, mutable=["batch_stats"]))
    assert (logits.shape, list(updates)) == ((2, 5), ["batch_stats"])
    assert jax.eval_shape(lambda: v.bind(zeros("levit"))(images, False)).shape == (2, 5)


def test_one_image_trains_no_batch_norm_of_one_value() -> None:
    """As PyTorch, which refuses it; without `train`, as vit-flax's README calls it, the statistics stay."""
    v, image = describe("levit"), images_for("levit", 1)
    variables = v.init(KEYS, image)
    logits, updates = v.apply(variables, image, mutable=["batch_stats"])
    same(logits, v.apply(variables, image))
    same(updates["batch_stats"], variables["batch_stats"])
    with pytest.raises(ValueError, match="one value per channel"):
        v.apply(variables, image, train=True, mutable=["batch_stats"])


def test_another_method_runs_in_place_of_the_call() -> None:
    v, images = describe("vit"), images_for("vit")
    variables = v.init(KEYS, images)
    model, _ = v.to_equinox(variables)
    expected = jax.jit(jax.vmap(eqx_vit.inference_mode(model).features))(images)
    np.testing.assert_allclose(v.apply(variables, images, method="features"), expected, atol=1e-5)
    assert jax.eval_shape(lambda: v.apply(variables, images, method=eqx_vit.ViT.features)).shape == expected.shape
    assert jax.eval_shape(lambda: v.apply(variables, images, method="__call__")).shape == (2, 5)
    (features, updates) = jax.eval_shape(
        lambda: describe("levit").apply(
            zeros("levit"), images_for("levit"), True, mutable=["batch_stats"], method="features"
        )
    )
    assert features.shape == (2, 4, 16)
    assert list(updates) == ["batch_stats"]


def test_flags_that_became_arrays_are_no_variables() -> None:
    model, state = eqx_vit.create(TINY["levit"], key=KEYS["params"])
    same(describe("levit").from_equinox(jax.device_put(model), state), describe("levit").from_equinox(model, state))


flax: Any = eqx_vit.flax
KEY, SHAPE = KEYS["params"], jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
# What is given in place of what: (a description, its variables, its images) -> a call, and the words of the refusal.
WRONG: dict[str, Callable[[Any, Any, Any], object]] = {
    r"params must be a nested dict of arrays, .* given a list": lambda v, p, x: v.apply({"params": [p]}, x),
    r"missing params\.head\.weight": (lambda v, p, x: v.apply({"params": {**p["params"], "head": None}}, x)),
    r"params\.head must be an array of numbers, given a str": (
        lambda v, p, x: v.apply({"params": {**p["params"], "head": "none"}}, x)
    ),
    r"params\.0 must be an array of numbers, given a int": lambda v, p, x: v.apply({"params": {0: 1, "a": 2}}, x),
    r"params\.a must be an array of numbers, given dtype object": (
        lambda v, p, x: v.apply({"params": {"a": np.array([None])}}, x)
    ),
    r"params\.a must be an array of numbers, given dtype key": lambda v, p, x: v.apply(
        {"params": {"a": jax.random.key(0)}}, x
    ),
    r"params\.blocks\.\S+ has dtype int32, not float32; .*; and 10 more": (
        lambda v, p, x: v.apply(jax.tree.map(lambda leaf: leaf.astype(int), p), x)
    ),
    r"of this model: params\.blocks\.\S+ has dtype int32": lambda v, p, x: v.to_equinox(
        jax.tree.map(lambda leaf: leaf.astype(int), p)
    ),
    r"variables must be a dict .*; given \[.*'class_token'": lambda v, p, x: v.apply(p["params"], x),
    r"variables must be a dict .*; given a tuple": lambda v, p, x: v.bind((p, {})),
    r"variables must be a dict .*; given a NoneType": lambda v, p, x: v.to_equinox(None),
    r"unknown collections in variables: \[0\]": lambda v, p, x: v.apply({**p, 0: {}}, x),
    r"batch_stats must be a nested dict": lambda v, p, x: v.apply({**p, "batch_stats": 5}, x),
    r"images must be an array of .*, given a list: convert": lambda v, p, x: v.apply(p, [1.0]),
    r"images must be an array of .*, given a NoneType": lambda v, p, x: v.init(KEY, None),
    r"given shape \(0, 16, 16, 3\): one image is": lambda v, p, x: v.apply(p, x[:0]),
    r"given dtype int32: scale it first": lambda v, p, x: v.apply(p, x.astype(int)),
    r"given dtype object": lambda v, p, x: v.apply(p, np.full(x.shape, None)),
    r"images must be a float array .* given a ShapeDtypeStruct": lambda v, p, x: v.apply(p, SHAPE),
    r"key must be one random key.* given 5": lambda v, p, x: v.apply(p, x, rngs=5),
    r"key must be one random key.* given None": lambda v, p, x: v.apply(p, x, rngs={"dropout": None}),
    r"key must be one random key.* given 'x'": lambda v, p, x: v.apply(p, x, rngs={"dropout": KEY, "noise": "x"}),
    r"key must be one random key.* given 7": lambda v, p, x: v.bind(p, rngs=7)(x),
    r"'dropout' is missing in rngs, given \[0, 'b'\]": lambda v, p, x: v.apply(p, x, rngs={0: KEY, "b": KEY}),
    r"init needs the stream 'params' in rngs, given \[0, 'b'\]": lambda v, p, x: v.init({0: KEY, "b": KEY}, x),
    r"mutable must be .* given a NoneType": lambda v, p, x: v.apply(p, x, mutable=None),
    r"mutable must be .* given a list": lambda v, p, x: v.apply(p, x, mutable=[1]),
    r"mutable must be .* given a ArrayImpl": lambda v, p, x: v.apply(p, x, mutable=jnp.array(1)),
    r"train must be True or False, given a dict": lambda v, p, x: v.apply(p, x, {"dropout": KEY}),
    r"train must be True or False, given a str": lambda v, p, x: v.init(KEY, x, train="yes"),
    r"train must be .*static_argnames": lambda v, p, x: jax.jit(v.apply)(p, x, train=True),
    r"deterministic must be True or False, given a int": lambda v, p, x: v.apply(p, x, deterministic=1),
    r"method must be one of .* given 'embed': other steps": lambda v, p, x: v.apply(p, x, method="embed"),
    r"method must be one of .* given a builtin_function": lambda v, p, x: v.apply(p, x, method=len),
    r"this ViT has one head": lambda v, p, x: v.apply(p, x, method="logits_pair"),
    r"captures no intermediates: give method=": lambda v, p, x: v.apply(p, x, capture_intermediates=True),
    r"from_equinox takes a model .* given a State and a ViT": lambda v, p, x: v.from_equinox(*v.to_equinox(p)[::-1]),
    r"from_equinox takes a model .* given a ViT and a NoneType": lambda v, p, x: v.from_equinox(
        v.to_equinox(p)[0], None
    ),
    r"missing params\.head\.bias": lambda v, p, x: v.from_equinox(
        eqx.tree_at(lambda model: model.head.bias, v.to_equinox(p)[0], None), v.to_equinox(p)[1]
    ),
    r"use one, such as eqx_vit\.flax\.ViT": lambda v, p, x: flax.Description().init(KEY, x),
    r"SPT\.dim must be int, given 'a'": lambda v, p, x: flax.SPT("a", 4),
    r"SPT\.patch_size must be at least 1": lambda v, p, x: flax.SPT(8, 0),
    r"images must be .* given a list: convert": lambda v, p, x: flax.SPT(8, 4).init(KEY, [1]),
    r"images must be .* given shape \(16, 16, 3\): one": lambda v, p, x: flax.SPT(8, 4).apply(p, x[0]),
    r"init alone takes a shape": lambda v, p, x: flax.SPT(8, 4).apply(p, SHAPE),
    r"PatchMerger\.num_tokens_out must be int": lambda v, p, x: flax.PatchMerger(8, None),
    r"of \(batch, tokens, 8\), given shape \(2, 4, 9\)": (
        lambda v, p, x: flax.PatchMerger(8, 4).apply(p, jnp.ones((2, 4, 9)))
    ),
    r"\(batch, tokens, 8\), given dtype int32": (
        lambda v, p, x: flax.PatchMerger(8, 4).apply(p, jnp.ones((2, 4, 8), int))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_of_the_wrong_kind_is_named(message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        WRONG[message](describe("vit"), zeros("vit"), images_for("vit"))
    assert "\n" not in str(caught.value).split("\n-----")[0]  # what follows is JAX's, in a traced function


# The same of `transform`'s pair: (init, apply, parameters, state, images) -> a call.
WRONG_PAIR: dict[str, Callable[[Any, Any, Any, Any, Any], object]] = {
    "key must be one random key.* given 5": lambda init, apply, p, s, x: init(5),
    "key must be one random key.* given 6": lambda init, apply, p, s, x: apply(p, s, 6, x),
    "params must be a nested dict": lambda init, apply, p, s, x: apply(None, s, KEY, x),
    "params must be a nested dict of arrays, .* given a set": lambda init, apply, p, s, x: apply({1}, s, KEY, x),
    "state must be a dict of .* given a NoneType": lambda init, apply, p, s, x: apply(p, None, KEY, x),
    "unknown collections in state: .'cache'": lambda init, apply, p, s, x: apply(p, {"cache": {}}, KEY, x),
    "missing batch_stats": lambda init, apply, p, s, x: apply(p, {}, KEY, x),
    "batch_stats must be a nested dict": lambda init, apply, p, s, x: apply(p, {**s, "batch_stats": [1]}, KEY, x),
    "has dtype int32, not float32": lambda init, apply, p, s, x: apply(
        jax.tree.map(lambda leaf: leaf.astype(int), p), s, KEY, x
    ),
    "given a set: convert": lambda init, apply, p, s, x: apply(p, s, KEY, {1}),
    "given dtype bool: scale it first": lambda init, apply, p, s, x: apply(p, s, KEY, x > 0),
    "one image is a batch of one": lambda init, apply, p, s, x: apply(p, s, KEY, x[0]),
    "update_statistics must be True or False, given a str": lambda init, apply, p, s, x: apply(
        p, s, KEY, x, update_statistics="no"
    ),
}


@pytest.mark.parametrize("message", WRONG_PAIR)
def test_what_is_of_the_wrong_kind_is_named_by_the_pair(message: str) -> None:
    params, *rest = (zeros("levit").get(name, {}) for name in ("params", "batch_stats", "buffers"))
    state = dict(zip(("batch_stats", "buffers"), rest, strict=True))
    with pytest.raises(ValueError, match=message):
        WRONG_PAIR[message](*eqx_vit.transform(TINY["levit"]), params, state, images_for("levit"))
