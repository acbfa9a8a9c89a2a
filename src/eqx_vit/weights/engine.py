"""Loading and saving by name: the rules of an architecture applied to a model, all or nothing."""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_vit.paths import named_leaves, named_statistics, with_named_leaves, with_named_statistics
from eqx_vit.surface import rebuilt, replace_head
from eqx_vit.weights.names import name_map, today
from eqx_vit.weights.resizing import resized
from eqx_vit.weights.rules import Constant, Rule


def load_state_dict(
    model: Any,
    state: eqx.nn.State,
    state_dict: Mapping[str, Any],
    *,
    source: str,
    skip: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    key: Any = None,
) -> tuple[Any, eqx.nn.State]:
    """The model and state with the arrays of a foreign checkpoint, in the dtypes of the model.

    The model is that of the checkpoint; the three requests say what comes out instead. Without them nothing is
    adapted, and every array must fit.

    **Arguments:**

    - `source` names the layout: `"timm"`, `"official"` (the paper's repository), `"hf"` (transformers) or `"flax"`.
        Older spellings of its names are known too.
    - `skip`: patterns of foreign names to ignore. `allow_missing`: patterns of foreign names that may lack.
    - `num_classes`: a checkpoint's head for another number of classes is left out. The head is then the model's own if
        it has that many classes, else a fresh one, which needs `key`.
    - `image_size`: the model is resized after loading, its position tables by the rule of the source.
    - `channels`: the kernels that read the image, made for RGB, are summed for 1 channel, and for other numbers
        repeated and scaled by 3 / channels, as timm does it.

    **Raises:** `ValueError` with every missing, unexpected and mis-shaped name, or for a request that cannot be met;
    nothing has changed then.
    """
    given, problems = _given(model, source, state_dict, skip)
    if num_classes is not None and num_classes != model.config.num_classes:
        model = replace_head(model, num_classes, key=key)
    if channels is not None and channels != model.config.channels:
        model, given, refused = _with_channels(model, state, given, source, channels)
        problems += refused
    leaves = _leaves(model, state)
    rules, constants = _rules(model, leaves, source)
    known = {name for rule in rules for name in _names(rule)} | {item.name for item in constants}
    if num_classes is not None:
        for entry in name_map(model.config, source):
            if _is_head(entry):
                known |= set(_names(entry)) if isinstance(entry, Rule) else {entry.name}
        if any(_misfits(rule, leaves, given) for rule in rules if _is_head(rule)):
            rules = [rule for rule in rules if not _is_head(rule)]
    loaded: dict[str, np.ndarray] = {}
    for rule in rules:
        misfits = _misfits(rule, leaves, given)
        problems += [text for name, text in misfits.items() if name in given or not _matches(name, allow_missing)]
        if not misfits:
            loaded[rule.ours] = rule.load(given)
    problems += [f"unexpected {name}" for name in given if name not in known]
    if problems:
        report = "\n  ".join(dict.fromkeys(problems))
        raise ValueError(f"the {source} weights do not fit this {type(model).__name__}:\n  {report}")
    model, state = _replaced(model, state, leaves, loaded)
    return (model if image_size is None else resized(model, image_size, source)), state


def to_state_dict(model: Any, state: eqx.nn.State, target: str) -> dict[str, np.ndarray]:
    """The arrays of the model under the names and in the layout of `target`, as `load_state_dict` takes them."""
    leaves = _leaves(model, state)
    rules, constants = _rules(model, leaves, target)
    result: dict[str, np.ndarray] = {}
    for rule in rules:
        result |= rule.save(np.asarray(leaves[rule.ours]))
    return result | {item.name: item.value for item in constants if item.saved}


def _leaves(model: Any, state: eqx.nn.State) -> dict[str, Any]:
    return named_leaves(model) | named_statistics(model, state)


