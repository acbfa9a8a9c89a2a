"""The vocabulary of the name maps: which foreign arrays make one of ours, and how they are laid out.

A map is a list of rules, plain data that reads in both directions. Layouts are einops patterns, written as
"theirs -> ours"; the way back swaps the two sides.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from einops import rearrange


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One array of ours, and the foreign arrays that it is made of.

    `theirs` holds, for each block of the stacks that hold ours (a single one where there is none), the names of its
    parts: several where ours is a merger, and then the pattern's first axis on the left counts them, unless `joined`
    gives their lengths along the last axis, on which they are then put end to end. `depths` are the depths of those
    stacks, the outermost first. `order` permutes the rows: row i of ours is row `order[i]` of what the pattern gives.
    The last `spare` rows of theirs are read by nobody: dropped when loading, zeros when saving.
    """

    ours: str
    theirs: tuple[tuple[str, ...], ...]
    depths: tuple[int, ...] = ()
    pattern: str | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    joined: tuple[int, ...] = ()
    order: tuple[int, ...] | None = None
    spare: int = 0

    def load(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Ours from theirs."""
        blocks = [self._load_block([arrays[name] for name in names]) for names in self.theirs]
        return np.stack(blocks).reshape(*self.depths, *blocks[0].shape)

    def save(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Theirs from ours."""
        blocks = array.reshape(len(self.theirs), *array.shape[len(self.depths) :])
        return {
            name: part
            for names, block in zip(self.theirs, blocks, strict=True)
            for name, part in zip(names, self._save_block(block, len(names)), strict=True)
        }

    def _load_block(self, parts: list[np.ndarray]) -> np.ndarray:
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1) if self.joined else np.stack(parts)
        array = array if self.pattern is None else rearrange(array, self.pattern, **self.axes)
        array = array[: len(array) - self.spare] if self.spare else array
        return array if self.order is None else array[np.asarray(self.order)]

    def _save_block(self, array: np.ndarray, parts: int) -> list[np.ndarray]:
        array = array if self.order is None else array[np.argsort(self.order)]
        array = (
            np.concatenate([array, np.zeros_like(array, shape=(self.spare, *array.shape[1:]))]) if self.spare else array
        )
        if self.pattern is not None:
            left, right = self.pattern.split("->")
            array = rearrange(array, f"{right}->{left}", **self.axes)
        if self.joined:
            return np.split(array, np.cumsum(self.joined)[:-1], axis=-1)
        return [array] if parts == 1 else list(array)


@dataclass(frozen=True)
class Constant:
    """A foreign array that the library computes itself: ignored when loading, written when saving (if `saved`).

    `beside` names an array of ours that it belongs to: a model without that array does not know it either.
    """

    name: str
    value: Any
    saved: bool = True
    beside: str | None = None


# Older spellings of a source's names: a regular expression and what takes its place, None for what is to be left out.
# They are tried in order, each on what the one before it gave.
Spellings = Sequence[tuple[str, str | Callable[[re.Match[str]], str] | None]]


def same(ours: str, theirs: str) -> Rule:
    """The array as it is."""
    return Rule(ours=ours, theirs=((theirs,),))


def rearranged(
    ours: str,
    theirs: str | Sequence[str],
    pattern: str | None = None,
    axes: Mapping[str, int] | None = None,
    order: Sequence[int] | None = None,
    spare: int = 0,
    joined: tuple[int, ...] = (),
) -> Rule:
    """An array laid out differently, or (several names) a merger: the pattern's first axis counts the parts, or they
    are `joined`, see `Rule`."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    rows = None if order is None else tuple(int(row) for row in order)
    return Rule(ours=ours, theirs=(names,), pattern=pattern, axes=axes or {}, joined=joined, order=rows, spare=spare)


def affine(ours: str, theirs: str) -> list[Rule | Constant]:
    """`weight` and `bias` of a linear map, a convolution, a LayerNorm (rules for absent arrays are skipped)."""
    return [same(f"{ours}.{name}", f"{theirs}.{name}") for name in ("weight", "bias")]


def patch_embedding(ours: str, theirs: str, patch_size: tuple[int, int]) -> list[Rule | Constant]:
    """A convolution whose kernel is its stride, held here as a linear map of flattened patches."""
    axes = {"height": patch_size[0], "width": patch_size[1]}
    pattern = "out channels height width -> out (height width channels)"
    return [
        rearranged(f"{ours}.linear.weight", f"{theirs}.weight", pattern, axes),
        same(f"{ours}.linear.bias", f"{theirs}.bias"),
    ]


def batch_norm(ours: str, theirs: str, order: Sequence[int] | None = None) -> list[Rule | Constant]:
    """BatchNorm with its running statistics; PyTorch's step counter is not kept."""
    names = ("weight", "bias", "running_mean", "running_var")
    rules = [rearranged(f"{ours}.{name}", f"{theirs}.{name}", order=order) for name in names]
    steps = Constant(f"{theirs}.num_batches_tracked", np.array(0, dtype=np.int64), beside=f"{ours}.weight")
    return [*rules, steps]


def inside(ours: str, theirs: str, rules: Iterable[Rule | Constant]) -> list[Rule | Constant]:
    """The rules of a submodule, with both sides' prefixes (given with their dots) put before the names."""
    return [_prefixed(rule, ours, theirs) for rule in rules]


def stack(ours: str, prefixes: Sequence[str], rules: Iterable[Rule | Constant]) -> list[Rule | Constant]:
    """The rules of one block, for a `Stack` called `ours` whose i-th block has the foreign prefix `prefixes[i]`."""
    result: list[Rule | Constant] = []
    for rule in rules:
        each = [_prefixed(rule, f"{ours}.block.", prefix) for prefix in prefixes]
        if isinstance(rule, Constant):
            result += each
        else:
            names = tuple(names for copy in each if isinstance(copy, Rule) for names in copy.theirs)
            depths = (len(prefixes), *rule.depths)
            result.append(replace(rule, ours=f"{ours}.block.{rule.ours}", theirs=names, depths=depths))
    return result


def _prefixed(rule: Rule | Constant, ours: str, theirs: str) -> Rule | Constant:
    if isinstance(rule, Constant):
        return replace(rule, name=theirs + rule.name, beside=None if rule.beside is None else ours + rule.beside)
    names = tuple(tuple(theirs + name for name in block) for block in rule.theirs)
    return replace(rule, ours=ours + rule.ours, theirs=names)
