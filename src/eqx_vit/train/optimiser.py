"""The optimiser of a run: AdamW, LAMB, SGD or Muon, a schedule, and rates of their own for layers, head, frozen parts.

It works on plain nested dicts of arrays, as `eqx_vit.transform` has them; what optax needs to know of the model behind
them (weight decay, layers, stacked depth) is `eqx_vit.optimisers`'.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from eqx_vit.create import make_skeleton
from eqx_vit.functional import flatten, unflatten
from eqx_vit.optimisers import layer_labels, muon_dimension_numbers, per_layer, scale_by_layer
from eqx_vit.parameters import decay_mask, trainable
from eqx_vit.paths import named_leaves, path_name, with_named_leaves
from eqx_vit.registry import AnyConfig, AnyModel
from eqx_vit.surgery import HEADS
from eqx_vit.train.settings import Settings

Scalar: TypeAlias = float | Float[Array, ""]


class Rates(NamedTuple):
    """What may differ between runs that are trained as one: numbers, or one of the tracers of a `jax.vmap`."""

    learning_rate: Scalar
    weight_decay: Scalar


def schedule(settings: Settings, steps: int) -> Callable[[ArrayLike], Array]:
    """The learning rate by step, as a fraction of its peak: a line up from 0, then cosine, steps or constant."""
    warmup = int(settings.warmup * steps)
    rest = max(1, steps - warmup)
    epoch = max(1, steps // settings.epochs)
    after = {
        "cosine": optax.cosine_decay_schedule(1.0, rest, alpha=settings.final_fraction),
        "constant": optax.constant_schedule(1.0),
        "step": lambda step: settings.decay_rate ** jnp.floor((step + warmup) / (epoch * settings.decay_epochs)),
    }[settings.schedule]
    joined = optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup]) if warmup else after
    # An int would not pass strict promotion.
    return lambda step: jnp.asarray(joined(jnp.asarray(step, dtype=jnp.float32)), dtype=jnp.float32)


def learning_rate(settings: Settings, steps: int) -> Callable[[ArrayLike], Array]:
    """The learning rate by step, for a run of so many."""
    fraction = schedule(settings, steps)
    return lambda step: settings.learning_rate * fraction(step)


def make_optimiser(
    config: AnyConfig, settings: Settings, steps: int, rates: Rates | None = None
) -> optax.GradientTransformation:
    """The optimiser of a run of so many steps, for the parameters of a config as `eqx_vit.transform` has them.

    Weight decay reaches the weights of linear maps and convolutions alone (`eqx_vit.decay_mask`). `rates` take the
    place of those in the settings.

    **Raises:** `ValueError` for parts to freeze that the model does not have.
    """
    rates = Rates(settings.learning_rate, settings.weight_decay) if rates is None else rates
    fraction = schedule(settings, steps)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic does not pass the strict one
        rule = _make_rule(settings, rates, lambda step: rates.learning_rate * fraction(step))
    parts = [rule]
    if settings.layer_decay < 1:
        parts.append(scale_by_layer(settings.layer_decay))
    if settings.head_learning_rate is not None:
        parts.append(_scale_head(settings.head_learning_rate / settings.learning_rate))
    if settings.clip_norm > 0:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    whole = optax.chain(*parts)
    if settings.freeze:
        model = trainable(make_skeleton(config)[0])
        labels = layer_labels(model, frozen=find_frozen(model, settings.freeze))
        names = {name for name, label in _named(labels).items() if label == "frozen"}
        whole = _without(whole, names)
    return _on_dicts(config, whole)


def find_frozen(model: AnyModel, freeze: tuple[str, ...]) -> tuple[str, ...]:
    """The paths of the parts to freeze: "backbone" stands for all parts but the heads."""
    parts = dict.fromkeys(name.split(".")[0] for name in named_leaves(model))
    backbone = [part for part in parts if part not in HEADS]
    return tuple(path for name in freeze for path in (backbone if name == "backbone" else [name]))


def _make_rule(settings: Settings, rates: Rates, rate: Callable[[ArrayLike], Array]) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(rates.weight_decay, mask=decay_mask)
    descend = optax.scale_by_learning_rate(rate)
    match settings.optimiser:
        case "adamw":
            return optax.chain(optax.scale_by_adam(), decay, descend)
        case "lamb":  # each block of a stack is a layer of its own
            trust = optax.chain(optax.scale_by_adam(eps=1e-6), decay, optax.scale_by_trust_ratio())
            return optax.chain(per_layer(trust), descend)
        case "sgd":
            return optax.chain(decay, optax.trace(settings.momentum, nesterov=True), descend)
        case "muon":  # its learning rate is Adam's for the parameters that are no matrices
            return optax.contrib.muon(
                rate,
                beta=settings.momentum,
                weight_decay=rates.weight_decay,
                weight_decay_mask=decay_mask,
                muon_weight_dimension_numbers=muon_dimension_numbers,
                consistent_rms=0.2,  # of AdamW's updates, so that one learning rate fits both
            )


def _scale_head(factor: float) -> optax.GradientTransformation:
    def scale(updates: PyTree, _: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, update: update * factor if path_name(path).split(".")[0] in HEADS else update, updates
        )

    return optax.stateless(scale)


def _without(inner: optax.GradientTransformation, frozen: set[str]) -> optax.GradientTransformation:
    """The transformation of all parameters but the frozen ones, which it neither sees nor changes."""

    def keep(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: None if path_name(path) in frozen else leaf, tree)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        kept, state = inner.update(keep(updates), state, keep(params))
        return eqx.combine(kept, jax.tree.map(jnp.zeros_like, updates)), state

    return optax.GradientTransformation(lambda params: inner.init(keep(params)), update)


def _on_dicts(config: AnyConfig, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation, of the model's PyTree, for nested dicts; its state is one flat dict, named for files."""
    skeleton = trainable(make_skeleton(config)[0])

    def to_model(params: PyTree) -> PyTree:
        return with_named_leaves(skeleton, flatten("params", params))

    @functools.cache
    def own_state() -> PyTree:
        return jax.eval_shape(inner.init, skeleton)

    def init(params: PyTree) -> dict[str, Array]:
        return _named(inner.init(to_model(params)))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        old = jax.tree_util.tree_map_with_path(lambda path, _: state[path_name(path)], own_state())
        changed, new = inner.update(to_model(updates), old, to_model(params))
        return unflatten(named_leaves(changed)), _named(new)

    return optax.GradientTransformation(init, update)


def _named(tree: PyTree) -> dict[str, PyTree]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
