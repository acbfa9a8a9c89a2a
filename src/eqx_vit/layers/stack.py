"""A depth of blocks, stored stacked and run by one `lax.scan`: equal ones, and such that alternate."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from eqx_vit.layers.config import no_type_check
from eqx_vit.layers.keys import split_or_none, stack_or_none
from eqx_vit.layers.remat import remat_except_saved
from eqx_vit.layers.sharding import gather, keep_whole

Block = TypeVar("Block", bound=Callable[..., Any])
Result = TypeVar("Result")


class Stack(eqx.Module, Generic[Block]):
    """`depth` blocks of equal structure: one block, whose arrays carry a leading depth axis.

    A stack compiles in the time of one block. A block is called as `block(x, *shared, *own, key=key)` and returns the
    next `x`, of the same structure and shapes; `shared` goes to every block, `own` are its slices of `xs`.
    `unroll` blocks run per loop step (True: all). `remat=True` saves memory: the backward pass computes each block
    again. Neither changes the parameters. Made by `Stack.build` or `Stack.from_blocks`.

    A slice of a stack knows the `places` of its blocks in the whole one. Put into the model instead of that, it takes
    from `xs` and from the state what belongs to them.
    """

    block: Block
    depth: int = eqx.field(static=True)
    unroll: int = eqx.field(static=True, default=1)
    remat: bool = eqx.field(static=True, default=False)
    places: range = eqx.field(static=True, default=range(0), repr=False)

    def __post_init__(self) -> None:
        # As a number: 1 and True are equal, and what was compiled for one would serve the other.
        self.unroll = self.depth if self.unroll is True else max(int(self.unroll), 1)
        if len(self.places) != self.depth:
            self.places = range(self.depth)

    @staticmethod
    def build(make: Callable[..., Block], depth: int, *, key: PRNGKeyArray) -> "Stack[Block]":
        """`depth` blocks `make(key=key)`, each from a key of its own."""
        return Stack(eqx.filter_vmap(lambda key: make(key=key))(jax.random.split(key, depth)), depth)

    @staticmethod
    def from_blocks(blocks: Sequence[Block]) -> "Stack[Block]":
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

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> "Stack[Block]": ...
    def __getitem__(self, index: int | slice) -> "Block | Stack[Block]":
        """A block, or for a slice the stack of several."""
        if isinstance(index, slice):
            places = self.places[index]
            return Stack(_slice(self.block, index), len(places), self.unroll, self.remat, places)
        return _slice(self.block, range(self.depth)[index])

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(self.depth))

    def state_at(self, state: eqx.nn.State, index: int) -> eqx.nn.State:
        """The state of block `index` alone, to call `stack[index]` with."""
        return _slice(take_own(self.places, state.substate(self.block)), range(self.depth)[index])

    # Jitted here: the body of a scan is a new closure at each call, and would compile at each eager one.
    @eqx.filter_jit
    def __call__(self, x: PyTree, *shared: Any, xs: tuple[Array, ...] = (), key: PRNGKeyArray | None = None) -> PyTree:
        """All blocks in turn. Each array in `xs` has a leading depth axis."""
        arrays, static = self._partition()

        def step(x: PyTree, per_block: PyTree) -> tuple[PyTree, None]:
            arrays, own, key = per_block
            return keep_whole(eqx.combine(gather(arrays), static)(x, *shared, *own, key=key)), None

        per_block = (arrays, take_own(self.places, xs), stack_or_none(key, self.depth))
        x, _ = jax.lax.scan(
            self._rematted(step), _vary_alike(x, shared), per_block, length=self.depth, unroll=self.unroll
        )
        return x

    @eqx.filter_jit
    def with_state(
        self,
        x: PyTree,
        state: eqx.nn.State,
        *shared: Any,
        xs: tuple[Array, ...] = (),
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree, eqx.nn.State]:
        """All blocks in turn, where `block(x, state, *shared, *own, key=key)` returns `(x, state)`."""
        arrays, static = self._partition()

        def step(x: PyTree, per_block: PyTree) -> tuple[PyTree, eqx.nn.State]:
            arrays, state, own, key = per_block
            x, state = eqx.combine(gather(arrays), static)(x, state, *shared, *own, key=key)
            return keep_whole(x), state

        whole = state.substate(self.block)
        per_block = (
            arrays, take_own(self.places, whole), take_own(self.places, xs), stack_or_none(key, self.depth)
        )  # fmt: skip
        x, own = jax.lax.scan(
            self._rematted(step), _vary_alike(x, shared), per_block, length=self.depth, unroll=self.unroll
        )
        return x, state.update(put_own(self.places, whole, own))

    def side_by_side(self, x: PyTree, *shared: Any, key: PRNGKeyArray | None = None) -> PyTree:
        """What each block makes of the same `x`, with a leading depth axis."""
        arrays, static = self._partition()

        def run(arrays: PyTree, key: PRNGKeyArray | None) -> PyTree:
            return eqx.combine(arrays, static)(x, *shared, key=key)

        return jax.vmap(run)(arrays, stack_or_none(key, self.depth))

    def _partition(self) -> tuple[PyTree, PyTree]:
        """The arrays of the blocks, and the rest."""
        arrays, static = eqx.partition(self.block, eqx.is_array)
        found = {leaf.shape[:1] for leaf in jax.tree.leaves(arrays)}
        if found - {(self.depth,)}:
            lengths = ", ".join(str(*shape) or "none" for shape in sorted(found))
            raise ValueError(
                f"this Stack has {self.depth} blocks, and arrays whose first axis, the depth, is {lengths}: change the "
                "number of blocks by a slice, stack[:n], or Stack.from_blocks, call an ensemble under eqx.filter_vmap"
            )
        return arrays, static

    def _rematted(self, step: Callable[..., Result]) -> Callable[..., Result]:
        if self.remat:
            return eqx.filter_checkpoint(step)
        # Only a loop copies what it keeps.
        return remat_except_saved(step) if self.unroll < self.depth else step


def take_own(places: range, tree: PyTree) -> PyTree:
    """What is of the blocks at these places, in arrays of their number or of that of the whole stack."""
    return jax.tree.map(lambda leaf: leaf if (rows := _rows_in(places, leaf)) is None else leaf[rows], tree)


def put_own(places: range, whole: PyTree, own: PyTree) -> PyTree:
    """`whole`, with what is of the blocks at these places replaced."""
    return jax.tree.map(
        lambda leaf, new: new if (rows := _rows_in(places, leaf)) is None else leaf.at[rows].set(new), whole, own
    )


def _rows_in(places: range, leaf: Array) -> slice | np.ndarray | None:
    """Where the blocks of a stack are in an array; None where it has no others."""
    depth = leaf.shape[0]
    if max(places, default=-1) < depth and places != range(depth):
        return slice(places.start, places.stop, places.step) if places.step > 0 else np.array(places)
    if depth != len(places):
        raise ValueError(
            f"this Stack has {len(places)} blocks, and what comes with them from the model (drop rates by depth, "
            f"BatchNorm statistics) is for {depth}: a longer stack needs a model made for that depth"
        )
    return None


def _vary_alike(x: PyTree, shared: PyTree) -> PyTree:
    """`x`, which varies over the devices of a `jax.shard_map` where `shared` does: what a scan starts with has to."""
    axes = frozenset[str]().union(*map(_varying_axes, jax.tree.leaves(eqx.filter((x, shared), eqx.is_array))))

    def vary(leaf: Array) -> Array:
        missing = tuple(axes - _varying_axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, x)


def _varying_axes(leaf: Array) -> frozenset[str]:
    return jax.typeof(leaf).manual_axis_type.varying


class Period(eqx.Module, Generic[Block]):
    """Blocks that follow each other, as one."""

    blocks: tuple[Block, ...]

    def __call__(self, x: PyTree, *own: Array, key: PRNGKeyArray | None = None) -> PyTree:
        """Each array of `own` has a leading axis, one element a block."""
        for index, (block, block_key) in enumerate(zip(self.blocks, split_or_none(key, len(self.blocks)), strict=True)):
            x = block(x, *(array[index] for array in own), key=block_key)
        return x


class PeriodicStack(eqx.Module, Generic[Block]):
    """Blocks that alternate: block `i` has the structure of block `i + period`. Made by `PeriodicStack.build`.

    One scan runs over whole periods; the rest follows, block by block. Called like a `Stack`, without shared arguments.
    """

    periods: Stack[Period[Block]] | None
    rest: tuple[Block, ...]
    period: int = eqx.field(static=True)

    @staticmethod
    def build(
        make: Callable[..., Block], depth: int, period: int, *, count: int | None = None, key: PRNGKeyArray
    ) -> "PeriodicStack[Block]":
        """`depth` blocks `make(index, key=key)`, each from a key of its own.

        `count` periods are stacked, by default as many as there are; fewer where a later one differs in structure.
        """
        count = depth // period if count is None else count
        periods_key, rest_key = jax.random.split(key)

        def make_blocks(indices: range, *, key: PRNGKeyArray) -> Period[Block]:
            keys = jax.random.split(key, len(indices))
            return Period(tuple(make(index, key=block_key) for index, block_key in zip(indices, keys, strict=True)))

        make_period = functools.partial(make_blocks, range(period))
        periods = Stack.build(make_period, count, key=periods_key) if count else None
        return PeriodicStack(periods, make_blocks(range(count * period, depth), key=rest_key).blocks, period)

    def __len__(self) -> int:
        return self.period * (0 if self.periods is None else len(self.periods)) + len(self.rest)

    @no_type_check
    def __getitem__(self, index: int) -> Block:
        if isinstance(index, slice):
            raise ValueError(
                "a PeriodicStack gives one block at a time, stack[i]: its blocks differ, and slices are not stacks"
            )
        index = range(len(self))[index]
        stacked = len(self) - len(self.rest)
        if self.periods is None or index >= stacked:
            return self.rest[index - stacked]
        return self.periods[index // self.period].blocks[index % self.period]

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))

    def __call__(self, x: PyTree, *, xs: tuple[Array, ...] = (), key: PRNGKeyArray | None = None) -> PyTree:
        """All blocks in turn. Each array in `xs` has a leading depth axis."""
        periods_key, rest_key = split_or_none(key)
        stacked = len(self) - len(self.rest)
        if self.periods is not None:
            own = tuple(array[:stacked].reshape(-1, self.period, *array.shape[1:]) for array in xs)
            x = self.periods(x, xs=own, key=periods_key)
        return Period(self.rest)(x, *(array[stacked:] for array in xs), key=rest_key) if self.rest else x


def _slice(tree: PyTree, index: int | slice) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)
