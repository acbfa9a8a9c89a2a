"""Optimisers see a model whose depth is stacked as they would see its blocks apart."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, PyTree
from tiny import TINY

import eqx_vit
from eqx_vit import (
    decay_mask,
    layer_labels,
    layer_numbers,
    muon_dimension_numbers,
    per_layer,
    scale_by_layer,
    trainable,
)
from eqx_vit.layers import Stack
from eqx_vit.paths import named_leaves, path_name
from eqx_vit.registry import AnyModel

KEY = jax.random.key(0)
DOCS = (Path(__file__).parent.parent / "docs" / "optimisers.md").read_text()
# The layers of every tiny model: a parameter has those of the longest prefix of its name.
LAYERS: dict[str, dict[str, int | list[int]]] = {
    "vit": {"": 0, "blocks": [1, 2], "norm": 3, "head": 3},
    "dinov3": {"": 0, "blocks": [1, 2], "norm": 3, "head": 3},
    "simple_vit": {"": 0, "blocks": [1, 2], "norm": 3, "head": 3},
    "cait": {"": 0, "blocks": [1, 2], "class_blocks": [3, 4], "norm": 5, "head": 5},
    "crossformer": {
        "": 0,
        "stages.0.periods.block.blocks.0": [1],
        "stages.0.periods.block.blocks.1": [2],
        "stages.0.rest": 3,
        "stages.1.periods.block.blocks.0": [4],
        "stages.1.periods.block.blocks.1": [5],
        "mergings.0": 4,
        "norm": 6,
        "head": 6,
    },
    "cross_vit": {"": 0, "blocks.0": [1, 2], "norm": 3, "head": 3},
    "cvt": {
        "": 0,
        "stages.0.blocks": [1],
        "stages.1": 2,
        "stages.1.blocks": [2],
        "stages.2": 3,
        "stages.2.blocks": [3, 4],
        "norm": 5,
        "head": 5,
    },
    "deepvit": {"": 0, "blocks": [1], "re_attention_blocks": [2], "norm": 3, "head": 3},
    "levit": {"": 0, "stages.0": [1, 2], "stages.1": [3, 4], "downsamples.0": 3, "head": 5},
    "nest": {"": 0, "stages.0.blocks": [1], "stages.1": 2, "stages.1.blocks": [2, 3], "norm": 4, "head": 4},
    "parallel_vit": {"": 0, "encoder.blocks": [1, 2], "encoder.norm": 3, "head": 3},
    "parallel_vit_hmlp": {"": 0, "encoder.blocks": [1, 2], "encoder.norm": 3, "head": 3},
    "patch_merger": {"": 0, "blocks": [1], "patch_merger": 2, "merged_blocks": [2], "norm": 3, "head": 3},
    "pit": {"": 0, "stages.0": [1], "stages.1": [2, 3], "pools.0": 2, "norm": 4, "head": 4, "head_dist": 4},
    "region_vit": {
        "": 0,
        "stages.0.blocks": [1, 2],
        "stages.0.peg": 1,
        "stages.1": 3,
        "stages.1.blocks": [3, 4],
        "norm": 5,
        "head": 5,
    },
    "scalable_vit": {
        "": 0,
        "stages.0.first_block": 1,
        "stages.0.position_generator": 1,
        "stages.0.blocks.rest.0": 2,
        "stages.1": 3,
        "stages.1.blocks.periods.block.blocks.0": [4],
        "stages.1.blocks.periods.block.blocks.1": [5],
        "norm": 6,
        "head": 6,
    },
    "t2t": {"": 0, "blocks": [1, 2], "norm": 3, "head": 3},
    "twins_svt": {
        "": 0,
        "stages.0.first_block": 1,
        "stages.0.position_encoding": 1,
        "stages.0.blocks.rest.0": 2,
        "stages.1": 3,
        "stages.1.blocks.rest.0": 4,
        "stages.2": 5,
        "stages.2.blocks.periods.block.blocks.0": [6],
        "stages.2.blocks.periods.block.blocks.1": [7],
        "stages.2.blocks.rest.0": 8,
        "stages.3": 9,
        "stages.3.blocks.periods.block.blocks.0": [10],
        "stages.3.blocks.periods.block.blocks.1": [11],
        "norm": 12,
        "head": 12,
    },
    "vit_small_datasets": {"": 0, "blocks": [1, 2], "norm": 3, "head": 3},
}


def abstract(name: str, **changes: object) -> AnyModel:
    return eqx_vit.create_abstract(TINY[name], **changes)[0]


def named(tree: PyTree) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def separate(tree: PyTree) -> PyTree:
    """The tree with a tuple of blocks in place of each stack, and of each stack in a block."""
    return jax.tree.map(
        lambda node: tuple(separate(node[index]) for index in range(len(node))) if isinstance(node, Stack) else node,
        tree,
        is_leaf=lambda node: isinstance(node, Stack),
    )


KEPT = r"class_token|blocks.*qkv|stages.*qkv.*weight|mergings.*convs.0.weight|downsamples.*query.*weight|head\..*weight"


@functools.cache
def random_trees(name: str) -> list[PyTree]:
    """Parameters, and the gradients of two steps: some arrays of each kind, of random numbers, None for the rest.

    A block's are twice those of the block before.
    """
    parameters = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if re.search(KEPT, path_name(path)) else None, trainable(abstract(name))
    )
    numbers = layer_numbers(parameters)

    def fill(seed: int) -> PyTree:
        random = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf, number: jnp.asarray(random.normal(size=leaf.shape) * 2.0**number, float), parameters, numbers
        )

    return [fill(seed) for seed in range(3)]


def run(transformation: optax.GradientTransformation, trees: list[PyTree]) -> PyTree:
    """The updates of the last of several steps."""
    parameters, *gradients = trees
    update = jax.jit(transformation.update)
    # optax computes with the promotions that JAX has by default.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state, updates = jax.jit(transformation.init)(parameters), None
        for each in gradients:
            updates, state = update(each, state, parameters)
    return updates


def assert_equal(one: PyTree, other: PyTree) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), one, other)


def differ(one: PyTree, other: PyTree) -> set[str]:
    """The names of the arrays that differ clearly."""
    others = named(other)
    return {name for name, leaf in named(one).items() if not np.allclose(leaf, others[name], rtol=0.05)}


@pytest.mark.parametrize("name", TINY)
def test_layers_count_through_every_model(name: str) -> None:
    parameters, numbers = trainable(abstract(name)), layer_numbers(abstract(name))
    assert jax.tree.structure(numbers) == jax.tree.structure(parameters)
    leaves, table = named_leaves(parameters), LAYERS[name]
    for path, number in named(numbers).items():
        prefix = max((own for own in table if not own or f"{path}.".startswith(f"{own}.")), key=len)
        assert np.ravel(number).tolist() == np.ravel(table[prefix]).tolist(), path
        stacked = isinstance(table[prefix], list)
        assert np.ndim(number) == (leaves[path].ndim if stacked else 0), path


def test_layers_of_a_vit_are_those_of_beit() -> None:
    """0 for the embeddings, i + 1 for block i, depth + 1 for the norm and the head (timm: see the docs)."""
    config = eqx_vit.ViTConfig(
        image_size=32,
        patch_size=16,
        num_classes=4,
        dim=8,
        depth=12,
        heads=2,
        mlp_dim=8,
        register_tokens=2,
        pre_norm=True,
        representation_size=8,
    )
    numbers = layer_numbers(eqx_vit.create_abstract(config)[0])
    embeddings = (numbers.patch_embedding, numbers.class_token, numbers.register_tokens, numbers.position_embedding)
    assert set(jax.tree.leaves((*embeddings, numbers.norm_pre))) == {0}
    for number in jax.tree.leaves(numbers.blocks):
        assert np.ravel(number).tolist() == list(range(1, 13))
    assert set(jax.tree.leaves((numbers.norm, numbers.pre_logits, numbers.head))) == {13}


def test_layers_of_separate_blocks_and_of_a_slice() -> None:
    model = random_trees("vit")[0]
    apart = eqx.tree_at(lambda model: model.blocks, model, tuple(model.blocks))
    numbers = layer_numbers(apart)
    assert [set(jax.tree.leaves(block)) for block in numbers.blocks] == [{1}, {2}]
    assert numbers.head.weight == 3
    short = eqx.tree_at(lambda model: model.blocks, model, model.blocks[1:])
    assert layer_numbers(short).blocks.block.attention.qkv.bias.tolist() == [[1]]
    assert layer_numbers(short).head.weight == 2
    with pytest.raises(ValueError, match="here are none: no Stack"):
        layer_numbers(model.head)


def test_updates_are_scaled_by_layer() -> None:
    parameters, gradients, _ = random_trees("vit")
    optimiser = optax.chain(optax.sgd(1.0), scale_by_layer(0.5))
    updates = run(optimiser, [parameters, gradients])
    np.testing.assert_allclose(updates.class_token, -gradients.class_token / 8, rtol=1e-6)
    weights = (updates.blocks.block.attention.qkv.weight, gradients.blocks.block.attention.qkv.weight)
    np.testing.assert_allclose(weights[0][0], -weights[1][0] / 4, rtol=1e-6)
    np.testing.assert_allclose(weights[0][1], -weights[1][1] / 2, rtol=1e-6)
    np.testing.assert_allclose(updates.head.weight, -gradients.head.weight, rtol=1e-6)
    head_only = named(run(scale_by_layer(0), [parameters, gradients]))
    assert {name for name, leaf in head_only.items() if leaf.any()} == {"head.weight"}


def test_scaling_keeps_the_dtype() -> None:
    # Outside `run`, under strict promotion.
    gradients = eqx_vit.cast(random_trees("vit")[1], jnp.bfloat16)
    updates, _ = scale_by_layer(0.75).update(gradients, scale_by_layer(0.75).init(gradients))
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("decay", [-0.1, 1.5, "0.75"])
def test_a_decay_that_is_none(decay: Any) -> None:
    with pytest.raises(ValueError, match="decay must be a number from 0 to 1, given"):
        scale_by_layer(decay)


def test_labels() -> None:
    model = abstract("vit")
    labels = layer_labels(model)
    assert jax.tree.structure(labels) == jax.tree.structure(trainable(model))
    assert set(jax.tree.leaves((labels.class_token, labels.patch_embedding))) == {"embedding"}
    assert set(jax.tree.leaves(labels.blocks)) == {"blocks"}
    assert set(jax.tree.leaves((labels.norm, labels.head))) == {"head"}
    labels = layer_labels(model, ["patch_embedding", "blocks.mlp", "blocks.block.attention.qkv.weight"])
    frozen = {name for name, label in named(labels).items() if label == "frozen"}
    assert {"blocks.block.mlp.fc1.bias", "blocks.block.attention.qkv.weight", "patch_embedding.linear.bias"} <= frozen
    assert not {name for name in frozen if name.endswith("qkv.bias") or "norm" in name or "head" in name}
    assert layer_labels(model, frozen="head").head.bias == "frozen"
    assert layer_labels(abstract("pit"), ["head"]).head_dist.bias == "head"  # a part of a name is no path


def test_multi_transform_leaves_frozen_parts_alone() -> None:
    trees = random_trees("vit")
    labels = functools.partial(layer_labels, frozen=["class_token", "blocks.attention.qkv.bias"])
    transforms = {name: optax.adam(1.0) for name in ("embedding", "blocks", "head")}
    optimiser = optax.multi_transform({**transforms, "frozen": optax.set_to_zero()}, labels)
    moved = {name for name, leaf in named(run(optimiser, trees)).items() if leaf.any()}
    still = {"class_token", "blocks.block.attention.qkv.bias"}
    assert moved == set(named(trees[0])) - still


@pytest.mark.parametrize("path", ["blocks.0", "head.weigh", "", "block", "blocks.mlp.dropout"])
def test_frozen_paths_that_there_are_not(path: str) -> None:
    message = re.escape(
        f"no parameters at {path}: they are in patch_embedding, class_token, position_embedding, blocks,"
    )
    with pytest.raises(ValueError, match=message):
        layer_labels(abstract("vit"), ["head", path])


MUON = functools.partial(optax.contrib.muon, 1.0, ns_steps=2)  # fewer than in use compile faster


@pytest.mark.parametrize("name", ["vit", "parallel_vit", "crossformer"])
def test_muon_sees_the_same_matrices_stacked_and_separate(name: str) -> None:
    """In a stack, in a stack of stacks, and in a periodic one; convolutions between the stages too."""
    trees = random_trees(name)
    updates = run(MUON(muon_weight_dimension_numbers=muon_dimension_numbers), trees)
    numbers = separate(muon_dimension_numbers(trees[0]))
    apart = run(MUON(muon_weight_dimension_numbers=lambda _: numbers), [separate(tree) for tree in trees])
    assert_equal(separate(updates), apart)


def test_muon_orthogonalises_each_matrix_of_each_block() -> None:
    """Against optax's own default on the matrices alone, input axis first; the rest is Adam's."""
    trees = random_trees("vit")
    updates = run(MUON(muon_weight_dimension_numbers=muon_dimension_numbers), trees)
    adam = named(run(optax.adamw(1.0, weight_decay=0.0, nesterov=True), trees))
    (matrix,) = (name for name, _ in named_matrices(trees[0]))
    assert matrix == "blocks.block.attention.qkv.weight"
    blocks = [{str(index): weight.T for index, weight in enumerate(named(tree)[matrix])} for tree in trees]
    for index, update in run(MUON(), blocks).items():
        np.testing.assert_allclose(named(updates)[matrix][int(index)], update.T, rtol=1e-3, atol=1e-5)
    for name in set(adam) - {matrix}:
        np.testing.assert_allclose(named(updates)[name], adam[name], rtol=1e-4, atol=1e-6)


def test_muon_by_default_takes_the_stacked_biases() -> None:
    """The trap: leaves of two axes are its matrices, which in a stack are the vectors of all blocks."""
    trees = random_trees("vit")
    stacked = separate(run(MUON(), trees))
    apart = run(MUON(), [separate(tree) for tree in trees])
    wrong = {name for name in differ(stacked, apart) if name.startswith("blocks.0.")}
    assert {"blocks.0.attention.qkv.weight", "blocks.0.attention.qkv.bias"} <= wrong


def named_matrices(model: PyTree) -> list[tuple[str, Any]]:
    numbers = muon_dimension_numbers(model)
    nodes = jax.tree_util.tree_leaves_with_path(numbers, is_leaf=lambda node: hasattr(node, "reduction_axis"))
    return [(path_name(path), node) for path, node in nodes]


def test_muon_takes_convolutions_but_for_grouped_ones() -> None:
    between = {name for name, _ in named_matrices(abstract("nest")) if "blocks" not in name}
    assert between == {"stages.1.aggregation.conv.weight"}
    assert dict(named_matrices(abstract("nest")))["stages.1.aggregation.conv.weight"] == ((-3, -2, -1), -4)
    grouped = {"pools.0.conv", "stages.0.position_encoding", "stages.0.peg"}
    for name in ("pit", "twins_svt", "region_vit"):
        found = {path for path, _ in named_matrices(abstract(name))}
        assert found
        assert not {path for path in found if path.removesuffix(".weight") in grouped or "head" in path}


def test_muon_finds_the_matrices_of_exchanged_parts() -> None:
    """A user's module in the stack, of Equinox's own layers."""

    class Gate(eqx.Module):
        linear: eqx.nn.Linear
        mix: eqx.nn.Conv1d
        gain: Array

        def __call__(self, tokens: Array, *, key: Array | None = None) -> Array:
            return self.mix(jax.vmap(self.linear)(tokens).T).T * self.gain

    def make(key: Array) -> Gate:
        return Gate(eqx.nn.Linear(16, 16, key=key), eqx.nn.Conv1d(16, 16, 1, key=key), jnp.ones((4, 4)))

    gates = eqx.filter_eval_shape(eqx.filter_vmap(make), jax.random.split(KEY, 2))
    model = eqx.tree_at(lambda model: model.blocks.block.attention, abstract("vit"), gates)
    found = dict(named_matrices(model))
    assert found["blocks.block.attention.mix.weight"].reduction_axis == (-2, -1)
    assert found["blocks.block.attention.linear.weight"].output_axis == -2
    assert "blocks.block.attention.gain" not in found
    assert layer_numbers(model).blocks.block.attention.gain.shape == (2, 1, 1)


WHOLE_ARRAY: dict[str, Callable[[], optax.GradientTransformation]] = {
    "lamb": lambda: optax.lamb(optax.linear_schedule(1.0, 0.5, 2), weight_decay=0.1, mask=decay_mask),
    "lars": lambda: optax.lars(1.0, weight_decay=0.1, weight_decay_mask=decay_mask, trust_ratio_mask=decay_mask),
    "adafactor": lambda: optax.adafactor(1.0, min_dim_size_to_factor=4),
}


@pytest.mark.parametrize(
    ("name", "optimiser"), [*(("vit", each) for each in WHOLE_ARRAY), ("parallel_vit", "lamb"), ("crossformer", "lamb")]
)
def test_per_layer_is_exact(name: str, optimiser: str) -> None:
    trees, make = random_trees(name), WHOLE_ARRAY[optimiser]
    apart = run(make(), [separate(tree) for tree in trees])
    assert_equal(separate(run(per_layer(make()), trees)), apart)
    if name == "vit":  # as it is, it takes the blocks for one
        wrong = differ(separate(run(make(), trees)), apart)
        assert {"blocks.0.attention.qkv.weight", "blocks.1.attention.qkv.weight"} <= wrong
        assert not {one for one in wrong if not one.startswith("blocks")}


def test_per_layer_runs_muon_too() -> None:
    trees = random_trees("vit")
    muon = MUON(muon_weight_dimension_numbers=muon_dimension_numbers)
    assert_equal(run(per_layer(muon), trees), run(muon, trees))


def test_all_of_it_under_jit_for_a_model_with_batch_norm() -> None:
    """Under multi_transform, with frozen parts, in a chain; nothing is embedding."""
    model, *_ = random_trees("levit")
    transforms: dict[str, Any] = {name: per_layer(optax.lamb(0.1)) for name in ("embedding", "blocks", "head")}
    labels = functools.partial(layer_labels, frozen=["stages.0"])
    optimiser = optax.chain(
        optax.multi_transform({**transforms, "frozen": optax.set_to_zero()}, labels), scale_by_layer(0.75)
    )

    @eqx.filter_jit
    def step(model: AnyModel) -> AnyModel:
        parameters = trainable(model)
        updates, _ = optimiser.update(jax.tree.map(jnp.ones_like, parameters), optimiser.init(parameters), parameters)
        return eqx.apply_updates(model, updates)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        after = named(trainable(step(model)))
    moved = {name for name, leaf in named(trainable(model)).items() if (leaf != after[name]).any()}
    assert moved == {name for name in after if not name.startswith("stages.0")}
    assert {name.split(".")[0] for name in moved} == {"stages", "downsamples", "head"}


def test_the_snippets_of_the_docs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On shapes alone, which `create` would fill with numbers: optax asks for no more until it computes."""
    monkeypatch.setattr(eqx_vit, "create", lambda name, *, key, **changes: eqx_vit.create_abstract(name, **changes))
    blocks = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, names)
            optimiser, parameters = names["optimiser"], trainable(names["model"])
            updates, _ = jax.eval_shape(
                optimiser.update, parameters, jax.eval_shape(optimiser.init, parameters), parameters
            )
            assert updates == parameters
