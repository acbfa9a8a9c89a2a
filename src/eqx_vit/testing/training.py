"""Contracts of training: dropout, gradients, jit, weight decay."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, PRNGKeyArray

from eqx_vit.forward import forward
from eqx_vit.layers import dropout_active
from eqx_vit.layers.config import Size, list_some, no_type_check
from eqx_vit.parameters import decay_mask, trainable
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.registry import AnyConfig, AnyModel
from eqx_vit.testing.subject import contract, randomise

RATE = 0.2


@no_type_check
def check_dropout(config: AnyConfig, image_size: Size | None = None) -> None:
    """Each rate of the config makes the model random in training: it then needs a key, and says so without one.

    A rate that acts only beside others, or only in some depth, is set with them; a config without rates has nothing to
    check.
    """
    with contract(config, image_size, "live dropout has to need a key, and a ValueError to name it") as subject:
        if not config.rates():
            return
        model, state = subject.abstract(0.5)
        subject.expect(dropout_active(model), f"{', '.join(config.rates())} of 0.5 make no Dropout or DropPath active")
        try:
            eqx.filter_eval_shape(forward, model, state, subject.images(2))
        except ValueError as error:
            subject.expect("key" in str(error), f"it says: {str(error)[:200]}")
        else:
            subject.expect(False, "no key is asked for")


@no_type_check
def check_differentiable(config: AnyConfig, image_size: Size | None = None) -> None:
    """With live dropout and BatchNorm the logits of a batch can be differentiated by every parameter; traced only."""
    with contract(config, image_size, "a batch with live dropout has to be differentiable by the model") as subject:
        images = subject.images(2)

        @eqx.filter_grad
        def gradients(model: AnyModel, state: State) -> Array:
            return jnp.sum(forward(model, state, images, jax.random.key(1))[0])

        model, state = subject.abstract(RATE)
        found = named_leaves(eqx.filter_eval_shape(gradients, model, state))
        missing = [name for name in named_leaves(trainable(model)) if name not in found]
        subject.expect(not missing, f"{list_some(missing)} has no gradient")


@no_type_check
def check_weight_decay(config: AnyConfig, image_size: Size | None = None) -> None:
    """`decay_mask` fits the parameters, and marks weights of linear maps and convolutions alone."""
    with contract(config, image_size, "weight decay has to reach weights alone, of maps that are no norm") as subject:
        parameters = trainable(subject.abstract()[0])
        mask = decay_mask(parameters)
        subject.expect(jax.tree.structure(mask) == jax.tree.structure(parameters), "the mask does not fit")
        decayed = named_leaves(jax.tree.map(lambda leaf, marked: leaf if marked else None, parameters, mask))
        wrong = [name for name in decayed if not _is_weight(name)]
        subject.expect(len(decayed) > 0, "it reaches nothing: use eqx_vit.layers.Linear and Conv, or Equinox's")
        subject.expect(not wrong, f"it reaches {list_some(wrong)}")


def _is_weight(name: str) -> bool:
    *parents, last = name.split(".")
    return last == "weight" and "norm" not in (parents or [""])[-1]


@no_type_check
def check_gradients(config: AnyConfig, image_size: Size | None = None) -> None:
    """Once every parameter is random, so that no zero hides another, each receives a finite gradient."""
    with contract(config, image_size, "every parameter has to receive a gradient") as subject:
        model, state = randomise(config)
        images = subject.images()
        logits = eqx.filter_eval_shape(forward, model, state, images)[0]
        cotangent = jnp.asarray(np.random.default_rng(5).standard_normal(logits.shape), dtype=logits.dtype)

        @eqx.filter_jit
        @eqx.filter_grad
        def gradients(model: AnyModel, state: State) -> Array:
            return jnp.sum(forward(model, state, images)[0] * cotangent)

        found = jax.tree.map(np.asarray, named_leaves(trainable(gradients(model, state))))
        dead = [name for name, array in found.items() if not np.any(array)]
        subject.expect(not dead, f"{list_some(dead)} gets none")
        infinite = [name for name, array in found.items() if not np.all(np.isfinite(array))]
        subject.expect(not infinite, f"{list_some(infinite)} gets one that is infinite or NaN")


@no_type_check
def check_training(config: AnyConfig, image_size: Size | None = None) -> None:
    """Steps of training under jit are traced once, and are repeatable by their key.

    What a step returns, model and state, goes into the next without another trace; the same key gives the same logits,
    another key others where dropout is live; all numbers are finite, and BatchNorm's statistics move.
    """
    with contract(config, image_size, "steps of training have to be finite, repeatable, and traced once") as subject:
        model, state = randomise(config, RATE)
        images, traces = subject.images(2), list[None]()

        @eqx.filter_jit
        def step(model: AnyModel, state: State, key: PRNGKeyArray) -> tuple[Array, AnyModel, State]:
            traces.append(None)

            def loss(model: AnyModel) -> tuple[Array, tuple[Array, State]]:
                logits, after = forward(model, state, images, key)
                return jnp.sum(jnp.square(logits - 1)), (logits, after)

            gradients, (logits, after) = eqx.filter_grad(loss, has_aux=True)(model)
            updates = jax.tree.map(lambda gradient: -1e-3 * gradient, trainable(gradients))
            return logits, eqx.apply_updates(model, updates), after

        logits, updated, after = step(model, state, jax.random.key(1))
        again, _, _ = step(model, after, jax.random.key(1))
        other, _, _ = step(model, after, jax.random.key(2))
        step(updated, after, jax.random.key(2))
        subject.expect(len(traces) == 1, f"what one step returns makes the next trace again: {len(traces)} traces")
        results = named_leaves({"logits": logits, "model": updated, "state": after})
        infinite = [name for name, leaf in results.items() if not np.all(np.isfinite(np.asarray(leaf)))]
        subject.expect(not infinite, f"{list_some(infinite)} is infinite or NaN")
        subject.expect(np.array_equal(logits, again), "the same key gives other logits")
        if dropout_active(model):
            subject.expect(not np.array_equal(logits, other), "another key gives the same logits, with dropout live")
        means = {name: leaf for name, leaf in named_statistics(model, after).items() if name.endswith("running_mean")}
        still = [name for name, leaf in means.items() if not np.any(np.asarray(leaf))]
        subject.expect(not still, f"{list_some(still)} does not move")