def _given(
    model: Any, source: str, state_dict: Mapping[str, Any], skip: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The checkpoint's arrays under the names that the maps speak of, and what is wrong with those names."""
    given: dict[str, np.ndarray] = {}
    problems = []
    for name, array in state_dict.items():
        spelled = None if _matches(name, skip) else today(model.config, source, name)
        if spelled in given:
            problems.append(f"{name} is given twice, as {spelled} too")
        elif spelled is not None:
            given[spelled] = np.asarray(array)
    return given, problems


def _with_channels(
    model: Any, state: eqx.nn.State, given: Mapping[str, np.ndarray], source: str, channels: int
) -> tuple[Any, dict[str, np.ndarray], list[str]]:
    """The model for another number of channels, and the checkpoint's arrays with theirs adapted.

    The axis of the channels is the one in which the foreign shapes of the two models differ.
    """
    config = dataclasses.replace(model.config, channels=channels)
    fresh, fresh_state = eqx.filter_eval_shape(eqx.nn.make_with_state(type(model)), config, key=jax.random.key(0))
    old, new = _leaves(model, state), _leaves(fresh, fresh_state)
    changed = {name: jnp.zeros(new[name].shape, old[name].dtype) for name in new if new[name].shape != old[name].shape}
    before, after = _foreign_shapes(model, old, source), _foreign_shapes(fresh, new, source)
    adapted, problems = dict(given), []
    for name, shape in after.items():
        if name in given and given[name].shape == before[name] != shape:
            axes = [axis for axis, length in enumerate(shape) if length != before[name][axis]]
            if len(axes) == 1 and before[name][axes[0]] == 3 and shape[axes[0]] == channels:
                adapted[name] = _adapted(given[name], axes[0], channels)
            else:
                problems.append(f"{name} reads the channels in a way that no rule adapts: load with the config's own")
    for rule in _rules(fresh, new, source)[0]:
        if rule.ours in changed:  # zeros must not survive
            problems += [f"missing {name}" for name in _names(rule) if name not in given]
    return rebuilt(model, config, changed), adapted, problems


def _adapted(array: np.ndarray, axis: int, channels: int) -> np.ndarray:
    """timm's rule for kernels made for RGB."""
    array = array.astype(np.float32)
    if channels == 1:
        return array.sum(axis, keepdims=True)
    repeated = np.concatenate([array] * math.ceil(channels / 3), axis)
    return np.take(repeated, np.arange(channels), axis) * np.float32(3 / channels)


def _foreign_shapes(model: Any, leaves: Mapping[str, Any], source: str) -> dict[str, tuple[int, ...]]:
    rules, _ = _rules(model, leaves, source)
    return {name: shape for rule in rules for name, shape in _shapes(rule, leaves).items()}


def _rules(model: Any, leaves: Mapping[str, Any], source: str) -> tuple[list[Rule], list[Constant]]:
    """The rules for what this model has: others, such as those of an absent bias or head, are skipped."""
    entries = name_map(model.config, source)
    rules = [entry for entry in entries if isinstance(entry, Rule) and entry.ours in leaves]
    unmapped = sorted(set(leaves) - {rule.ours for rule in rules})
    assert not unmapped, f"the {source} name map of {type(model).__name__} lacks {unmapped}"
    constants = [entry for entry in entries if isinstance(entry, Constant)]
    return rules, [item for item in constants if item.beside is None or item.beside in leaves]


def _misfits(rule: Rule, leaves: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What is wrong with each foreign array that a rule needs."""
    problems = {}
    for name, shape in _shapes(rule, leaves).items():
        if name not in given:
            problems[name] = f"missing {name}"
        elif given[name].shape != shape:
            problems[name] = f"{name} has shape {given[name].shape}, the model needs {shape}"
        elif not jnp.issubdtype(given[name].dtype, jnp.floating):
            problems[name] = f"{name} has dtype {given[name].dtype}, which is no floating-point type"
    return problems


def _shapes(rule: Rule, leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each foreign array of a rule, in the order of its names."""
    saved = rule.save(_blank(leaves[rule.ours]))
    return {name: saved[name].shape for name in _names(rule)}


def _names(rule: Rule) -> list[str]:
    return [name for block in rule.theirs for name in block]


def _is_head(entry: Rule | Constant) -> bool:
    ours = entry.ours if isinstance(entry, Rule) else entry.beside
    return ours is not None and ours.split(".")[0] in ("head", "head_dist")


def _replaced(
    model: Any, state: eqx.nn.State, leaves: Mapping[str, Any], loaded: Mapping[str, np.ndarray]
) -> tuple[Any, eqx.nn.State]:
    arrays = {name: jnp.asarray(array, dtype=leaves[name].dtype) for name, array in loaded.items()}
    own = named_leaves(model)
    model = with_named_leaves(model, {name: array for name, array in arrays.items() if name in own})
    return model, with_named_statistics(model, state, {name: a for name, a in arrays.items() if name not in own})


def _blank(leaf: Any) -> np.ndarray:
    """An array of the leaf's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype=np.float32), leaf.shape)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
