"""One training step and one evaluation step: the two compiled functions of a run.

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
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt

from eqx_vit.create import make_skeleton
from eqx_vit.forward import run_batch
from eqx_vit.functional import Transformed, from_dicts, set_training, to_dicts, transform
from eqx_vit.parameters import cast
from eqx_vit.paths import named_leaves
from eqx_vit.registry import AnyConfig, AnyModel
from eqx_vit.train.augment import AffineAugmentation, InputSpec, augment_batch, identity_affines, prepare_batch
from eqx_vit.train.drop_path import scale_drop_path
from eqx_vit.train.losses import make_objective, total_loss
from eqx_vit.train.mixing import erase_randomly, mix_batch
from eqx_vit.train.settings import Settings
from eqx_vit.train.teacher import Teacher

Arrays: TypeAlias = dict[str, Any]  # nested
Labels: TypeAlias = Int[Array, " batch"]


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
    """What a training step needs beside its arrays, fixed when it is compiled; of several runs that are trained as one,
    `seed`, `drop_path_factor` and the optimiser's rates are tracers.
    """

    config: AnyConfig
    two_heads: bool  # whether the second one learns from a teacher
    teach: Callable[..., Array] | None
    optimiser: optax.GradientTransformation
    input_spec: InputSpec
    augmentation: AffineAugmentation
    settings: Settings
    seed: int | UInt[Array, ""]
    drop_path_factor: Float[Array, ""] | None = None
    keep: Callable[[TrainState], TrainState] = lambda train: train  # where it lies on a mesh


class StepMetrics(NamedTuple):
    """The loss of a batch, and the norm of its gradient before it is clipped."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


AnyArray: TypeAlias = Array | np.ndarray


class TrainStep(NamedTuple):
    """`step(train_state, images, labels) -> (train_state, metrics)`; a teacher's arrays are no part of the program."""

    compiled: Callable[..., tuple[TrainState, StepMetrics]]
    teacher: tuple[Arrays, Arrays] | None

    def __call__(self, train: TrainState, images: AnyArray, labels: AnyArray) -> tuple[TrainState, StepMetrics]:
        return self.compiled(train, images, labels, self.teacher)


EvalStep: TypeAlias = Callable[[Arrays, Arrays, AnyArray], AnyArray]


def initial_state(
    config: AnyConfig,
    optimiser: optax.GradientTransformation,
    seed: int,
    start: tuple[Arrays, Arrays] | None = None,
) -> TrainState:
    """The state before the first step: of a fresh model, or of `start`, (params, state)."""
    if start is None:
        return _initial_state(transform(config), optimiser, seed)
    return jax.jit(functools.partial(start_state, optimiser))(start)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _initial_state(model: Transformed, optimiser: optax.GradientTransformation, seed: int) -> TrainState:
    return start_state(optimiser, model.init(jax.random.fold_in(jax.random.key(seed), 0)))


def start_state(optimiser: optax.GradientTransformation, model: tuple[Arrays, Arrays]) -> TrainState:
    """The state before the first step of a model, (params, state)."""
    params, state = jax.tree.map(_drop_weak_type, model)
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": state["batch_stats"]})
    zero = jnp.zeros((), dtype=jnp.int32)
    return TrainState(params, state, ema, optimiser.init(params), zero, jnp.zeros(()), zero)


def averaged_model(train: TrainState) -> tuple[Arrays, Arrays]:
    """(params, state) of the averaged model, which is what evaluation and the checkpoints use."""
    return train.ema["params"], train.state | {"batch_stats": train.ema["batch_stats"]}


def make_train_step(
    config: AnyConfig,
    optimiser: optax.GradientTransformation,
    settings: Settings,
    input_spec: InputSpec,
    teacher: Teacher | None = None,
    keep: Callable[[TrainState], TrainState] = lambda train: train,
) -> TrainStep:
    """`step(train_state, images, labels) -> (train_state, metrics)` on a batch of images of 0 to 255.

    The old state is donated, and gone. `keep` tells the compiler where the new one lies on a mesh.
    """
    step_config = make_step_config(config, optimiser, settings, input_spec, teacher)._replace(keep=keep)
    compiled = jax.jit(functools.partial(train_step, step_config), donate_argnums=0)
    return TrainStep(compiled, None if teacher is None else teacher.arrays)


