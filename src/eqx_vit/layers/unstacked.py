"""The blocks of a stack as separate modules: for low latency, where a loop would copy each block's weights first."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from eqx_vit.layers.config import no_type_check
from eqx_vit.layers.keys import split_or_none
from eqx_vit.layers.sharding import gather, keep_whole
from eqx_vit.layers.stack import Stack, put_own, take_own

Block = TypeVar("Block", bound=Callable[..., Any])
Tree = TypeVar("Tree")
Result = TypeVar("Result")


class Unstacked(eqx.Module, Generic[Block]):
    """A `Stack` whose blocks have arrays of their own. Called, sliced and given keys as the stack is, with its numbers.

    A state made for the stack fits: BatchNorm's statistics, which are small, stay stacked.
    """

    blocks: tuple[Block, ...]
    unroll: int = eqx.field(static=True)  # of the stack, for the way back
    remat: bool = eqx.field(static=True)
    places: range = eqx.field(static=True, repr=False)

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> "Unstacked[Block]": ...
    def __getitem__(self, index: int | slice) -> "Block | Unstacked[Block]":
        if isinstance(index, slice):
            return Unstacked(self.blocks[index], self.unroll, self.remat, self.places[index])
        return self.blocks[index]

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    def state_at(self, state: eqx.nn.State, index: int) -> eqx.nn.State:
        """The state of block `index` alone, to call `self[index]` with."""
        return _row(take_own(self.places, state.substate(self.blocks[0])), range(len(self))[index])

    def __call__(self, x: PyTree, *shared: Any, xs: tuple[Array, ...] = (), key: PRNGKeyArray | None = None) -> PyTree:
        """All blocks in turn. Each array in `xs` has a leading depth axis."""
        for index, (block, block_key) in enumerate(zip(self.blocks, split_or_none(key, len(self)), strict=True)):
            own = _row(take_own(self.places, xs), index)
            x = keep_whole(self._call(gather(block), (x, *shared, *own), block_key))
        return x

    def with_state(
        self,
        x: PyTree,
        state: eqx.nn.State,
        *shared: Any,
        xs: tuple[Array, ...] = (),
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree, eqx.nn.State]:
        """All blocks in turn, where `block(x, state, *shared, *own, key=key)` returns `(x, state)`."""
        whole, after = state.substate(self.blocks[0]), []
        for index, (block, block_key) in enumerate(zip(self.blocks, split_or_none(key, len(self)), strict=True)):
            state_before, own = _row(take_own(self.places, (whole, xs)), index)
            x, state_after = self._call(gather(block), (x, state_before, *shared, *own), block_key)
            x = keep_whole(x)
            after.append(state_after)
        return x, state.update(put_own(self.places, whole, jax.tree.map(_join, *after)))

    def side_by_side(self, x: PyTree, *shared: Any, key: PRNGKeyArray | None = None) -> PyTree:
        """What each block makes of the same `x`, with a leading depth axis."""
        keys = split_or_none(key, len(self))
        outputs = [block(x, *shared, key=block_key) for block, block_key in zip(self.blocks, keys, strict=True)]
        return jax.tree.map(_join, *outputs)

    def _call(self, block: Block, arguments: tuple[Any, ...], key: PRNGKeyArray | None) -> PyTree:
        return (_call_again if self.remat else _call_block)(block, arguments, key)


# Jitted at the module's level: all blocks of a stack are then traced once.
@eqx.filter_jit
@no_type_check
def _call_block(block: Callable[..., PyTree], arguments: tuple[Any, ...], key: PRNGKeyArray | None) -> PyTree:
    return block(*arguments, key=key)


_call_again = eqx.filter_checkpoint(_call_block)


def unstack(tree: Tree) -> Tree:
    """The tree with an `Unstacked` in place of each `Stack`, those inside blocks included."""

    def take_apart(node: PyTree) -> PyTree:
        if not isinstance(node, Stack):
            return node
        blocks = tuple(unstack(_row(node.block, index)) for index in range(node.depth))
        return Unstacked(blocks, node.unroll, node.remat, node.places)

    return jax.tree.map(take_apart, tree, is_leaf=lambda node: isinstance(node, Stack))


def restack(tree: Tree) -> Tree:
    """The inverse of `unstack`; a tree that has no `Unstacked` comes back as it is."""

    def put_together(node: PyTree) -> PyTree:
        if not isinstance(node, Unstacked):
            return node
        block = jax.tree.map(_join, *map(restack, node.blocks))
        return Stack(block, len(node), node.unroll, node.remat, node.places)

    return jax.tree.map(put_together, tree, is_leaf=_is_unstacked) if has_unstacked(tree) else tree


def has_unstacked(tree: PyTree) -> bool:
    """Whether some of its stacks are taken apart."""
    return any(map(_is_unstacked, jax.tree.leaves(tree, is_leaf=_is_unstacked)))


def on_stacked(function: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """`function(tree)`, of and as one whose stacks are whole, and taken apart again where they were."""
    return unstack(function(restack(tree))) if has_unstacked(tree) else function(tree)


def _is_unstacked(node: object) -> bool:
    return isinstance(node, Unstacked)


def _row(tree: Tree, index: int) -> Tree:
    """One block of a stack."""

    def take(leaf: PyTree) -> PyTree:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return leaf[index] if isinstance(leaf, jax.Array | np.ndarray) else leaf

    return jax.tree.map(take, tree)


def _join(first: PyTree, *rest: PyTree) -> PyTree:
    """Leaves of several blocks as that of a stack."""
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((1 + len(rest), *first.shape), first.dtype)
    if isinstance(first, np.ndarray):
        return np.stack([first, *rest])
    return jnp.stack([first, *rest]) if isinstance(first, jax.Array) else first
