"""The Flax API together with flax itself: `nox -s flax`. Skipped where flax is not installed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TINY, tiny_size

import eqx_vit.flax
from eqx_vit import MODELS

flax = pytest.importorskip("flax", reason="run by nox -s flax")

linen, serialization, traverse_util = (
    pytest.importorskip(f"flax.{name}") for name in ("linen", "serialization", "traverse_util")
)
TrainState = pytest.importorskip("flax.training.train_state").TrainState

every_model = pytest.mark.parametrize("name", MODELS)
KEYS = {"params": jax.random.key(1), "dropout": jax.random.key(2)}


@pytest.fixture(autouse=True)
def standard_promotion() -> Any:
    """Flax and optax need it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def describe(name: str, rate: float = 0.0) -> Any:
    fields = {field.name: getattr(TINY[name], field.name) for field in dataclasses.fields(TINY[name])}
    rates = {f.name: rate for f in dataclasses.fields(TINY[name]) if "drop" in f.name and f.type is float}
    return getattr(eqx_vit.flax, MODELS[name].model.__name__)(**(fields | rates))


def images_for(name: str, batch: int = 4) -> jax.Array:
    return jax.random.normal(jax.random.key(7), (batch, *tiny_size(name), TINY[name].channels))


def same(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["vit", "levit"])
def test_train_state_trains(name: str) -> None:
    class State(TrainState):
        rest: Any

    v, images = describe(name, 0.1), images_for(name)
    variables = v.init(KEYS, images)
    params = variables.pop("params")
    state = State.create(apply_fn=v.apply, params=params, tx=optax.adam(1e-2), rest=variables)
    labels = jnp.arange(4) % 5

    @jax.jit
    def step(state: State, key: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, rest = state.apply_fn(
                {"params": params, **state.rest}, images, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest

        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, rest={**state.rest, **rest}), value

    losses = []
    for number in range(25):
        state, value = step(state, jax.random.fold_in(KEYS["dropout"], number))
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


@every_model
def test_serialization_round_trips(name: str) -> None:
    v, images = describe(name), images_for(name)
    variables = v.init(KEYS, images)
    blank = jax.tree.map(jnp.zeros_like, variables)
    same(serialization.from_bytes(blank, serialization.to_bytes(variables)), variables)
    same(serialization.from_state_dict(blank, serialization.to_state_dict(variables)), variables)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    same(traverse_util.unflatten_dict(flat, sep="/"), variables["params"])
    mask = traverse_util.path_aware_map(lambda path, _: path[-1] == "weight" and "norm" not in path[-2], flat)
    optax.adamw(1e-3, mask=traverse_util.unflatten_dict(mask, sep="/")).init(variables["params"])


@every_model
def test_as_linen_is_a_submodule(name: str) -> None:
    v, images = describe(name, 0.2), images_for(name)

    class Parent(linen.Module):
        @linen.compact
        def __call__(self, images: Any, *, train: bool) -> Any:
            logits = v.as_linen()(images, train=train)
            return linen.Dense(3)(logits)

    parent = Parent()
    variables = jax.eval_shape(lambda: parent.init(KEYS, images, train=False))
    own = jax.eval_shape(lambda: v.init(KEYS, images))
    for collection, tree in own.items():
        (child,) = [inner for key, inner in variables[collection].items() if not key.startswith("Dense")]
        assert jax.tree.map(jnp.shape, child) == jax.tree.map(jnp.shape, tree)
    rngs, mutable = {"dropout": KEYS["dropout"]}, ["batch_stats"]
    logits, updates = jax.eval_shape(
        lambda variables: parent.apply(variables, images, train=True, rngs=rngs, mutable=mutable), variables
    )
    assert logits.shape == (4, 3)
    assert ("batch_stats" in updates) == ("batch_stats" in own)


def test_as_linen_gives_the_same_numbers() -> None:
    v, images = describe("levit", 0.2), images_for("levit")
    module = v.as_linen()
    variables = module.init(KEYS, images, train=False)
    assert jax.tree.map(jnp.shape, dict(variables)) == jax.tree.map(jnp.shape, v.init(KEYS, images))
    np.testing.assert_array_equal(module.apply(variables, images, train=False), v.apply(variables, images))
    arguments: Any = {"rngs": {"dropout": KEYS["dropout"]}, "mutable": ["batch_stats"]}
    logits, updates = module.apply(variables, images, train=True, **arguments)
    again, _ = module.apply(variables, images, train=True, **arguments)
    np.testing.assert_array_equal(logits, again)
    _, expected = v.apply(variables, images, train=True, **arguments)
    assert jax.tree.structure(updates) == jax.tree.structure(expected)
    np.testing.assert_array_equal(module.apply(variables, images), v.apply(variables, images))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        module.apply(variables, images, True, mutable=["batch_stats"])
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        module.apply(variables, images, True, rngs={"dropout": KEYS["dropout"]})


class Scanned(linen.Module):
    """`train` at its default inside a module that others are scanned over."""

    inner: Any

    @linen.compact
    def __call__(self, images: Any, _: Any) -> Any:
        logits = self.inner.as_linen()(images)
        return images + logits.mean(), logits


class Backbone(linen.Module):
    """A model in `setup`, its features under a head of one's own."""

    inner: Any

    def setup(self) -> None:
        self.backbone = self.inner.as_linen()
        self.head = linen.Dense(3)

    def __call__(self, images: Any, train: bool = False) -> Any:
        return self.head(self.backbone.features(images, train).mean(1))


def lifted(name: str) -> Any:
    """(module, images, arguments after the images, shape of the output), as linen's users write them."""
    v, images = describe("levit", 0.2), images_for("levit", 2)
    LinenModule, config, several = type(v.as_linen()), v.config, jnp.stack([images] * 3)
    collections: Any = {"params": 0, "batch_stats": 0}
    split: Any = {"params": True, "dropout": True}
    match name:
        case "vmap over the images":
            shared = dict.fromkeys(collections)
            module = linen.vmap(LinenModule, variable_axes=shared, split_rngs={"params": False}, in_axes=0)(config)
            return module, several, (), (3, 2, 5)
        case "vmap over an ensemble":
            axes: Any = {"in_axes": None, "axis_size": 3}
            return linen.vmap(LinenModule, collections, split_rngs=split, **axes)(config), images, (), (3, 2, 5)
        case "vmap with train by position":
            module = linen.vmap(LinenModule, collections, split_rngs=split, in_axes=(0, None))(config)
            return module, several, (True,), (3, 2, 5)
        case "jit":
            return linen.jit(LinenModule, static_argnums=(2,))(config), images, (True,), (2, 5)
        case "remat":
            return linen.remat(LinenModule, static_argnums=(2,))(config), images, (True,), (2, 5)
        case "scan":
            return linen.scan(Scanned, variable_axes=collections, split_rngs=split, length=3)(v), images, (None,), None
        case "Sequential":
            return linen.Sequential([v.as_linen(), linen.Dense(3)]), images, (), (2, 3)
        case "setup":
            return Backbone(v), images, (True,), (2, 3)


LIFTED = ("vmap over the images", "vmap over an ensemble", "vmap with train by position", "jit", "remat", "scan")


@pytest.mark.parametrize("kind", [*LIFTED, "Sequential", "setup"])
def test_as_linen_is_lifted_and_called_as_linen_modules_are(kind: str) -> None:
    module, images, arguments, shape = lifted(kind)

    def run(images: Any) -> Any:
        variables = module.init(KEYS, images, *arguments)
        return module.apply(variables, images, *arguments, rngs=KEYS, mutable=["batch_stats"])

    output, updates = jax.eval_shape(run, images)
    assert list(updates) == ["batch_stats"]
    assert (output[1].shape == (3, 2, 5)) if shape is None else (output.shape == shape)


def test_as_linen_has_the_methods_of_the_model() -> None:
    module, images = describe("vit").as_linen(), images_for("vit")
    variables = jax.eval_shape(lambda: module.init(KEYS["params"], images, method="features"))
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(lambda: module.init(KEYS["params"], images))
    )
    for method in ("features", type(module).features, module.features):
        features = jax.eval_shape(lambda variables, m=method: module.apply(variables, images, method=m), variables)
        assert features.shape == (4, 5, 16)
    with pytest.raises(ValueError, match="has one head"):
        jax.eval_shape(lambda variables: module.apply(variables, images, method="logits_pair"), variables)


