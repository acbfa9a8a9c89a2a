"""Heads, sizes and files of a model whose parts a user has exchanged: they stay, or a plain error says why not."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from tiny import TINY, slow_but_for, tiny_size

import eqx_vit
from eqx_vit.create import make_skeleton
from eqx_vit.layers import Attention, Stack
from eqx_vit.paths import named_leaves
from eqx_vit.registry import AnyModel
from eqx_vit.weights import load_state_dict, to_state_dict

KEY, HEAD_KEY = jax.random.split(jax.random.key(0))
# Where the first stack of blocks with an attention is.
STACKS = {
    "vit": lambda model: model.blocks,
    "cait": lambda model: model.blocks,
    "deepvit": lambda model: model.blocks,
    "levit": lambda model: model.stages[0],
}


class Gain(eqx.Module):
    """A user's attention: each token times a factor per channel. In a stateful model it hands the state on."""

    gain: Array

    def __call__(self, tokens: Array, *state: eqx.nn.State, key: Array | None = None) -> Any:
        scaled = tokens * self.gain[None]
        return (scaled, *state) if state else scaled


def filled(name: str) -> tuple[Any, eqx.nn.State]:
    """A tiny model and its state with arrays of ones: nothing is compiled."""
    return jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        make_skeleton(TINY[name]),
    )


def exchange(name: str) -> tuple[Any, eqx.nn.State]:
    """A tiny model with the user's attention in the blocks of its first stack."""
    model, state = filled(name)
    stack = STACKS[name](model)
    gains = jnp.arange(1.0, 1 + len(stack) * 16).reshape(len(stack), 16)
    return eqx.tree_at(lambda m: STACKS[name](m).block.attention, model, Gain(gains)), state


