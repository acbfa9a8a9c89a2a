"""Loading and saving by name: the rules of an architecture applied to a model, all or nothing.

The foreign shapes that a model needs are found by saving: a rule's save direction, run on an array of the model's shape
that takes no memory (all its strides are 0), gives the shapes that loading expects.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import PRNGKeyArray
from numpy.typing import ArrayLike

from eqx_vit.arguments import check_arguments
from eqx_vit.create import make_skeleton
from eqx_vit.files import is_finite
from eqx_vit.layers import check_key
from eqx_vit.layers.config import Size, list_some, no_type_check
from eqx_vit.paths import Leaf, named_leaves, named_statistics, with_named_leaves, with_named_statistics
from eqx_vit.registry import AnyModel
from eqx_vit.surgery import HEADS, Model, find_exchanged_arrays, rebuild, replace_head
from eqx_vit.weights.checkpoints import find_regrouping
from eqx_vit.weights.names import (
    canonical_name,
    find_frequent_prefix,
    find_prefix,
    find_renames,
    known_names,
    name_map,
    unwrapped_name,
)
from eqx_vit.weights.resizing import resize_from
from eqx_vit.weights.rules import Constant, Rule


@check_arguments
@no_type_check
def load_state_dict(
    model: Model,
    state: State,
    state_dict: Mapping[str, ArrayLike],
    *,
    source: str,
    skip: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    num_classes: int | None = None,
    image_size: Size | None = None,
    channels: int | None = None,
    key: PRNGKeyArray | None = None,
    allow_nonfinite: bool = False,
) -> tuple[Model, State]:
    """The model and state with the arrays of a foreign checkpoint, in the dtypes of the model.

    The model is that of the checkpoint; the three requests say what comes out instead. Without them nothing is
    adapted, and every array must fit.

    **Arguments:**

    - `source` names the layout: `"timm"`, `"official"` (the paper's repository), `"hf"` (transformers) or `"flax"`.
        Older spellings of its names are known too. `module.` and `_orig_mod.` before a name do not count, nor does what
        stands before all of them, such as `model.` or `encoder.backbone.`.
    - `skip`: patterns of foreign names to ignore. `allow_missing`: patterns of foreign names that may be missing.
    - `num_classes`: a checkpoint's head for another number of classes is left out. The head is then the model's own if
        it has that many classes, else a fresh one, which needs `key`.
    - `image_size`: the model is resized after loading, its position tables by the rule of the source.
    - `channels`: the kernels that read the image, made for RGB, are summed for 1 channel, and for other numbers
        repeated and scaled by 3 / channels, as timm does it.
    - `allow_nonfinite` takes weights that are infinite or NaN.

    **Raises:** `ValueError` with the missing, unexpected and mis-shaped names; for a request that cannot be met; for a
    model that the source's code cannot have, or with arrays that no map names, as a part of your own may have. Nothing
    has changed then.
    """
    _check_stock_arrays(model, state)
    given, problems = _canonicalise(model, source, state_dict, skip)
    if num_classes is not None and num_classes != model.config.num_classes:
        model = replace_head(model, num_classes, key=check_key(key))
    if channels is not None and channels != model.config.channels:
        model, given, refused = _change_channels(model, state, given, source, channels)
        problems += refused
    leaves = _all_leaves(model, state)
    entries = name_map(model.config, source)
    rules, constants = _select(entries, leaves, source)
    known = known_names([*rules, *constants])
    if num_classes is not None:
        known |= known_names(entry for entry in entries if _is_head(entry))
        rules = _without_misfitting_head(rules, leaves, given)
    loaded: dict[str, np.ndarray] = {}
    for rule in rules:
        mismatches = _find_mismatches(rule, leaves, given)
        problems += [text for name, text in mismatches.items() if name in given or not _matches(name, allow_missing)]
        if not mismatches:
            loaded[rule.ours] = rule.load(given)
            infinite = [] if allow_nonfinite else [name for name in rule.names if not is_finite(given[name])]
            problems += [f"{name} has infinite or NaN weights (allow_nonfinite=True takes them)" for name in infinite]
    problems += [f"unexpected {name}" for name in given if name not in known]
    if problems:
        problems = [*_prefix_hint(model, source, given), *dict.fromkeys(problems)]
        report = list_some(problems, "\n  ", most=50)  # a list to be read: names that differ tell what was given
        raise ValueError(f"the {source} weights do not fit this {type(model).__name__}:\n  {report}")
    model, state = _assign(model, state, leaves, loaded)
    return (model if image_size is None else resize_from(model, image_size, source)), state


@check_arguments
@no_type_check
def to_state_dict(model: AnyModel, state: State, target: str) -> dict[str, np.ndarray]:
    """The arrays of the model under the names and in the layout of `target`, as `load_state_dict` takes them.

    **Raises:** `ValueError` for a model that the target's code cannot have, or with arrays that it has no names for.
    """
    _check_stock_arrays(model, state)
    leaves = _all_leaves(model, state)
    rules, constants = _select(name_map(model.config, target), leaves, target)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values()):
        raise ValueError("to_state_dict takes a model with values, not the shapes of eqx_vit.create_abstract")
    result: dict[str, np.ndarray] = {}
    for rule in rules:
        result |= rule.save(np.asarray(leaves[rule.ours]))
    result |= {item.name: item.value for item in constants if item.value is not None}
    return find_regrouping(model.config, target).save(model.config, result)


def _all_leaves(model: AnyModel, state: State) -> dict[str, Leaf]:
    return named_leaves(model) | named_statistics(model, state)


def _check_stock_arrays(model: AnyModel, state: State) -> None:
    """Raise `ValueError` for arrays that are not those of the model's config, since no map knows them."""
    exchanged = find_exchanged_arrays(model, state, allow_missing=True)
    if exchanged:
        raise ValueError(
            f"this {type(model).__name__} has parts that its config does not make, and no name map knows these arrays: "
            f"{list_some(exchanged)}; load or save the original model, and exchange its parts afterwards"
        )


def _canonicalise(
    model: AnyModel, source: str, state_dict: Mapping[str, object], skip: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The checkpoint's arrays under the names that the maps use, and what is wrong with those names."""
    given: dict[str, np.ndarray] = {}
    problems = []
    state_dict = {name: array for name, array in state_dict.items() if not _matches(name, skip)}
    prefix, renames = find_prefix(model.config, source, state_dict), find_renames(model.config, source)
    for name, array in state_dict.items():
        own = unwrapped_name(name[len(prefix) :])
        canonical = None if _matches(own, skip) else canonical_name(renames, own)
        if canonical in given:
            problems.append(f"{name} is given twice, as {canonical} too")
        elif canonical is not None:
            given[canonical] = np.asarray(array)
    return find_regrouping(model.config, source).load(model.config, given), problems


def _prefix_hint(model: AnyModel, source: str, given: Collection[str]) -> list[str]:
    """What to do where the weights are a part of what was given."""
    prefix = find_frequent_prefix(model.config, source, given)
    if not prefix:
        return []
    stripped = f"{{name.removeprefix({prefix!r}): array for name, array in weights.items()}}"
    way = f"give {stripped}, and skip= for what is not of this model"
    return [f"its names have {prefix!r} before them, but not all that was given: {way}"]


def _change_channels(
    model: Model, state: State, given: Mapping[str, np.ndarray], source: str, channels: int
) -> tuple[Model, dict[str, np.ndarray], list[str]]:
    """The model for another number of channels, the checkpoint's arrays adapted to it, and what could not be adapted.

    The axis of the channels is the one in which the foreign shapes of the two models differ.
    """
    config = dataclasses.replace(model.config, channels=channels)
    old, new = _all_leaves(model, state), _all_leaves(*make_skeleton(config))
    changed = {name: jnp.zeros(new[name].shape, old[name].dtype) for name in new if new[name].shape != old[name].shape}
    old_rules, _ = _select(name_map(model.config, source), old, source)
    new_rules, _ = _select(name_map(config, source), new, source)
    before = {name: shape for rule in old_rules for name, shape in _foreign_shapes(rule, old).items()}
    adapted, problems = dict(given), []
    for rule in new_rules:
        for name, shape in _foreign_shapes(rule, new).items():
            if name not in given:
                if rule.ours in changed:  # zeros must not survive
                    problems.append(f"missing {name}")
            elif given[name].shape == before[name] != shape:
                axes = [axis for axis, length in enumerate(shape) if length != before[name][axis]]
                if len(axes) == 1 and before[name][axes[0]] == 3 and shape[axes[0]] == channels:
                    adapted[name] = _adapt_channels(given[name], axes[0], channels)
                else:
                    problems.append(f"{name} reads the channels in a way that no rule adapts: keep the config's number")
    return rebuild(model, config, changed), adapted, problems


def _adapt_channels(array: np.ndarray, axis: int, channels: int) -> np.ndarray:
    """timm's rule for kernels made for RGB."""
    array = array.astype(np.float32)
    if channels == 1:
        return array.sum(axis, keepdims=True)
    repeated = np.concatenate([array] * math.ceil(channels / 3), axis)
    return np.take(repeated, np.arange(channels), axis) * np.float32(3 / channels)


def _select(
    entries: Iterable[Rule | Constant], leaves: Mapping[str, Leaf], source: str
) -> tuple[list[Rule], list[Constant]]:
    """The rules and constants for what this model has: others, such as those of an absent bias or head, are skipped.

    **Raises:** `ValueError` for an array of the model without a rule: a layout need not have all that a config can say.
    """
    selected = [entry for entry in entries if entry.beside is None or entry.beside in leaves]
    rules = [entry for entry in selected if isinstance(entry, Rule)]
    unnamed = sorted(leaves.keys() - {rule.ours for rule in rules})
    if unnamed:
        raise ValueError(
            f"the {source} layout has no names for these arrays of the model: {list_some(unnamed)}; use another layout"
        )
    return rules, [entry for entry in selected if isinstance(entry, Constant)]


def _without_misfitting_head(
    rules: list[Rule], leaves: Mapping[str, Leaf], given: Mapping[str, np.ndarray]
) -> list[Rule]:
    """The rules, without the head's if the checkpoint has none that fits: then the model keeps its own."""
    heads = [rule for rule in rules if _is_head(rule)]
    if not any(_find_mismatches(rule, leaves, given) for rule in heads):
        return rules
    return [rule for rule in rules if not _is_head(rule)]


def _find_mismatches(rule: Rule, leaves: Mapping[str, Leaf], given: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What is wrong with each foreign array that a rule needs."""
    problems = {}
    for name, shape in _foreign_shapes(rule, leaves).items():
        if name not in given:
            problems[name] = f"missing {name}"
        elif given[name].shape != shape:
            problems[name] = f"{name} has shape {given[name].shape}, the model needs {shape}"
        elif not jnp.issubdtype(given[name].dtype, jnp.floating):
            problems[name] = f"{name} has dtype {given[name].dtype}, which is not a floating-point type"
    return problems


def _foreign_shapes(rule: Rule, leaves: Mapping[str, Leaf]) -> dict[str, tuple[int, ...]]:
    """The shape that each foreign array of a rule must have."""
    blank = np.broadcast_to(np.zeros((), dtype=np.float32), leaves[rule.ours].shape)
    return {name: array.shape for name, array in rule.save(blank).items()}


def _is_head(entry: Rule | Constant) -> bool:
    return entry.beside is not None and entry.beside.split(".")[0] in HEADS


def _assign(
    model: Model, state: State, leaves: Mapping[str, Leaf], loaded: Mapping[str, np.ndarray]
) -> tuple[Model, State]:
    """The model and state with the loaded arrays in place of their own, in the dtypes of those."""
    arrays = {name: jnp.asarray(array, dtype=leaves[name].dtype) for name, array in loaded.items()}
    own = named_leaves(model)
    model = with_named_leaves(model, {name: array for name, array in arrays.items() if name in own})
    return model, with_named_statistics(model, state, {name: a for name, a in arrays.items() if name not in own})


@no_type_check
def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