def test_as_linen_names_what_is_wrong() -> None:
    module, images = describe("vit").as_linen(), images_for("vit")
    for message, call in {
        "train must be .*static_argnames": lambda: linen.jit(type(module))(module.config).init(KEYS, images, True),
        "train must be True or False, given a str": lambda: module.init(KEYS, images, "yes"),
        "contradict": lambda: module.init(KEYS, images, train=True, deterministic=True),
        "given a list: convert": lambda: module.init(KEYS, [1]),
        "missing params.class_token": lambda: module.apply({}, images),
        "params.a must be an array of numbers, given a int": lambda: module.apply({"params": {"a": 1}}, images),
    }.items():
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call)


def test_nnx_bridge() -> None:
    from flax import nnx

    images = images_for("levit")
    model = nnx.bridge.ToNNX(describe("levit", 0.2).as_linen(), rngs=nnx.Rngs(params=1, dropout=2))
    nnx.bridge.lazy_init(model, images, train=False)
    assert model(images, train=False).shape == (4, 5)
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    logits = model(images, train=True, mutable=["batch_stats"], rngs=nnx.Rngs(dropout=3))
    assert logits.shape == (4, 5)
    after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert after
    assert all(np.any(one != other) for one, other in zip(before, after, strict=True))
    other = model(images, train=True, mutable=["batch_stats"], rngs=nnx.Rngs(dropout=4))
    assert np.any(np.asarray(other) != np.asarray(logits))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        model(images, train=True, mutable=["batch_stats"], rngs=nnx.Rngs())


def test_orbax_saves_and_restores(tmp_path: Any) -> None:
    import orbax.checkpoint as ocp

    variables = describe("levit").init(KEYS, images_for("levit"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "variables", variables)
        checkpointer.wait_until_finished()
        same(checkpointer.restore(tmp_path / "variables", jax.tree.map(jnp.zeros_like, variables)), variables)
