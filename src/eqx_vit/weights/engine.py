"""Loading and saving by name: the rules of an architecture applied to a model, all or nothing."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from eqx_vit.paths import named_leaves, named_statistics, with_named_leaves, with_named_statistics
from eqx_vit.weights.names import name_map
from eqx_vit.weights.rules import Constant, Rule


def load_state_dict(
    model: eqx.Module,
    state: eqx.nn.State,
    state_dict: Mapping[str, Any],
    *,
    source: str,
    skip: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
) -> tuple[eqx.Module, eqx.nn.State]:
    """The model and state with the arrays of a foreign checkpoint, in the dtypes of the model.

    **Arguments:** `source` names the layout: `"timm"`, `"official"` (the paper's repository), `"hf"` (transformers) or
    `"flax"`; `skip` are patterns of foreign names to ignore, `allow_missing` patterns of foreign names that may lack.

    **Raises:** `ValueError` with every missing, unexpected and mis-shaped name; nothing has changed then.
    """
    leaves = _leaves(model, state)
    rules, constants = _rules(model, leaves, source)
    given = {name: np.asarray(array) for name, array in state_dict.items() if not _matches(name, skip)}
    loaded: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for rule in rules:
        names = [name for block in rule.theirs for name in block]
        missing = [name for name in names if name not in given]
        if missing:
            problems += [f"missing {name}" for name in missing if not _matches(name, allow_missing)]
            continue
        shapes = {name: array.shape for name, array in rule.save(_blank(leaves[rule.ours])).items()}
        wrong = [name for name in names if given[name].shape != shapes[name]]
        problems += [f"{name} has shape {given[name].shape}, the model needs {shapes[name]}" for name in wrong]
        if not wrong:
            loaded[rule.ours] = rule.load(given)
    known = {name for rule in rules for block in rule.theirs for name in block} | {item.name for item in constants}
    problems += [f"unexpected {name}" for name in given if name not in known]
    if problems:
        raise ValueError(f"the {source} weights do not fit this {type(model).__name__}:\n  " + "\n  ".join(problems))
    return _replaced(model, state, leaves, loaded)


def to_state_dict(model: eqx.Module, state: eqx.nn.State, target: str) -> dict[str, np.ndarray]:
    """The arrays of the model under the names and in the layout of `target`, as `load_state_dict` takes them."""
    leaves = _leaves(model, state)
    rules, constants = _rules(model, leaves, target)
    result: dict[str, np.ndarray] = {}
    for rule in rules:
        result |= rule.save(np.asarray(leaves[rule.ours]))
    return result | {item.name: item.value for item in constants if item.saved}


def _leaves(model: eqx.Module, state: eqx.nn.State) -> dict[str, Any]:
    return named_leaves(model) | named_statistics(model, state)


def _rules(model: Any, leaves: Mapping[str, Any], source: str) -> tuple[list[Rule], list[Constant]]:
    """The rules for what this model has: others, such as those of an absent bias or head, are skipped."""
    entries = name_map(model.config, source)
    rules = [entry for entry in entries if isinstance(entry, Rule) and entry.ours in leaves]
    unmapped = sorted(set(leaves) - {rule.ours for rule in rules})
    assert not unmapped, f"the {source} name map of {type(model).__name__} lacks {unmapped}"
    constants = [entry for entry in entries if isinstance(entry, Constant)]
    return rules, [item for item in constants if item.beside is None or item.beside in leaves]


def _replaced(
    model: eqx.Module, state: eqx.nn.State, leaves: Mapping[str, Any], loaded: Mapping[str, np.ndarray]
) -> tuple[eqx.Module, eqx.nn.State]:
    arrays = {name: jnp.asarray(array, dtype=leaves[name].dtype) for name, array in loaded.items()}
    own = named_leaves(model)
    model = with_named_leaves(model, {name: array for name, array in arrays.items() if name in own})
    return model, with_named_statistics(model, state, {name: a for name, a in arrays.items() if name not in own})


def _blank(leaf: Any) -> np.ndarray:
    """An array of the leaf's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype=np.float32), leaf.shape)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