def make_step_config(
    config: AnyConfig,
    optimiser: optax.GradientTransformation,
    settings: Settings,
    input_spec: InputSpec,
    teacher: Teacher | None = None,
) -> StepConfig:
    """What `train_step` needs beside its arrays."""
    heads = {name.split(".")[0] for name in named_leaves(make_skeleton(config)[0])}
    augmentation = AffineAugmentation(settings.rotate, settings.shift, settings.zoom, settings.flip)
    teach = None if teacher is None else teacher.apply
    two_heads = teacher is not None and "head_dist" in heads
    return StepConfig(config, two_heads, teach, optimiser, input_spec, augmentation, settings, settings.seed)


def make_eval_step(config: AnyConfig, input_spec: InputSpec) -> EvalStep:
    """`step(params, state, images) -> logits` in inference mode, of a batch of images of 0 to 255."""
    return jax.jit(functools.partial(_eval_step, transform(config).apply, input_spec))


def train_step(
    config: StepConfig, train: TrainState, images: AnyArray, labels: AnyArray, teacher: tuple[Arrays, Arrays] | None
) -> tuple[TrainState, StepMetrics]:
    """One step: augment, differentiate, update. Its random numbers are a function of (seed, step)."""
    settings = config.settings
    images, labels = jnp.asarray(images), jnp.asarray(labels)  # numpy's where JAX_DISABLE_JIT is set
    augmentation_key, model_key = jax.random.split(_step_key(config, train.step))
    batch, targets = augment(config, augmentation_key, images, labels)
    teacher_logits = None if config.teach is None else config.teach(teacher, batch)

    gradients, (state, loss, plain, correct) = _differentiate(
        config, train.params, train.state, model_key, (batch, labels, targets, teacher_logits)
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam does not pass the strict one
        updates, optimiser = config.optimiser.update(gradients, train.optimiser, train.params)
    params = eqx.apply_updates(train.params, updates)

    ema = _update_average(settings.ema, train.step, train.ema, params, state["batch_stats"])
    metrics = StepMetrics(loss, optax.tree.norm(gradients))
    correct = train.correct + correct
    after = TrainState(params, state, ema, optimiser, train.step + 1, train.loss + plain, correct)
    return config.keep(after), metrics


def _step_key(config: StepConfig, step: Int[Array, ""]) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), step)


