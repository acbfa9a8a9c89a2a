"""What name maps are made of: rules that say which foreign arrays make one of ours, and how they are laid out.

"Ours" is what this library has, "theirs" what a checkpoint has. A map is a list of rules, plain data that reads in both
directions. Layouts are einops patterns, written as "theirs -> ours"; the way back swaps the two sides.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from einops import rearrange


class Join(NamedTuple):
    """How the foreign arrays that make one of ours become a single array, and back."""

    load: Callable[[list[np.ndarray]], np.ndarray]
    save: Callable[[np.ndarray], list[np.ndarray]]


_ALONE = Join(load=lambda parts: parts[0], save=lambda array: [array])
_STACKED = Join(load=np.stack, save=list)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One array of ours, and the foreign arrays that it is made of.

    **Attributes:**

    - `theirs`: for each block of the stacks that hold ours (a single one where there is none), the names of its parts.
    - `depths`: the depths of those stacks, the outermost first.
    - `pattern`, `axes`: for einops. Where there are several parts, the pattern's first axis on the left counts them.
    - `join`: instead of that axis, another way to join the parts, before the pattern is applied.
    - `order` permutes the rows: row i of ours is row `order[i]` of what the pattern gives.
    """

    ours: str
    theirs: tuple[tuple[str, ...], ...]
    depths: tuple[int, ...] = ()
    pattern: str | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    join: Join | None = None
    order: tuple[int, ...] | None = None

    @property
    def names(self) -> list[str]:
        """All foreign names."""
        return [name for block in self.theirs for name in block]

    @property
    def beside(self) -> str | None:
        """The array of ours without which the rule does not apply."""
        return self.ours

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
            for name, part in zip(names, self._save_block(block), strict=True)
        }

    def _load_block(self, parts: list[np.ndarray]) -> np.ndarray:
        array = self._join.load(parts)
        array = array if self.pattern is None else rearrange(array, self.pattern, **self.axes)
        return array if self.order is None else array[np.asarray(self.order)]

    def _save_block(self, array: np.ndarray) -> list[np.ndarray]:
        array = array if self.order is None else array[np.argsort(self.order)]
        if self.pattern is not None:
            left, right = self.pattern.split("->")
            array = rearrange(array, f"{right}->{left}", **self.axes)
        return self._join.save(array)

    @property
    def _join(self) -> Join:
        return self.join or (_ALONE if len(self.theirs[0]) == 1 else _STACKED)


@dataclass(frozen=True)
class Constant:
    """A foreign array that the library computes itself: ignored when loading, written when saving if it has a value.

    `beside` names an array of ours that it belongs to: a model without that array does not know it either.
    """

    name: str
    value: np.ndarray | None = None
    beside: str | None = None

    @property
    def names(self) -> list[str]:
        """All foreign names."""
        return [self.name]


# Older spellings of a source's names: a regular expression and what takes its place, None for what is to be left out.
# They are tried in order, each on what the one before it gave.
KeyRenames = Sequence[tuple[str, str | Callable[[re.Match[str]], str] | None]]


def copy(ours: str, theirs: str) -> Rule:
    """The array as it is."""
    return Rule(ours=ours, theirs=((theirs,),))


