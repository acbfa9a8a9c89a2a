"""One training step and one evaluation step: the two compiled functions of a run.

They work on `eqx_vit.transform(config)`, plain nested dicts of arrays: cheap to pass, and named as files want them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

from eqx_vit.surface import Transformed, cast, transform
from eqx_vit.train.pixels import Moves, Pixels, identity_maps, prepare, random_maps
from eqx_vit.train.settings import Settings

Arrays = dict[str, Any]  # nested


class TrainState(NamedTuple):
    """All that changes during training.

    **Attributes:** `params, state` as `eqx_vit.transform` has them; `ema`, the running average of the parameters and
    of BatchNorm's statistics; `optimiser`, optax's state; `step`, how many are done; `loss, correct`, sums over the
    images of the epoch so far.
    """

    params: Arrays
    state: Arrays
    ema: Arrays
    optimiser: Any
    step: Int[Array, ""]
    loss: Float[Array, ""]
    correct: Int[Array, ""]


class Recipe(NamedTuple):
    """What a step needs beside its arrays; all of it is fixed when the step is compiled."""

    apply: Callable[..., Any]
    optimiser: optax.GradientTransformation
    pixels: Pixels
    moves: Moves
    dtype: Any
    smoothing: float
    ema: float
    seed: int


TrainStep = Callable[[TrainState, Any, Any, Any], tuple[TrainState, Array]]
EvalStep = Callable[[Arrays, Arrays, Any, Any], Any]


def initial_state(config: Any, optimiser: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    return _initial_state(transform(config), optimiser, seed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _initial_state(model: Transformed, optimiser: optax.GradientTransformation, seed: int) -> TrainState:
    params, state = jax.tree.map(_strong, model.init(jax.random.fold_in(jax.random.key(seed), 0)))
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": state["batch_stats"]})
    zero = jnp.zeros((), dtype=jnp.int32)
    return TrainState(params, state, ema, optimiser.init(params), zero, jnp.zeros(()), zero)


def averaged(train: TrainState) -> tuple[Arrays, Arrays]:
    """(params, state) of the averaged model, which is what evaluation and the checkpoints use."""
    return train.ema["params"], train.state | {"batch_stats": train.ema["batch_stats"]}


def make_train_step(
    config: Any, optimiser: optax.GradientTransformation, settings: Settings, pixels: Pixels, moves: Moves
) -> TrainStep:
    """`step(train_state, images, labels, chosen) -> (train_state, loss)` on the images of index `chosen`.

    The loss is the mean of this batch. The old state is donated, and gone.
    """
    recipe = Recipe(
        apply=transform(config).apply,
        optimiser=optimiser,
        pixels=pixels,
        moves=moves,
        dtype=jnp.bfloat16 if settings.precision == "bf16" else jnp.float32,
        smoothing=settings.label_smoothing,
        ema=settings.ema,
        seed=settings.seed,
    )
    return jax.jit(functools.partial(_train_step, recipe), donate_argnums=0)


def make_eval_step(config: Any, pixels: Pixels) -> EvalStep:
    """`step(params, state, images, chosen) -> logits` in inference mode, of the images of index `chosen`."""
    return jax.jit(functools.partial(_eval_step, transform(config).apply, pixels))


def _train_step(
    recipe: Recipe,
    train: TrainState,
    images: UInt8[Array, "images height width stored"],
    labels: Int[Array, " images"],
    chosen: Int[Array, " batch"],
) -> tuple[TrainState, Float[Array, ""]]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), 1), train.step)
    moves_key, model_key = jax.random.split(key)
    maps = random_maps(moves_key, chosen.shape[0], recipe.moves)
    batch, targets = prepare(images[chosen], recipe.pixels, maps), labels[chosen]

    gradient = jax.grad(_loss, argnums=1, has_aux=True)
    gradients, (state, loss, correct) = gradient(recipe, train.params, train.state, model_key, batch, targets)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam does not pass the strict one
        updates, optimiser = recipe.optimiser.update(gradients, train.optimiser, train.params)
    params = optax.apply_updates(train.params, updates)

    ema = _averaged(recipe.ema, train.step, train.ema, {"params": params, "batch_stats": state["batch_stats"]})
    correct = train.correct + correct.astype(jnp.int32)
    train = TrainState(params, state, ema, optimiser, train.step + 1, train.loss + loss, correct)
    return train, loss / chosen.shape[0]


def _loss(
    recipe: Recipe,
    params: Arrays,
    state: Arrays,
    key: Any,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
) -> tuple[Float[Array, ""], tuple[Arrays, Float[Array, ""], Int[Array, ""]]]:
    """The smoothed cross-entropy, and (state after, sum of the plain cross-entropy, number of right answers)."""
    # The cast is differentiated: gradients are float32, like the weights that they change.
    params, images = cast((params, images), recipe.dtype)
    logits, state = recipe.apply(params, state, key, images, update_statistics=True)
    logits = logits.astype(jnp.float32)
    hard = jax.nn.one_hot(labels, logits.shape[-1])
    smooth = optax.smooth_labels(hard, recipe.smoothing)
    plain = jnp.sum(optax.softmax_cross_entropy(logits, hard))
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    return jnp.mean(optax.softmax_cross_entropy(logits, smooth)), (state, plain, correct)


def _averaged(decay: float, step: Int[Array, ""], average: Arrays, current: Arrays) -> Arrays:
    """The moving average; early on it forgets faster, or it would remember the random start for a long time."""
    count = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(
        lambda old, new: old * kept.astype(old.dtype) + new * (1 - kept).astype(new.dtype), average, current
    )


def _eval_step(
    apply: Callable[..., Any],
    pixels: Pixels,
    params: Arrays,
    state: Arrays,
    images: UInt8[Array, "images height width stored"],
    chosen: Int[Array, " batch"],
) -> Float[Array, "batch classes"]:
    batch = prepare(images[chosen], pixels, identity_maps(chosen.shape[0]))
    logits, _ = apply(params, state, None, batch)
    return logits.astype(jnp.float32)


def _strong(array: Array) -> Array:
    """The array without JAX's weak type, which the second step would lack: that would compile the step twice."""
    return jax.lax.convert_element_type(array, array.dtype)
