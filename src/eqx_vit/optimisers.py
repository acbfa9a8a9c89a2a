"""What optax needs to know of a model whose depth is stacked: layers, frozen parts, and which axes are a matrix.

An optimiser that treats each number by itself (SGD, Adam, AdamW, Lion) works on stacked depth as it is. One that treats
an array as a whole (Muon, LAMB, LARS, Adafactor) takes all blocks for one: `muon_dimension_numbers` and `per_layer`
show it the blocks. docs/optimisers.md has the lines to write.

optax gets functions, `mask=decay_mask`: their results are modules of the model's class, which optax would call. It is
imported where it is used, since the models need no optimiser.
"""

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from eqx_vit.arguments import check_arguments
from eqx_vit.layers import Conv, Linear, PeriodicStack, PreNormBlock, Stack
from eqx_vit.layers.config import list_some, no_type_check, shorten
from eqx_vit.parameters import trainable
from eqx_vit.paths import Leaf, is_array, path_name

if TYPE_CHECKING:
    import optax

# Fields whose item i lies between stage i and stage i + 1, though they are declared after all stages.
BETWEEN_STAGES = ("mergings", "downsamples", "pools")


def layer_numbers(model: PyTree) -> PyTree:
    """The layer that each parameter belongs to: 0 for the embeddings, then each block, then the norm and the head.

    Fits `trainable(model)`: an int for an array, and for one of a `Stack` an array of ints (depth, 1, ..., 1) that
    broadcasts against it. As in BEiT (arXiv 2106.08254; `get_num_layer_for_vit` in the official `optim_factory.py`),
    for a ViT of `depth` blocks: tokens, positions and patch embedding are 0, block i is i + 1, norm and head depth + 1.

    A block is one of a `Stack` (of stacks in a stack, the outermost) or `PeriodicStack`, or a `PreNormBlock` by itself.
    Blocks count through the stages of a pyramid; what else is in a stage or leads to it (downsampling, positions) has
    the number of its first block, as in timm. Fields count in the order in which they are declared, but for `mergings`,
    `downsamples` and `pools`, whose item i leads to `stages[i + 1]`.

    **Raises:** `ValueError` for a model without such a block.
    """
    return _number_layers(trainable(model))[0]


@no_type_check
def scale_by_layer(decay: float = 0.75) -> "optax.GradientTransformation":
    """Layer-wise rates: each update times `decay ** (layers above)`, where 1 is for the norm and the head.

    To be chained after an optimiser: `optax.chain(optax.adamw(1e-3), scale_by_layer(0.75))`. The learning rate of a
    layer is then what timm's `layer_decay` and BEiT's `layer_decay` make it (arXiv 2106.08254, appendix), its weight
    decay included. The updates are those of `trainable(model)`; see `layer_numbers` for the layers.

    **Arguments:** `decay`: from 0 (only norm and head learn) to 1 (all alike).

    **Raises:** `ValueError` for another decay; when it runs, for updates without blocks.
    """
    import optax

    if not (isinstance(decay, int | float) and 0 <= decay <= 1):
        raise ValueError(f"scale_by_layer: decay must be a number from 0 to 1, given {shorten(decay)}")

    def scale(updates: PyTree, _: PyTree) -> PyTree:
        numbers, last = _number_layers(updates)
        return jax.tree.map(
            lambda update, number: update * jnp.asarray(decay ** (last - number), dtype=update.dtype), updates, numbers
        )

    return optax.stateless(scale)


@check_arguments
@no_type_check
def layer_labels(model: PyTree, frozen: str | Iterable[str] = ()) -> PyTree:
    """A label for each parameter, for `optax.multi_transform`: "embedding", "blocks", "head" or "frozen".

    Fits `trainable(model)`. "embedding" is layer 0 of `layer_numbers`, "head" the last one with the norm before it.
    There is no label for each block, since a label is for a whole array and the blocks of a stack share theirs: rates
    by depth are `scale_by_layer`'s.

    **Arguments:** `frozen`: paths of the parts whose label is "frozen", such as `["patch_embedding", "blocks"]`,
    written as in `eqx_vit.observe` or in a saved file.

    **Raises:** `ValueError` for a path where there are no parameters; for a model without blocks.
    """
    numbers, last = _number_layers(trainable(model))
    nodes, structure = jax.tree_util.tree_flatten_with_path(numbers)
    parts = [_plain_parts(path_name(path)) for path, _ in nodes]
    asked = {path: _plain_parts(path) for path in ([frozen] if isinstance(frozen, str) else frozen)}
    unknown = [path for path, own in asked.items() if not own or all(part[: len(own)] != own for part in parts)]
    if unknown:
        raise ValueError(
            f"layer_labels: no parameters at {list_some(unknown)}: they are in "
            f"{list_some(list(dict.fromkeys(part[0] for part in parts)))}, and what is inside these (the blocks of a "
            "stack share their arrays: the whole stack is frozen, or none of it)"
        )
    labels = [
        "frozen" if any(part[: len(own)] == own for own in asked.values()) else _label(number, last)
        for part, (_, number) in zip(parts, nodes, strict=True)
    ]
    return jax.tree.unflatten(structure, labels)