def augment(
    config: StepConfig, key: PRNGKeyArray, images: Array, labels: Labels
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """A batch as the model is given it, and the share that each class has in an image."""
    settings = config.settings
    batch = augment_batch(key, images, config.input_spec, config.augmentation)
    targets = jax.nn.one_hot(labels, config.config.num_classes)
    mix_key, erase_key = jax.random.split(jax.random.fold_in(key, 1))
    if settings.erase:
        batch = erase_randomly(erase_key, batch, settings.erase)
    if settings.mixup or settings.cutmix:
        batch, targets = mix_batch(
            mix_key, batch, targets, settings.mixup, settings.cutmix, probability=settings.mix_probability
        )
    return batch, targets


def show_batch(config: StepConfig, step: int, images: AnyArray, labels: AnyArray) -> tuple[np.ndarray, np.ndarray]:
    """What `augment` makes of the batch of a step: images of 0 to 255 as a person sees them, and the targets."""
    key, _ = jax.random.split(_step_key(config, jnp.asarray(step, dtype=jnp.int32)))
    batch, targets = augment(config, key, jnp.asarray(images), jnp.asarray(labels))
    mean, std = (np.asarray(values, dtype=np.float32) for values in (config.input_spec.mean, config.input_spec.std))
    pixels = np.round(255 * (np.asarray(batch) * std + mean)).clip(0, 255).astype(np.uint8)
    return pixels, np.asarray(targets)


Part: TypeAlias = tuple[Array, Array, Array, Array | None]  # images, labels, targets, a teacher's logits
Computed: TypeAlias = tuple[Arrays, tuple[Arrays, Array, Array, Array]]


def _differentiate(config: StepConfig, params: Arrays, state: Arrays, key: PRNGKeyArray, batch: Part) -> Computed:
    """(gradients, what `_loss` has beside the loss), in as many parts of the batch as the settings say."""
    gradient = jax.grad(_loss, argnums=1, has_aux=True)
    parts = config.settings.accumulate
    if parts == 1:
        return gradient(config, params, state, key, *batch)

    def split(array: Array) -> Array:
        # Every so many-th image: each device of a mesh then has as many of each part as of the batch.
        return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

    def add_part(carry: Computed, part: tuple[PRNGKeyArray, Part]) -> tuple[Computed, None]:
        gradients, (state, *sums) = carry
        own, (state, *numbers) = gradient(config, params, state, part[0], *part[1])
        added = jax.tree.map(jnp.add, (gradients, tuple(sums)), (own, tuple(numbers)))
        return (added[0], (state, *added[1])), None

    zero = (jnp.zeros(()), jnp.zeros(()), jnp.zeros((), dtype=jnp.int32))
    start = jax.tree.map(jnp.zeros_like, params), (state, *zero)
    (gradients, (state, loss, plain, correct)), _ = jax.lax.scan(
        add_part, start, (jax.random.split(key, parts), jax.tree.map(split, batch))
    )
    return jax.tree.map(lambda leaf: leaf / parts, gradients), (state, loss / parts, plain, correct)


def _loss(
    config: StepConfig,
    params: Arrays,
    state: Arrays,
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
    labels: Labels,
    targets: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"] | None,
) -> tuple[Float[Array, ""], tuple[Arrays, Float[Array, ""], Float[Array, ""], Int[Array, ""]]]:
    """The loss, and (state after, the loss, sum of the plain cross-entropy, number of correct predictions)."""
    # The cast is differentiated: gradients are float32, like the weights that they change.
    dtype = jnp.bfloat16 if config.settings.precision == "bf16" else jnp.float32
    params, images = cast((params, images), dtype)
    method = "logits_pair" if config.two_heads else "__call__"
    result, state = _run_model(config, method, params, state, key, images)
    own, distilled = (logits.astype(jnp.float32) for logits in (result if config.two_heads else (result, result)))
    logits = (own + distilled) / 2 if config.two_heads else own
    plain = jnp.sum(optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1])))
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels).astype(jnp.int32)
    loss = total_loss(make_objective(config.settings), own, distilled, targets, teacher)
    return loss, (state, loss, plain, correct)


def _run_model(
    config: StepConfig,
    method: str,
    params: Arrays,
    state: Arrays,
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channels"],
) -> tuple[Any, Arrays]:
    """(result, state after) of a method of the model in training mode, all of it in the dtype of the images."""
    buffers = cast(state["buffers"], images.dtype)
    model, model_state = from_dicts(config.config, params, state | {"buffers": buffers})
    model = set_training(model, dropout=True, statistics=True)
    if config.drop_path_factor is not None:
        model = scale_drop_path(model, config.drop_path_factor)

    def run(model: AnyModel, *given: PyTree, key: PRNGKeyArray | None) -> PyTree:
        return getattr(model, method)(*given, key=key)

    result, after = run_batch(model, run, model_state, images, key)
    return result, to_dicts(model, after)[1] | {"buffers": state["buffers"]}


def _update_average(decay: float, step: Int[Array, ""], average: Arrays, params: Arrays, batch_stats: Arrays) -> Arrays:
    """The moving average; early on it forgets faster, or it would remember the random start for a long time."""
    count = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(
        lambda old, new: new + (old - new) * decay_now.astype(old.dtype),  # what does not change stays bit by bit
        average,
        {"params": params, "batch_stats": batch_stats},
    )


def _eval_step(
    apply: Callable[..., tuple[Array, Arrays]], input_spec: InputSpec, params: Arrays, state: Arrays, images: AnyArray
) -> Float[Array, "batch classes"]:
    images = jnp.asarray(images)
    batch = prepare_batch(images, input_spec, identity_affines(len(images)))
    logits, _ = apply(params, state, None, batch)
    return logits.astype(jnp.float32)


def _drop_weak_type(array: Array) -> Array:
    """The array without JAX's weak type, which the second step would lack: that would compile the step twice."""
    return jax.lax.convert_element_type(array, array.dtype)
