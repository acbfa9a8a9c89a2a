"""Batches and models on many devices: the numbers of one device, and nothing kept of the mesh that was in force."""

import contextlib
import sys
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxtyping import Array, PyTree
from tiny import TINY, slow_but_for, tiny_size

import eqx_vit

DEVICES = 8
MESHES = {kind: jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)}


def batch(name: str, size: int = 2 * DEVICES) -> np.ndarray:
    shape = (size, *tiny_size(name), TINY[name].channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def shard(tree: PyTree, kind: AxisType, spec: P) -> PyTree:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(MESHES[kind], spec)), tree)


def apply_both(params: PyTree, state: PyTree, images: Array) -> tuple[Array, Array, PyTree]:
    """Logits in evaluation and in training, and the state after training."""
    apply = eqx_vit.transform(TINY["deepvit"]).apply
    logits, after = apply(params, state, None, images, update_statistics=True)
    return apply(params, state, None, images)[0], logits, after


def use_pmap(params: PyTree, state: PyTree, images: Array) -> tuple[Array, Array, PyTree]:
    per_device = images.reshape(DEVICES, -1, *images.shape[1:])
    evaluated, trained, after = jax.pmap(apply_both, in_axes=(None, None, 0))(params, state, per_device)
    return evaluated.reshape(len(images), -1), trained.reshape(len(images), -1), after


def use_shard_map(params: PyTree, state: PyTree, images: Array) -> tuple[Array, Array, PyTree]:
    def per_device(params: PyTree, state: PyTree, images: Array) -> tuple[Array, Array, PyTree]:
        evaluated, trained, after = apply_both(params, state, images)
        return evaluated, trained, jax.lax.pmean(after, "data")

    in_specs, out_specs = (P(), P(), P("data")), (P("data"), P("data"), P())
    sharded = jax.shard_map(per_device, mesh=MESHES[AxisType.Auto], in_specs=in_specs, out_specs=out_specs)
    return sharded(params, state, images)


# The function, and how the batch is sharded; then whether the mesh is set too.
WAYS: dict[str, tuple[Callable[..., tuple[Array, Array, PyTree]], AxisType | None, bool]] = {
    "plain": (apply_both, None, False),
    "pmap": (use_pmap, None, False),
    "shard_map": (use_shard_map, None, False),
    "auto": (apply_both, AxisType.Auto, True),
    "explicit": (apply_both, AxisType.Explicit, True),
    "explicit, not set": (apply_both, AxisType.Explicit, False),
}


def compile_way(way: str, params: PyTree, state: PyTree) -> Callable[[], tuple[Array, Array, PyTree]]:
    """The traced and lowered call, which compiles and runs when it is called."""
    function, kind, set_mesh = WAYS[way]
    images = jnp.asarray(batch("deepvit")) if kind is None else shard(batch("deepvit"), kind, P("data"))
    with jax.set_mesh(MESHES[kind]) if kind is not None and set_mesh else contextlib.nullcontext():
        lowered = jax.jit(lambda *arguments: function(*arguments)).lower(params, state, images)  # new: traced anew
    return lambda: lowered.compile()(params, state, images)


@pytest.mark.parametrize(
    "first",
    ["pmap", "shard_map", "explicit", *(pytest.param(way, marks=pytest.mark.slow) for way in ("plain", "auto"))],
)
def test_what_ran_before_does_not_matter(first: str) -> None:
    """Each way is traced after `first` has made what is kept."""
    params, state = eqx_vit.transform(TINY["deepvit"]).init(jax.random.key(0))
    sys.modules["eqx_vit.create"]._make_skeleton.cache_clear()  # `eqx_vit.create` is the function
    jax.clear_caches()
    for way in (first, *WAYS):
        compile_way(way, params, state)


def test_each_way_gives_the_same_numbers() -> None:
    """DeepViT has BatchNorm, whose statistics are those of a device within `jax.pmap` and `jax.shard_map`."""
    params, state = eqx_vit.transform(TINY["deepvit"]).init(jax.random.key(0))
    expected = compile_way("plain", params, state)()
    for way in WAYS:
        evaluated, trained, after = compile_way(way, params, state)()
        np.testing.assert_allclose(evaluated, expected[0], atol=1e-5)
        if way not in ("pmap", "shard_map"):
            np.testing.assert_allclose(trained, expected[1], atol=1e-4)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, expected[2])


def gradient(model: eqx_vit.ImageModel, state: eqx.nn.State, images: Array, key: Array) -> tuple[PyTree, PyTree]:
    def loss(model: eqx_vit.ImageModel) -> tuple[Array, eqx.nn.State]:
        logits, after = eqx_vit.forward(model, state, images, key)
        return jnp.mean(jnp.square(logits)), after

    return eqx.filter_value_and_grad(loss, has_aux=True)(model)


def divides(leaf: Array) -> bool:
    return leaf.ndim > 0 and leaf.shape[0] % DEVICES == 0


@slow_but_for("vit", "cait", "twins_svt")  # tokens, a class token that joins late, windows
def test_explicit_axes_are_traced(name: str) -> None:
    """Training on a mesh of Explicit axes, which JAX makes by default: the batch sharded, then the parameters too."""
    model, state = eqx_vit.create_abstract(TINY[name])
    shapes, static = eqx.partition((model, state), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    arrays = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sharded = jax.tree.map(lambda leaf: shard(leaf, AxisType.Explicit, P("data" if divides(leaf) else None)), arrays)
    with jax.set_mesh(MESHES[AxisType.Explicit]):
        images = shard(batch(name), AxisType.Explicit, P("data"))
        for parameters in (arrays, sharded):
            model, state = eqx.combine(parameters, static)
            eqx.filter_make_jaxpr(gradient)(model, state, images, jax.random.key(0))


@slow_but_for("vit", "levit")
def test_explicit_axes_give_the_numbers_of_one_device(name: str) -> None:
    model, state = eqx_vit.create(TINY[name], key=jax.random.key(0))
    images, key = jnp.asarray(batch(name)), jax.random.key(1)
    step = eqx.filter_jit(gradient)
    expected = step(model, state, images, key)
    with jax.set_mesh(MESHES[AxisType.Explicit]):
        found = step(model, state, shard(images, AxisType.Explicit, P("data")), key)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@slow_but_for("vit", "cait", "levit")
def test_shard_map_is_traced(name: str) -> None:
    """Gradients unchecked: of the derivative of GELU JAX 0.12 cannot tell how it varies over the devices."""
    model, state = eqx_vit.create_abstract(TINY[name])
    arrays, static = eqx.partition((model, state), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def run(arrays: PyTree, images: Array, key: Array) -> Array:
        model, state = eqx.combine(arrays, static)
        return eqx_vit.forward(model, state, images, key)[0]

    def differentiate(arrays: PyTree, images: Array, key: Array) -> PyTree:
        model, state = eqx.combine(arrays, static)
        (loss, _), gradients = gradient(model, state, images, key)
        return jax.lax.pmean((loss, eqx.filter(gradients, eqx.is_array)), "data")

    for function, out_specs, check_vma in ((run, P("data"), True), (differentiate, P(), False)):
        in_specs, mesh = (P(), P("data"), P()), MESHES[AxisType.Auto]
        sharded = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)
        jax.eval_shape(sharded, arrays, batch(name), jax.random.key(0))