def muon_dimension_numbers(model: PyTree) -> PyTree:
    """Which axes of each parameter Muon takes for a matrix; None for the parameters that Adam trains.

    For `optax.contrib.muon(..., muon_weight_dimension_numbers=muon_dimension_numbers)`; fits `trainable(model)`.
    Matrices are the weights of linear maps (out, in) and ungrouped convolutions (out, in * height * width) in the
    blocks and between stages, each block's for itself. Adam takes what Muon's author leaves to it (Jordan,
    https://kellerjordan.github.io/posts/muon, 2024): embeddings and head, that is layer 0 and the last one of
    `layer_numbers`, and norms, biases, tokens, tables and factors; here grouped convolutions too, which are many small
    matrices. A fused projection of q, k and v is one matrix.

    **Raises:** `ValueError` for a model without blocks.
    """
    from optax.contrib import MuonDimensionNumbers

    parameters = trainable(model)
    numbers, last = _number_layers(parameters)

    def find(node: PyTree, number: PyTree) -> PyTree:
        nothing = jax.tree.map(lambda _: None, node)
        # optax asks once more with what Adam trains left out: then there are numbers, but no weight.
        is_hidden = _is_matrix(node) and is_array(node.weight) and _label(number.weight, last) == "blocks"
        if not is_hidden:
            return nothing
        # Counted from the end: the axes of depth are before them.
        inputs = 1 + _kernel_axes(node)
        axes = MuonDimensionNumbers(reduction_axis=tuple(range(-inputs, 0)), output_axis=-inputs - 1)
        return eqx.tree_at(lambda layer: layer.weight, nothing, axes, is_leaf=lambda leaf: leaf is None)

    return jax.tree.map(find, parameters, numbers, is_leaf=_is_matrix)


@no_type_check
def per_layer(transformation: "optax.GradientTransformation") -> "optax.GradientTransformation":
    """The transformation, run on each block of a stack by itself: what it would do were depth not stacked.

    For what treats an array as a whole: `per_layer(optax.lamb(1e-3))`, `optax.lars`, `optax.adafactor`, ... The blocks
    are a vmapped axis, of the parameters and of the optimiser's state. Parameters outside stacks are transformed as
    they are.

    It is exact for transformations that treat each array by itself. What joins several (`optax.clip_by_global_norm`),
    draws random numbers or counts layers (`scale_by_layer`) belongs outside, chained before or after. Masks are given
    as functions, such as `mask=decay_mask`: they are called with a part of the parameters at a time, None for the rest.

    **Arguments:** `transformation`: one of optax, without extra arguments to its update.
    """
    import optax

    def init(params: PyTree) -> tuple[PyTree, ...]:
        return tuple(_over_depth(transformation.init, depths)(own) for depths, own in _split_by_depth(params))

    def update(updates: PyTree, state: tuple[PyTree, ...], params: PyTree = None) -> tuple[PyTree, tuple[PyTree, ...]]:
        groups = _split_by_depth(updates)
        own_params = [None] * len(groups) if params is None else [own for _, own in _split_by_depth(params)]
        results = [
            _over_depth(transformation.update, depths)(own, own_state, own_param)
            for (depths, own), own_state, own_param in zip(groups, state, own_params, strict=True)
        ]
        nothing = jax.tree.map(lambda _: None, updates)
        return eqx.combine(nothing, *(own for own, _ in results)), tuple(own_state for _, own_state in results)

    return optax.GradientTransformation(init, cast("optax.TransformUpdateFn", update))