def output_shape(model: AnyModel, state: eqx.nn.State, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the logits of two images, in training mode; nothing is compiled."""
    logits, _ = eqx.filter_eval_shape(eqx_vit.forward, model, state, jnp.zeros((2, *size, 3)), KEY)
    return logits.shape


@pytest.mark.parametrize("name", STACKS)
def test_a_new_head_leaves_exchanged_parts_alone(name: str) -> None:
    model, state = exchange(name)
    before = named_leaves(model)
    swapped = eqx_vit.replace_head(model, 9, key=HEAD_KEY)
    assert swapped.config.num_classes == 9
    after = named_leaves(swapped)
    assert isinstance(STACKS[name](swapped).block.attention, Gain)
    for path in before:
        if not path.startswith("head"):
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    assert output_shape(swapped, state, tiny_size(name)) == (2, 9)
    back = eqx_vit.replace_head(eqx_vit.replace_head(model, 0, key=HEAD_KEY), 9, key=HEAD_KEY)
    assert set(named_leaves(back)) == set(before)
    assert output_shape(back, state, tiny_size(name)) == (2, 9)


def test_the_head_of_a_stateful_model_keeps_its_statistics() -> None:
    model, state = exchange("levit")
    mean, variance = state.get(model.head.norm.statistics)
    state = state.set(model.head.norm.statistics, (mean + 2, variance * 3))
    swapped = eqx_vit.replace_head(model, 9, key=HEAD_KEY)
    found, _ = state.get(swapped.head.norm.statistics)
    np.testing.assert_array_equal(found, mean + 2)


def test_a_model_made_within_another_keeps_its_place_in_the_state() -> None:
    class Wrapped(eqx.Module):
        body: Any

        def __init__(self, key: Array) -> None:
            self.body = eqx_vit.LeViT(TINY["levit"], key=key)

    wrapped, state = eqx.filter_eval_shape(eqx.nn.make_with_state(Wrapped), KEY)
    swapped = eqx_vit.replace_head(wrapped.body, 9, key=HEAD_KEY)
    assert output_shape(swapped, state, tiny_size("levit")) == (2, 9)


def test_a_head_of_ones_own_is_replaced() -> None:
    model, state = filled("vit")
    model = eqx.tree_at(lambda m: m.head, model, eqx.nn.MLP(16, 5, 8, 1, key=KEY))
    swapped = eqx_vit.replace_head(model, 3, key=HEAD_KEY)
    assert output_shape(swapped, state, (16, 16)) == (2, 3)


def test_resizing_leaves_exchanged_parts_alone() -> None:
    model, state = exchange("vit")
    resized = eqx_vit.resize(model, (24, 40))
    assert resized.config.image_size == (24, 40)
    assert resized.position_embedding.shape == (1 + 15, 16)
    np.testing.assert_array_equal(resized.blocks.block.attention.gain, model.blocks.block.attention.gain)
    assert output_shape(resized, state, (24, 40)) == (2, 5)


class LowRank(eqx.Module):
    """A user's adapter of a linear map."""

    base: Any
    down: Array
    up: Array

    def __call__(self, x: Array) -> Array:
        return self.base(x) + x @ self.down @ self.up


def without_bias(model: Any) -> Any:
    return eqx.tree_at(lambda m: m.head.bias, model, None)


def adapted(model: Any) -> Any:
    qkv = model.blocks.block.attention.qkv
    own = LowRank(qkv, jnp.ones((2, 16, 1)), jnp.ones((2, 1, 48)))
    return eqx.tree_at(lambda m: m.blocks.block.attention.qkv, model, own)


def shorter(model: Any) -> Any:
    return eqx.tree_at(lambda m: m.blocks, model, model.blocks[:1])


def another_head(model: Any) -> Any:
    return eqx.tree_at(lambda m: m.head, model, eqx.nn.MLP(16, 5, 8, 1, key=KEY))


def with_integers(model: Any) -> Any:
    return eqx.tree_at(lambda m: m.head.bias, model, jnp.zeros(5, dtype=jnp.int32))


def with_complex_numbers(model: Any) -> Any:
    return eqx.tree_at(lambda m: m.head.bias, model, jnp.zeros(5, dtype=jnp.complex64))


CHANGES = {
    without_bias: r"head\.bias \(missing\)",
    adapted: r"blocks\.block\.attention\.qkv\.down \(unknown\)",
    shorter: r"blocks\.block\.norm1\.weight \(shape \(1, 16\), not \(2, 16\)\)",
    another_head: r"head\.layers\.0\.weight \(unknown\)",
    with_integers: r"head\.bias \(dtype int32, not a floating-point one\)",
    with_complex_numbers: r"head\.bias \(dtype complex64, not a floating-point one\)",
}


@pytest.mark.parametrize(("change", "different"), CHANGES.items())
def test_a_changed_model_is_not_saved_but_keeps_its_surgery(
    change: Callable[[Any], Any], different: str, tmp_path: Path
) -> None:
    model, state = filled("vit")
    model = change(model)
    with pytest.raises(ValueError, match=f"could not restore these arrays: .*{different}") as error:
        eqx_vit.save(tmp_path / "model.safetensors", model, state)
    assert len(str(error.value)) < 2500
    assert not list(tmp_path.iterdir())
    swapped = eqx_vit.replace_head(eqx_vit.resize(model, (24, 40)), 3, key=HEAD_KEY)
    assert output_shape(swapped, state, (24, 40)) == (2, 3)


def test_an_ensemble_is_told_and_each_of_its_models_is_as_any_other(tmp_path: Path) -> None:
    model, state = filled("vit")
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]) if eqx.is_array(leaf) else leaf, model)
    path = tmp_path / "model.safetensors"
    for act in (
        lambda: eqx_vit.save(path, models, state),
        lambda: eqx_vit.resize(models, 24),
        lambda: eqx_vit.replace_head(models, 3, key=HEAD_KEY),
    ):
        with pytest.raises(ValueError, match="takes one model, and this is an ensemble of 2 ViT: "):
            act()
    keys = jax.random.split(HEAD_KEY, 2)
    swapped = eqx.filter_vmap(lambda model, key: eqx_vit.replace_head(model, 3, key=key))(models, keys)
    resized = eqx.filter_vmap(lambda model: eqx_vit.resize(model, 24))(swapped)
    assert (resized.config.num_classes, resized.config.image_size) == (3, 24)
    second = jax.tree.map(lambda leaf: leaf[1] if eqx.is_array(leaf) else leaf, resized)
    eqx_vit.save(path, second, state)
    assert output_shape(eqx_vit.load(path)[0], state, (24, 24)) == (2, 3)


