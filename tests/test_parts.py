"""The parts of a user's own that a constructor takes: attentions, perceptrons, norms and stems, each in one line."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PRNGKeyArray, TypeCheckError
from test_models import images_for
from tiny import TINY

import eqx_vit
from eqx_vit import MODELS
from eqx_vit.layers import Attention, Conv, LayerNorm, RMSNorm

NAMES = ["vit", "simple_vit", "cait", "deepvit", "parallel_vit", "parallel_vit_hmlp", "patch_merger", "pit", "t2t"]
NAMES += ["vit_small_datasets"]
CONFIGS = TINY | {
    "deepvit": replace(TINY["deepvit"], convolutional_stem=False),  # which halves the image before the patches are cut
}


class Own(eqx.Module):
    """Attention with one head, of Equinox's own layers, which take one token; the first `kept` tokens come out."""

    qkv: eqx.nn.Linear
    projection: eqx.nn.Linear
    kept: int | None = eqx.field(static=True)

    def __init__(self, dim: int, out: int, kept: int | None, *, key: PRNGKeyArray) -> None:
        qkv_key, projection_key = jax.random.split(key)
        self.qkv = eqx.nn.Linear(dim, 3 * dim, key=qkv_key)
        self.projection = eqx.nn.Linear(dim, out, key=projection_key)
        self.kept = kept

    def __call__(self, tokens: Array, *, key: PRNGKeyArray | None = None) -> Array:
        query, keys, value = jnp.split(jax.vmap(self.qkv)(tokens), 3, axis=1)
        return jax.vmap(self.projection)(jax.nn.softmax(query @ keys.T) @ value)[: self.kept]


def make_own(config: Any, *sizes: Any, kept: int | None = None, wider: int = 0, key: PRNGKeyArray) -> Own:
    """`sizes` are those of a stage, where a model has stages."""
    dim = (sizes[0] if sizes else config).dim
    return Own(dim, dim + wider, kept, key=key)


class ConvStem(eqx.Module):
    conv1: Conv
    conv2: Conv

    def __init__(self, config: Any, *, wider: int = 0, key: PRNGKeyArray) -> None:
        conv1_key, conv2_key = jax.random.split(key)
        dim = config.stages[0].dim if isinstance(config, eqx_vit.PiTConfig) else config.dim
        stride = config.strides if isinstance(config, eqx_vit.PiTConfig) else config.patch_size
        self.conv1 = Conv(config.channels, 6, 3, padding=1, key=conv1_key)
        self.conv2 = Conv(6, dim + wider, config.patch_size, stride=stride, key=conv2_key)

    def __call__(self, image: Array) -> Array:
        return self.conv2(jax.nn.relu(self.conv1(image)))


MAKERS: dict[str, Callable[..., Any]] = {
    "patch_embedding": ConvStem,
    "attention": make_own,
    "re_attention": make_own,
    "class_attention": functools.partial(make_own, kept=1),
    "mlp": make_own,
    "merger": functools.partial(make_own, kept=3),
    "norm": RMSNorm,
}


def parts_of(name: str) -> list[str]:
    """The parts that a constructor takes."""
    return [part for part in inspect.signature(MODELS[name].model).parameters if part not in ("config", "key")]


EVERY_PART = [(name, part) for name in NAMES for part in parts_of(name)]


def make(name: str, key: PRNGKeyArray, **parts: Callable[..., Any]) -> tuple[Any, eqx.nn.State]:
    return eqx.nn.make_with_state(MODELS[name].model)(CONFIGS[name], key=key, **parts)


def trace(name: str, **parts: Callable[..., Any]) -> Any:
    """The shape of the logits: nothing is compiled."""
    made = eqx.filter_eval_shape(make, name, jax.random.key(0), **parts)
    return eqx.filter_eval_shape(eqx_vit.forward, *made, images_for(name))[0].shape


def drawn(shapes: Any) -> Any:
    """Random numbers for shapes: no initialisation hides behind zeros, and none compiles."""
    random = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.asarray(0.3 * random.standard_normal(leaf.shape), leaf.dtype) if is_shape else leaf

    return jax.tree.map(draw, shapes)


def modules(tree: Any, kind: type[eqx.Module]) -> dict[str, Any]:
    """The modules of a kind, by the names that `observe` takes: stacked blocks have none of their own."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kind))
    paths = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}
    return {path.replace(".block.", "."): leaf for path, leaf in paths.items() if isinstance(leaf, kind)}


def test_every_model_takes_the_same_parts_and_those_of_its_paper() -> None:
    assert all({"attention", "mlp", "norm"} <= set(parts_of(name)) for name in NAMES)
    assert [name for name in NAMES if "patch_embedding" not in parts_of(name)] == ["parallel_vit_hmlp", "t2t"]
    assert {part for _, part in EVERY_PART} == set(MAKERS)


@pytest.mark.parametrize(("name", "part"), EVERY_PART)
def test_each_part_is_exchanged_alone(name: str, part: str) -> None:
    assert trace(name, **{part: MAKERS[part]}) == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_all_parts_are_exchanged_together(name: str) -> None:
    parts = {part: MAKERS[part] for part in parts_of(name)}
    model, state = drawn(eqx.filter_eval_shape(make, name, jax.random.key(0), **parts))
    assert not modules(model, LayerNorm) | modules(model, Attention)
    logits, seen = eqx_vit.observe(model, state, images_for(name), "*.qkv")
    assert np.isfinite(logits).all()
    assert len(np.unique(logits)) == logits.size
    own = modules(model, Own)
    assert len(own) >= 2
    for path, part in own.items():
        *stacked, width, _ = part.qkv.weight.shape
        value = seen[f"{path}.qkv"]
        assert value.shape == (2, *stacked, value.shape[-2], width)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_blocks_start_alike(name: str) -> None:
    @eqx.filter_jit
    def initial_weights(key: PRNGKeyArray) -> list[Array]:
        parts = {part: MAKERS[part] for part in parts_of(name) if MAKERS[part] not in (ConvStem, RMSNorm)}
        return [part.projection.bias for part in modules(make(name, key, **parts)[0], Own).values()]

    biases = initial_weights(jax.random.key(0))
    first = [row[0] for bias in biases for row in np.asarray(bias).reshape(-1, bias.shape[-1])]
    assert len(set(first)) == len(first) >= 2 * sum(np.ravel(CONFIGS[name].depth))


TOO_FEW = functools.partial(make_own, kept=2)
TOO_WIDE = functools.partial(make_own, wider=1)


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_changes_the_tokens_is_refused(name: str, part: str) -> None:
    with pytest.raises(TypeCheckError, match=r"(add_branch|Branch)(.|\n)*(positions|tokens)="):
        trace(name, **{part: TOO_FEW})
    with pytest.raises(TypeCheckError, match=r"(add_branch|Branch|norm._scale)(.|\n)*dim=[0-9]"):
        trace(name, **{part: TOO_WIDE})


@pytest.mark.parametrize("name", [name for name in NAMES if "patch_embedding" in parts_of(name)])
def test_a_map_of_another_width_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must make a map of \(rows, columns, dim\) = \(.*\), and made \(.*\)"):
        trace(name, patch_embedding=functools.partial(ConvStem, wider=1))


def test_what_the_particular_parts_return_is_checked() -> None:
    with pytest.raises(TypeCheckError, match="positions="):
        trace("cait", class_attention=make_own)
    with pytest.raises(TypeCheckError, match="positions="):
        trace("deepvit", re_attention=TOO_FEW)
    with pytest.raises(TypeCheckError, match="merged dim"):
        trace("patch_merger", merger=TOO_WIDE)