def _number_layers(parameters: PyTree) -> tuple[PyTree, int]:
    """`layer_numbers` of these parameters, and the number of the last layer."""
    nodes, structure = jax.tree_util.tree_flatten_with_path(parameters, is_leaf=_holds_blocks)
    firsts, blocks = dict[int, int](), 0  # by the place among the nodes, the number of the first block
    for place, (_, node) in enumerate(nodes):
        if _holds_blocks(node):
            firsts[place] = blocks + 1
            blocks += 1 if isinstance(node, PreNormBlock) else len(node)
    if not blocks:
        raise ValueError("layers are counted by blocks, and here are none: no Stack, PeriodicStack or PreNormBlock")
    stages = dict[str, int]()
    for place, first in firsts.items():
        stages.setdefault(_stage(nodes[place][0]), first)

    def number(place: int, path: jax.tree_util.KeyPath, node: PyTree) -> PyTree:
        if place in firsts:
            return _number_blocks(node, firsts[place])
        following = [first for own, first in firsts.items() if own > place]
        if len(following) == len(firsts):
            return 0
        return stages.get(_stage(path), following[0] if following else blocks + 1)

    numbers = [number(place, path, node) for place, (path, node) in enumerate(nodes)]
    return jax.tree.unflatten(structure, numbers), blocks + 1


def _number_blocks(node: PyTree, first: int) -> PyTree:
    """The layers of the parameters of one block or of a stack, whose first block is layer `first`."""
    if isinstance(node, Stack):
        return jax.tree.map(lambda leaf: _spread(range(first, first + node.depth), leaf), node)
    if isinstance(node, PeriodicStack):
        rest = first + len(node) - len(node.rest)

        def number(path: jax.tree_util.KeyPath, leaf: Leaf) -> int | np.ndarray:
            if path[0].name == "rest":
                return rest + path[1].idx
            return _spread(range(first + path[3].idx, rest, node.period), leaf)  # of periods.block.blocks[idx]

        return jax.tree_util.tree_map_with_path(number, node)
    return jax.tree.map(lambda _: first, node)


def _spread(numbers: range, leaf: Leaf) -> np.ndarray:
    """The numbers along the first axis of an array, of as many axes."""
    return np.array(numbers).reshape(-1, *[1] * (leaf.ndim - 1))


def _holds_blocks(node: object) -> bool:
    return isinstance(node, Stack | PeriodicStack | PreNormBlock)


@no_type_check
def _stage(path: jax.tree_util.KeyPath) -> str:
    """The path up to the first item of a tuple, such as `stages.1`: what else is under it is of the same stage."""
    for end, key in enumerate(path):
        if isinstance(key, jax.tree_util.SequenceKey):
            before = path_name(path[:end])
            return f"stages.{key.idx + 1}" if before in BETWEEN_STAGES else f"{before}.{key.idx}"
    return path_name(path)


def _label(number: int | np.ndarray, last: int) -> str:
    if isinstance(number, int) and number in (0, last):
        return "head" if number else "embedding"
    return "blocks"


def _plain_parts(name: str) -> tuple[str, ...]:
    """A path in parts, without the `block` between a stack and what is in it: `observe` leaves it out, files do not."""
    return tuple(part for part in name.split(".") if part != "block")


def _is_matrix(node: object) -> bool:
    """Whether the module's weight is one matrix (a block's, where depth is stacked)."""
    return isinstance(node, Linear | eqx.nn.Linear) or (isinstance(node, Conv | eqx.nn.Conv) and node.groups == 1)


def _kernel_axes(node: PyTree) -> int:
    if isinstance(node, eqx.nn.Conv):
        return node.num_spatial_dims
    return 2 if isinstance(node, Conv) else 0


def _depths(tree: PyTree, outer: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """For each leaf the depths of the stacks that it is in, the outermost first: its leading axes."""
    found = list[tuple[int, ...]]()
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Stack)):
        found += _depths(node.block, (*outer, node.depth)) if isinstance(node, Stack) else [outer]
    return found


def _split_by_depth(tree: PyTree) -> list[tuple[tuple[int, ...], PyTree]]:
    """The tree once for each of its `_depths`, None in place of the leaves of another."""
    leaves, structure = jax.tree.flatten(tree)
    depths = _depths(tree)

    def pick(group: tuple[int, ...]) -> PyTree:
        return jax.tree.unflatten(
            structure, [leaf if own == group else None for leaf, own in zip(leaves, depths, strict=True)]
        )

    return [(group, pick(group)) for group in sorted(set(depths))]


def _over_depth(function: Callable[..., PyTree], depths: tuple[int, ...]) -> Callable[..., PyTree]:
    """The function, mapped over as many leading axes as there are depths."""
    return functools.reduce(lambda mapped, _: jax.vmap(mapped), depths, function)