def test_a_position_table_of_ones_own_is_not_resized() -> None:
    for name, own in (("t2t", None), ("vit", jnp.ones((7, 16))), ("pit", eqx.nn.Identity()), ("cait", None)):
        model = eqx.tree_at(lambda m: m.position_embedding, filled(name)[0], own)
        with pytest.raises(ValueError, match=r"cannot be resized: it has not the position tables .*position_embedding"):
            eqx_vit.resize(model, 48)


def test_what_is_no_model_has_no_head_and_no_size() -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match=r"resize: model must be a model of this library, .* given None"):
        eqx_vit.resize(nothing, 24)
    with pytest.raises(ValueError, match=r"replace_head: model must be a model of this library, .* given None"):
        eqx_vit.replace_head(nothing, 3, key=KEY)


def cut(model: Any, piece: slice) -> Any:
    """The model with a slice of each of its stacks in place of it."""
    return jax.tree.map(lambda node: node[piece] if is_stack(node) else node, model, is_leaf=is_stack)


def is_stack(node: object) -> bool:
    return isinstance(node, Stack)


@pytest.mark.parametrize("piece", [slice(1), slice(1, None), slice(None, None, -1)], ids=["first", "rest", "reversed"])
@slow_but_for("vit", "levit", "region_vit")
def test_a_model_runs_with_a_slice_of_its_stacks(name: str, piece: slice) -> None:
    model, state = filled(name)
    assert output_shape(cut(model, piece), state, tiny_size(name)) == (2, 5)


def test_a_slice_keeps_the_rates_and_statistics_of_its_blocks() -> None:
    class Block(eqx.nn.StatefulLayer):
        weight: Array
        count: eqx.nn.StateIndex[Array]

        def __init__(self, *, key: Array) -> None:
            self.weight = jax.random.normal(key)
            self.count = eqx.nn.StateIndex(jnp.zeros(()))

        def __call__(self, x: Array, state: eqx.nn.State, rate: Array, *, key: None) -> tuple[Array, eqx.nn.State]:
            return 2 * x + rate * self.weight, state.set(self.count, state.get(self.count) + rate)

    rates = jnp.arange(1.0, 5.0)
    stack, state = eqx.nn.make_with_state(Stack.build)(Block, 4, key=KEY)
    for places in ([1, 2], [0], [2, 3], [3, 2, 1, 0], [2]):
        piece = {(1, 2): stack[1:3], (0,): stack[:1], (2, 3): stack[1:][1:], (2,): stack[1:][1:2]}.get(
            tuple(places), stack[::-1]
        )
        expected = jnp.zeros(())
        for place in places:
            expected = 2 * expected + rates[place] * stack.block.weight[place]
        y, after = piece.with_state(jnp.zeros(()), state, xs=(rates,))
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        kept = jnp.zeros(4).at[jnp.array(places)].set(rates[jnp.array(places)])
        np.testing.assert_array_equal(after.get(stack.block.count), kept)
        np.testing.assert_array_equal(piece.state_at(after, 0).get(stack.block.count), rates[places[0]])