def relayout(
    ours: str,
    theirs: str | Sequence[str],
    pattern: str | None = None,
    axes: Mapping[str, int] | None = None,
    order: Sequence[int] | None = None,
    join: Join | None = None,
) -> Rule:
    """An array laid out differently, or (several names) made of several: see `Rule`."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    rows = None if order is None else tuple(int(row) for row in order)
    return Rule(ours=ours, theirs=(names,), pattern=pattern, axes=axes or {}, join=join, order=rows)


def weight_and_bias(ours: str, theirs: str) -> list[Rule | Constant]:
    """`weight` and `bias` of a linear map, a convolution, a LayerNorm (rules for absent arrays are skipped)."""
    return [copy(f"{ours}.{name}", f"{theirs}.{name}") for name in ("weight", "bias")]


def token(ours: str, theirs: str) -> Rule:
    """Tokens or a position table, in theirs behind an axis of length 1."""
    return relayout(ours, theirs, "one tokens dim -> (one tokens) dim", {"one": 1})


def fuse(ours: str, theirs: Sequence[str]) -> list[Rule | Constant]:
    """`weight` and `bias` of linear maps that are one in ours, their rows one after the other."""
    parts = {"parts": len(theirs)}
    return [
        relayout(f"{ours}.weight", [f"{name}.weight" for name in theirs], "parts out dim -> (parts out) dim", parts),
        relayout(f"{ours}.bias", [f"{name}.bias" for name in theirs], "parts out -> (parts out)", parts),
    ]


def timm_block() -> list[Rule | Constant]:
    """A pre-norm block under the names that timm and most official codes share."""
    return [
        *weight_and_bias("norm1", "norm1"),
        *weight_and_bias("attention.qkv", "attn.qkv"),
        *weight_and_bias("attention.projection.linear", "attn.proj"),
        *weight_and_bias("norm2", "norm2"),
        *weight_and_bias("mlp.fc1", "mlp.fc1"),
        *weight_and_bias("mlp.fc2", "mlp.fc2"),
    ]


def patch_embedding(ours: str, theirs: str, patch_size: tuple[int, int]) -> list[Rule | Constant]:
    """A convolution whose kernel is its stride, held here as a linear map of flattened patches."""
    axes = {"height": patch_size[0], "width": patch_size[1]}
    pattern = "out channels height width -> out (height width channels)"
    return [
        relayout(f"{ours}.linear.weight", f"{theirs}.weight", pattern, axes),
        copy(f"{ours}.linear.bias", f"{theirs}.bias"),
    ]


def batch_norm(ours: str, theirs: str, order: Sequence[int] | None = None) -> list[Rule | Constant]:
    """BatchNorm with its running statistics; PyTorch's step counter is not kept."""
    names = ("weight", "bias", "running_mean", "running_var")
    rules = [relayout(f"{ours}.{name}", f"{theirs}.{name}", order=order) for name in names]
    steps = Constant(f"{theirs}.num_batches_tracked", np.array(0, dtype=np.int64), beside=f"{ours}.weight")
    return [*rules, steps]


def with_prefix(ours: str, theirs: str, rules: Iterable[Rule | Constant]) -> list[Rule | Constant]:
    """The rules of a submodule, with both sides' prefixes (given with their dots) put before the names."""
    return [_add_prefixes(rule, ours, theirs) for rule in rules]


def stack(ours: str, prefixes: Sequence[str], rules: Iterable[Rule | Constant]) -> list[Rule | Constant]:
    """The rules of one block, for a `Stack` called `ours` whose i-th block has the foreign prefix `prefixes[i]`."""
    result: list[Rule | Constant] = []
    for rule in rules:
        each = [_add_prefixes(rule, f"{ours}.block.", prefix) for prefix in prefixes]
        if isinstance(rule, Constant):
            result += each
        else:
            names = tuple(names for one in each if isinstance(one, Rule) for names in one.theirs)
            depths = (len(prefixes), *rule.depths)
            result.append(replace(rule, ours=f"{ours}.block.{rule.ours}", theirs=names, depths=depths))
    return result


def periodic_stack(
    ours: str, prefixes: Sequence[str], period: int, count: int, rules: Iterable[Rule | Constant]
) -> list[Rule | Constant]:
    """The rules of one block, for a `PeriodicStack` called `ours` with `count` whole periods."""
    rules, stacked, result = list(rules), period * count, []
    for index in range(period if count else 0):
        inner = with_prefix(f"blocks.{index}.", "", rules)
        result += stack(f"{ours}.periods", prefixes[index:stacked:period], inner)
    for index, prefix in enumerate(prefixes[stacked:]):
        result += with_prefix(f"{ours}.rest.{index}.", prefix, rules)
    return result


def _add_prefixes(rule: Rule | Constant, ours: str, theirs: str) -> Rule | Constant:
    if isinstance(rule, Constant):
        return replace(rule, name=theirs + rule.name, beside=None if rule.beside is None else ours + rule.beside)
    names = tuple(tuple(theirs + name for name in block) for block in rule.theirs)
    return replace(rule, ours=ours + rule.ours, theirs=names)
