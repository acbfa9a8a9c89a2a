"""One training step and one evaluation step: the two compiled functions of a run, and their optimiser.

They work on `eqx_vit.transform(config)`, plain nested dicts of arrays: cheap to pass, and named as files want them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt8

from eqx_vit.create import build
from eqx_vit.functional import Transformed, transform
from eqx_vit.parameters import cast, decay_mask
from eqx_vit.paths import path_name
from eqx_vit.registry import AnyConfig
from eqx_vit.train.augment import AffineAugmentation, InputSpec, identity_affines, prepare_batch, random_affines
from eqx_vit.train.config import Settings

FINAL_FRACTION = 0.01  # of the peak learning rate, at the last step

Arrays: TypeAlias = dict[str, Any]  # nested
Images: TypeAlias = UInt8[Array, "images height width source_channels"]
Indices: TypeAlias = Int[Array, " batch"] | Int[np.ndarray, " batch"]  # numpy's where JAX_DISABLE_JIT is set


class TrainState(NamedTuple):
    """All that changes during training.

    **Attributes:** `params, state` as `eqx_vit.transform` has them; `ema`, the moving average of the parameters and
    of BatchNorm's statistics; `optimiser`, optax's state; `step`, how many are done; `loss, correct`, sums over the
    images of the epoch so far.
    """

    params: Arrays
    state: Arrays
    ema: Arrays
    optimiser: optax.OptState
    step: Int[Array, ""]
    loss: Float[Array, ""]
    correct: Int[Array, ""]


class StepConfig(NamedTuple):
    """What a training step needs beside its arrays; all of it is fixed when the step is compiled."""

    apply: Callable[..., tuple[Array, Arrays]]
    optimiser: optax.GradientTransformation
    input_spec: InputSpec
    augmentation: AffineAugmentation
    dtype: DTypeLike
    label_smoothing: float
    ema_decay: float
    seed: int


AnyArray: TypeAlias = Array | np.ndarray
TrainStep: TypeAlias = Callable[[TrainState, AnyArray, AnyArray, AnyArray], tuple[TrainState, Array]]
EvalStep: TypeAlias = Callable[[Arrays, Arrays, AnyArray, AnyArray], Array]


def learning_rate(settings: Settings, steps: int) -> Callable[[ArrayLike], Array]:
    """The learning rate by step: a line up from 0, then half a cosine down to a hundredth of the peak."""
    peak = settings.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=int(settings.warmup * steps), decay_steps=steps, end_value=FINAL_FRACTION * peak
    )
    # An int would not pass strict promotion.
    return lambda step: jnp.asarray(schedule(jnp.asarray(step, dtype=jnp.float32)))


def make_optimiser(config: AnyConfig, settings: Settings, steps: int) -> optax.GradientTransformation:
    """AdamW with a warm-up, a cosine schedule and clipped gradients, for a run of so many steps.

    For the parameters of a config as `eqx_vit.transform` has them. Weight decay reaches the weights of linear maps and
    convolutions alone (`eqx_vit.decay_mask`).
    """
    model, _ = eqx.filter_eval_shape(build, config, jax.random.key(0))
    decayed = {path_name(path) for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(model)) if decays}

    def mask(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) in decayed, params)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(learning_rate(settings, steps), weight_decay=settings.weight_decay, mask=mask),
    )


def initial_state(config: AnyConfig, optimiser: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    return _initial_state(transform(config), optimiser, seed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _initial_state(model: Transformed, optimiser: optax.GradientTransformation, seed: int) -> TrainState:
    params, state = jax.tree.map(_drop_weak_type, model.init(jax.random.fold_in(jax.random.key(seed), 0)))
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": state["batch_stats"]})
    zero = jnp.zeros((), dtype=jnp.int32)
    return TrainState(params, state, ema, optimiser.init(params), zero, jnp.zeros(()), zero)


def averaged_model(train: TrainState) -> tuple[Arrays, Arrays]:
    """(params, state) of the averaged model, which is what evaluation and the checkpoints use."""
    return train.ema["params"], train.state | {"batch_stats": train.ema["batch_stats"]}


def make_train_step(
    config: AnyConfig, optimiser: optax.GradientTransformation, settings: Settings, input_spec: InputSpec
) -> TrainStep:
    """`step(train_state, images, labels, indices) -> (train_state, loss)` on the batch of images at `indices`.

    The loss is the mean of this batch. The old state is donated, and gone.
    """
    step_config = StepConfig(
        apply=transform(config).apply,
        optimiser=optimiser,
        input_spec=input_spec,
        augmentation=AffineAugmentation(settings.rotate, settings.shift, settings.zoom, settings.flip),
        dtype=jnp.bfloat16 if settings.precision == "bf16" else jnp.float32,
        label_smoothing=settings.label_smoothing,
        ema_decay=settings.ema,
        seed=settings.seed,
    )
    return jax.jit(functools.partial(_train_step, step_config), donate_argnums=0)


def make_eval_step(config: AnyConfig, input_spec: InputSpec) -> EvalStep:
    """`step(params, state, images, indices) -> logits` in inference mode, of the batch of images at `indices`."""
    return jax.jit(functools.partial(_eval_step, transform(config).apply, input_spec))


def _train_step(
    config: StepConfig, train: TrainState, images: Images, labels: Int[Array, " images"], indices: Indices
) -> tuple[TrainState, Float[Array, ""]]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), train.step)
    augmentation_key, model_key = jax.random.split(key)
    affines = random_affines(augmentation_key, indices.shape[0], config.augmentation)
    batch, targets = prepare_batch(images[indices], config.input_spec, affines), labels[indices]

    gradient = jax.grad(_loss, argnums=1, has_aux=True)
    gradients, (state, loss, correct) = gradient(config, train.params, train.state, model_key, batch, targets)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam does not pass the strict one
        updates, optimiser = config.optimiser.update(gradients, train.optimiser, train.params)
    params = eqx.apply_updates(train.params, updates)

    ema = _update_average(config.ema_decay, train.step, train.ema, params, state["batch_stats"])
    correct = train.correct + correct.astype(jnp.int32)
    train = TrainState(params, state, ema, optimiser, train.step + 1, train.loss + loss, correct)
    return train, loss / indices.shape[0]


def _loss(
    config: StepConfig,
    params: Arrays,
    state: Arrays,
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
) -> tuple[Float[Array, ""], tuple[Arrays, Float[Array, ""], Int[Array, ""]]]:
    """The smoothed cross-entropy, and (state after, sum of the plain cross-entropy, number of correct predictions)."""
    # The cast is differentiated: gradients are float32, like the weights that they change.
    params, images = cast((params, images), config.dtype)
    logits, state = config.apply(params, state, key, images, update_statistics=True)
    logits = logits.astype(jnp.float32)
    hard = jax.nn.one_hot(labels, logits.shape[-1])
    smooth = optax.smooth_labels(hard, config.label_smoothing)
    plain = jnp.sum(optax.softmax_cross_entropy(logits, hard))
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    return jnp.mean(optax.softmax_cross_entropy(logits, smooth)), (state, plain, correct)


def _update_average(decay: float, step: Int[Array, ""], average: Arrays, params: Arrays, batch_stats: Arrays) -> Arrays:
    """The moving average; early on it forgets faster, or it would remember the random start for a long time."""
    count = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(
        lambda old, new: old * decay_now.astype(old.dtype) + new * (1 - decay_now).astype(new.dtype),
        average,
        {"params": params, "batch_stats": batch_stats},
    )


def _eval_step(
    apply: Callable[..., tuple[Array, Arrays]],
    input_spec: InputSpec,
    params: Arrays,
    state: Arrays,
    images: Images,
    indices: Indices,
) -> Float[Array, "batch classes"]:
    batch = prepare_batch(images[indices], input_spec, identity_affines(indices.shape[0]))
    logits, _ = apply(params, state, None, batch)
    return logits.astype(jnp.float32)


def _drop_weak_type(array: Array) -> Array:
    """The array without JAX's weak type, which the second step would lack: that would compile the step twice."""
    return jax.lax.convert_element_type(array, array.dtype)
