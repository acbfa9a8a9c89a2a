"""What each architecture says of its checkpoints, in its own file beside this one."""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from eqx_vit.layers import resize_grid
from eqx_vit.layers.config import Size, check
from eqx_vit.registry import AnyConfig, find_architecture
from eqx_vit.weights.rules import Constant, KeyRenames, Rule

NameMap = Callable[[Any], list[Rule | Constant]]
ResizeRule = Callable[
    [Float[Array, "rows columns dim"], tuple[int, int]],
    Float[Array, "new_rows new_columns dim"],
]

resize_grid_bicubic: ResizeRule = functools.partial(resize_grid, antialias=False)

# Where a checkpoint may differ from the preset that it is one of, besides in rates.
ADAPTABLE_FIELDS = ("num_classes", "num_distill_classes", "image_size", "channels")


Arrays = Mapping[str, np.ndarray]


class Regrouping(NamedTuple):
    """What no rule can say of single arrays, `load(config, arrays)` before the rules and `save(config, arrays)` after.

    For a source that has in one array what is several here in parts, or adds two of them.
    """

    load: Callable[[Any, Arrays], dict[str, np.ndarray]]
    save: Callable[[Any, Arrays], dict[str, np.ndarray]]


_AS_THEY_ARE = Regrouping(load=lambda config, arrays: dict(arrays), save=lambda config, arrays: dict(arrays))


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """All that is known of an architecture's checkpoints, by source: `"timm"`, `"official"`, `"hf"`, `"flax"`.

    **Attributes:**

    - `names`: from a config to the rules of its arrays' names.
    - `renames`: older spellings of those names.
    - `resize`: how a position map becomes one of another (rows, columns), where it is not the model's own way.
    - `regroup`: how a source divides arrays otherwise than the rules do.
    - `describe`: the `config.json` of a config for transformers; None where transformers has no such model.
    - `read`: the fields of a config that such a file gives, where they are not those that all have.
    """

    names: Mapping[str, NameMap]
    renames: Mapping[str, KeyRenames] = field(default_factory=dict)
    resize: Mapping[str, ResizeRule] = field(default_factory=dict)
    regroup: Mapping[str, Regrouping] = field(default_factory=dict)
    describe: Callable[[Any], dict[str, object]] | None = None
    read: Callable[[Mapping[str, Any]], dict[str, object]] = lambda described: {}


def find_checkpoints(config: AnyConfig) -> Checkpoints:
    """What the architecture of a config says of its checkpoints.

    **Raises:** `ValueError` for one that was registered without.
    """
    row = find_architecture(config)
    if isinstance(row.checkpoints, Checkpoints):
        return row.checkpoints
    if not isinstance(row.checkpoints, str):
        raise ValueError(
            f"architecture {row.name!r} was registered without checkpoints, which say how its arrays are called "
            "elsewhere: eqx_vit.save and load need none"
        )
    module, _, name = row.checkpoints.partition(":")
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, Checkpoints) else found(config)


def find_regrouping(config: AnyConfig, source: str) -> Regrouping:
    """How a source divides the arrays of a config's model."""
    return find_checkpoints(config).regroup.get(source, _AS_THEY_ARE)


def find_differences(config: AnyConfig, other: AnyConfig) -> list[str]:
    """The fields in which two configs make different models for the same images and classes."""
    if type(config) is not type(other):
        return ["the architecture"]
    names = [entry.name for entry in fields(config) if entry.name not in ADAPTABLE_FIELDS and "drop" not in entry.name]
    return [name for name in names if getattr(config, name) != getattr(other, name)]


def check_held(code: str, config: AnyConfig, held: Mapping[str, object]) -> None:
    """Raise `ValueError` for the fields of a config in which its model is none that a source's code can make.

    **Arguments:** `held` has the values that these fields have in all models of that code.
    """
    different = [name for name, value in held.items() if getattr(config, name) != value]
    check(not different, f"{code} cannot have this model's {', '.join(different)}: use another layout")


def check_head_dim(code: str, dim: int, heads: int, dim_head: int | None, name: str = "dim_head") -> None:
    """Raise `ValueError` for heads of another width than dim // heads, the only one in most codes."""
    check(
        dim_head is None or dim_head * heads == dim,
        f"{code} has heads of dim // heads = {dim // heads}, this model's {name} is {dim_head}: use another layout",
    )


def find_image_size(config: AnyConfig) -> Size | None:
    """The image size that a config gives; None for models of any size, whose configs do not have one."""
    return getattr(config, "image_size", None)