def test_a_stack_whose_arrays_have_another_depth_says_so() -> None:
    model, state = filled("vit")
    one = eqx.tree_at(lambda m: m.blocks.block, model, model.blocks[:1].block)
    with pytest.raises(ValueError, match="this Stack has 2 blocks, and arrays whose first axis, the depth, is 1"):
        output_shape(one, state, (16, 16))
    longer = eqx.tree_at(lambda m: m.blocks, model, Stack.from_blocks([*model.blocks, model.blocks[0]]))
    with pytest.raises(ValueError, match=r"this Stack has 3 blocks, and what comes with them .* is for 2"):
        output_shape(longer, state, (16, 16))
    periodic: Any = filled("twins_svt")[0].stages[0].blocks
    with pytest.raises(ValueError, match="a PeriodicStack gives one block at a time"):
        periodic[:1]


OWN = r"blocks\.block\.attention\.gain \(unknown\)"


def test_a_model_that_loading_could_not_restore_is_not_saved(tmp_path: Path) -> None:
    model, state = exchange("vit")
    with pytest.raises(ValueError, match="has parts that its config does not make") as error:
        eqx_vit.save(tmp_path / "model.safetensors", model, state)
    assert re.search(OWN, str(error.value))
    assert "blocks.block.attention.qkv.weight (missing)" in str(error.value)
    assert "eqx.tree_serialise_leaves" in str(error.value)
    wide = eqx.tree_at(lambda m: m.blocks.block.mlp.fc1.bias, filled("vit")[0], jnp.zeros((2, 25)))
    with pytest.raises(ValueError, match=r"blocks\.block\.mlp\.fc1\.bias \(shape \(2, 25\), not \(2, 24\)\)"):
        eqx_vit.save(tmp_path / "model.safetensors", wide, state)
    assert not list(tmp_path.iterdir())


def test_a_part_whose_arrays_fit_is_saved(tmp_path: Path) -> None:
    model, state = filled("vit")
    own = Stack.build(lambda *, key: Attention(16, 2, qkv_bias=True, key=key), 2, key=HEAD_KEY)
    model = eqx.tree_at(lambda m: m.blocks.block.attention, model, own.block)
    eqx_vit.save(tmp_path / "model.safetensors", model, state)
    loaded, _ = eqx_vit.load(tmp_path / "model.safetensors")
    for path, array in named_leaves(model).items():
        np.testing.assert_array_equal(named_leaves(loaded)[path], array, err_msg=path)


@pytest.mark.parametrize("name", ["vit", "levit"])
def test_foreign_names_of_exchanged_parts_are_not_known(name: str) -> None:
    weights = to_state_dict(*filled(name), "official")
    model, state = exchange(name)
    for act in (
        lambda: load_state_dict(model, state, weights, source="official"),
        lambda: load_state_dict(model, state, weights, source="official", channels=1, num_classes=3, key=KEY),
        lambda: to_state_dict(model, state, "official"),
    ):
        with pytest.raises(ValueError, match=r"no name map knows these arrays: \S+\.attention\.gain \(unknown\)"):
            act()


def test_what_a_layout_cannot_hold_is_told() -> None:
    model, state = make_skeleton(dataclasses.replace(TINY["vit"], qk_norm=True))
    with pytest.raises(ValueError, match="transformers' ViT cannot have this model's qk_norm: use another layout"):
        to_state_dict(model, state, "hf")


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    model, _ = filled("levit")
    _, other = filled("vit")
    with pytest.raises(ValueError, match=r"the state lacks the statistics of stem\.0\.norm"):
        eqx_vit.save(tmp_path / "model.safetensors", model, other)


def test_a_new_head_is_in_the_dtype_and_the_mode_of_the_model() -> None:
    model, state = eqx_vit.create(TINY["levit"], key=jax.random.key(0))
    frozen = eqx_vit.cast(eqx_vit.inference_mode(model), jnp.bfloat16)
    swapped = eqx_vit.replace_head(frozen, 9, key=jax.random.key(1))
    images = jnp.ones((2, 64, 64, 3), dtype=jnp.bfloat16)
    logits, after = eqx_vit.forward(swapped, state, images)
    assert logits.dtype == jnp.bfloat16
    assert eqx.tree_equal(after, state)
    training: Any = eqx_vit.replace_head(model, 9, key=jax.random.key(1))
    assert not training.head.norm.inference
