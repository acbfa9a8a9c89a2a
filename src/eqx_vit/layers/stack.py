"""A depth of equal blocks, stored stacked and run by one `lax.scan`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from eqx_vit.layers.recompute import lean


class Stack(eqx.Module):
    """`depth` blocks of equal structure: one block, whose arrays carry a leading depth axis.

    A stack compiles in the time of one block. A block is called as `block(x, *shared, *scanned, key=key)` and returns
    the next `x`, of the same structure and shapes; `shared` goes to every block, of `scanned` each gets its own slice.
    `unroll` blocks run per loop step (True: all). `remat=True` saves memory: the backward pass computes each block
    again. Neither changes the parameters. Made by `Stack.build` or `Stack.from_blocks`.
    """

    block: Any
    depth: int = eqx.field(static=True)
    unroll: int | bool = eqx.field(static=True, default=1)
    remat: bool = eqx.field(static=True, default=False)

    @staticmethod
    def build(make: Callable[[PRNGKeyArray], Any], depth: int, *, key: PRNGKeyArray) -> "Stack":
        """`depth` blocks, each made from a key of its own."""
        return Stack(eqx.filter_vmap(make)(jax.random.split(key, depth)), depth)

    @staticmethod
    def from_blocks(blocks: Sequence[eqx.Module]) -> "Stack":
        """The stack of stateless blocks made elsewhere.

        **Raises:** `ValueError` where there is none, or where one differs from the first in structure or shapes.
        """
        if not blocks:
            raise ValueError("Stack.from_blocks needs at least one block, given none")
        parts = [eqx.partition(block, eqx.is_array) for block in blocks]
        first_shapes = jax.tree.map(jnp.shape, parts[0][0])
        for index, (arrays, static) in enumerate(parts):
            if not (eqx.tree_equal(static, parts[0][1]) and jax.tree.map(jnp.shape, arrays) == first_shapes):
                raise ValueError(f"Stack.from_blocks needs equal blocks: block {index} differs from block 0")
        arrays = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts))
        return Stack(eqx.combine(arrays, parts[0][1]), len(parts))

    def __len__(self) -> int:
        return self.depth

    def __getitem__(self, index: int | slice) -> Any:
        """A block, or for a slice the stack of several."""
        if isinstance(index, slice):
            depth = len(range(self.depth)[index])
            return Stack(_slice(self.block, index), depth, self.unroll, self.remat)
        return _slice(self.block, range(self.depth)[index])

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(self.depth))

    def state_at(self, state: eqx.nn.State, index: int) -> eqx.nn.State:
        """The state of block `index` alone, to call `stack[index]` with."""
        return _slice(state.substate(self.block), range(self.depth)[index])

    def __call__(
        self, x: PyTree, *shared: Any, scanned: tuple[Any, ...] = (), key: PRNGKeyArray | None = None
    ) -> PyTree:
        """All blocks in turn. Each array in `scanned` has a leading depth axis."""
        x, _ = self._run(x, None, shared, scanned, key)
        return x

    def with_state(
        self,
        x: PyTree,
        state: eqx.nn.State,
        *shared: Any,
        scanned: tuple[Any, ...] = (),
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree, eqx.nn.State]:
        """All blocks in turn, where `block(x, state, *shared, *scanned, key=key)` returns `(x, state)`."""
        x, substate = self._run(x, state.substate(self.block), shared, scanned, key)
        return x, state.update(substate)

    def summed(self, x: PyTree, *shared: Any, key: PRNGKeyArray | None = None) -> PyTree:
        """All blocks side by side, each given the same `x` and a key of its own, and their results added."""
        arrays, static = eqx.partition(self.block, eqx.is_array)
        keys = None if key is None else jax.random.split(key, self.depth)
        results = jax.vmap(lambda arrays, key: eqx.combine(arrays, static)(x, *shared, key=key))(arrays, keys)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), results)

    def _run(
        self,
        x: PyTree,
        state: eqx.nn.State | None,
        shared: tuple[Any, ...],
        scanned: tuple[Any, ...],
        key: PRNGKeyArray | None,
    ) -> tuple[PyTree, PyTree]:
        arrays, static = eqx.partition(self.block, eqx.is_array)
        keys = None if key is None else jax.random.split(key, self.depth)
        # As a number: 1 and True are equal, and what was compiled for one would serve the other.
        unroll = self.depth if self.unroll is True else max(int(self.unroll), 1)
        return _scan((arrays, state, scanned, keys), static, x, shared, self.depth, unroll, self.remat)


# At module level: a closure made afresh at each call would compile at each eager call.
@eqx.filter_jit
def _scan(
    per_block: PyTree, static: PyTree, x: PyTree, shared: PyTree, depth: int, unroll: int, remat: bool
) -> tuple[PyTree, PyTree]:
    def step(x: PyTree, per_block: PyTree) -> tuple[PyTree, PyTree]:
        arrays, state, scanned, key = per_block
        block = eqx.combine(arrays, static)
        if state is None:
            return block(x, *shared, *scanned, key=key), None
        return block(x, state, *shared, *scanned, key=key)

    if remat:
        step = eqx.filter_checkpoint(step)
    elif unroll < depth:  # only a loop copies what it keeps
        step = lean(step)
    return jax.lax.scan(step, x, per_block, length=depth, unroll=unroll)


def _slice(tree: PyTree, index: int | slice) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)
