"""A model for low latency: its blocks apart, and compiled ahead of time."""

import json
import platform
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float

from eqx_vit.arguments import check_argument
from eqx_vit.files import digest_arrays
from eqx_vit.forward import Images, forward
from eqx_vit.inputs import check_state, image_size_of, parameter_dtype
from eqx_vit.layers.config import Size, check, no_type_check, pair, shorten
from eqx_vit.layers.unstacked import restack, unstack
from eqx_vit.model import ImageModel
from eqx_vit.registry import AnyModel, config_to_json

Model = TypeVar("Model", bound=AnyModel)
# Numbers of an array that is compiled in, 256 KiB of float32: biases, norms, tables; a matrix of a small block at most.
MOST_FOLDED = 2**16
# Products by Eigen, sums by YNNPACK; vectors of 512 bits, not 256: the fastest depends on processor, threads, shapes.
EIGEN: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
WIDE: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}
ALTERNATIVES = (EIGEN, WIDE, EIGEN | WIDE)
ROUNDS = 8  # in which `tune` calls each program once
SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64")  # that a program depends on
DIGEST = 64  # bytes before a serialised executable


@no_type_check
def unstacked(model: Model) -> Model:
    """The same model with separate blocks in place of stacks, for small batches: it gives the same numbers.

    A loop over a stack copies each block's weights out of it before it multiplies by them, which is felt when a batch
    has few tokens to share that copy. In exchange a program over separate blocks takes longer to compile, the more so
    the deeper the model. It is for inference: optimisers and sharding want the depth as an axis, so train the stacked
    one. Everything else takes either: the state stays as it is, `observe` and all that is built on it give the same
    names and shapes, `save` writes the same file (`load` gives the stacked form). `model.blocks[i]` is a block of both.

    The arrays are copied; where the model is not needed any more, `model = eqx_vit.unstacked(model)` lets it go.

    **Raises:** `ValueError` for what is not a model.
    """
    check_argument("unstacked", "model", model, ImageModel)
    return unstack(model)


@no_type_check
def stacked(model: Model) -> Model:
    """The inverse of `unstacked`; any other model comes back as it is.

    **Raises:** `ValueError` for what is not a model.
    """
    check_argument("stacked", "model", model, ImageModel)
    return restack(model)


class Compiled:
    """A model's program for images of one shape: `run(images)` gives logits. Made by `eqx_vit.compiled`.

    **Attributes:** `shape` of the images that it takes, (batch, height, width, channels), and their `dtype`.
    """

    def __init__(
        self,
        executable: jax.stages.Compiled,
        weights: Sequence[Array],
        shape: tuple[int, int, int, int],
        dtype: jnp.dtype,
        digest: str,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._executable = executable
        self._weights = weights
        self._digest = digest

    @no_type_check
    def __call__(self, images: Images) -> Float[Array, "batch classes"]:
        """The logits of a batch. **Raises:** `ValueError` for images of another shape or not of floats."""
        if not isinstance(images, jax.Array | np.ndarray) or images.shape != self.shape:
            given = f"shape {images.shape}" if hasattr(images, "shape") else shorten(images)
            raise ValueError(f"this model is compiled for images of shape {self.shape}, given {given}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be floats, given dtype {images.dtype}: scale them first, images.astype('float32') / 255"
            )
        return self._executable(self._weights, images if images.dtype == self.dtype else images.astype(self.dtype))

    def serialize(self) -> bytes:
        """The program without the larger weights, for `eqx_vit.compiled(..., serialized=...)` in another process.

        It fits the same model, JAX, and kind of processor. JAX reads it by pickle: take it from nobody.
        """
        from jax.experimental.serialize_executable import serialize

        return self._digest.encode() + serialize(self._executable)[0]


@no_type_check
def compiled(
    model: AnyModel,
    state: State,
    batch: int = 1,
    *,
    image_size: Size | None = None,
    tune: bool = False,
    serialized: bytes | None = None,
) -> Compiled:
    """A model in inference mode, compiled ahead of time for batches of one size: `run(images)` gives the logits.

    The blocks are taken apart. On a CPU small arrays are compiled in, so that what follows from them alone (the biases
    that LeViT gathers, BatchNorm's factors) is computed once, and matrices are kept as XLA multiplies by them fastest.
    The larger weights are arguments of the program: as constants they gain nothing more, and take longer to compile.
    The result has copies of them; the model may be let go.

    **Arguments:** `model`, `state` as `create` or `load` returned them; `batch`: how many images; `image_size`: in
    pixels, by default the config's, and 224 for models that take any; `tune`: on a CPU, compile three times more, with
    another of XLA's libraries for matrix products, with wider vectors and with both, time all four, and keep the
    fastest on this machine; `serialized`: what `Compiled.serialize` gave for the same model, batch and size, to be read
    in place of compiling. JAX reads it by pickle: never take it from others.

    **Raises:** `ValueError` for an impossible size or batch, and for what was serialised for something else.
    """
    check_argument("compiled", "model", model, ImageModel)
    check_state(model, state)
    check(isinstance(batch, int) and batch > 0, f"batch must be a number of images, given {shorten(batch)}")
    check_argument("compiled", "tune", tune, bool)
    check_argument("compiled", "serialized", serialized, bytes | None)
    size = image_size_of(model.config) if image_size is None else pair(image_size)
    model.config.check_image_size(*size)
    shape, dtype = (batch, *size, model.config.channels), parameter_dtype(model)
    on_cpu = jax.default_backend() == "cpu"
    model = eqx.nn.inference_mode(model)
    if on_cpu:  # NumPy's views, in place of a compilation for each kind of slice
        model = jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, model)
    leaves, structure = jax.tree.flatten((unstack(model), state))
    weights = [leaf for leaf in leaves if _is_weight(leaf, on_cpu)]
    turned = [jax.device_put(np.ascontiguousarray(_turn(weight))) if on_cpu else weight for weight in weights]

    def run(turned: Sequence[Array], images: Array) -> Array:
        given = iter([_turn(weight) if on_cpu else weight for weight in turned])
        whole = [next(given) if _is_weight(leaf, on_cpu) else _as_jax(leaf) for leaf in leaves]
        own_model, own_state = jax.tree.unflatten(structure, whole)
        return forward(own_model, own_state, images)[0]

    digest = _digest(model, leaves, shape, on_cpu)
    arguments = (turned, jax.ShapeDtypeStruct(shape, dtype))
    if serialized is not None:
        return Compiled(_read(serialized, digest, arguments), turned, shape, dtype, digest)
    lowered = jax.jit(run).lower(*arguments)
    executable = lowered.compile()
    if tune and on_cpu:
        executable = _tuned(lowered, executable, turned, jnp.zeros(shape, dtype))
    return Compiled(executable, turned, shape, dtype, digest)


@no_type_check
def _tuned(
    lowered: jax.stages.Lowered, executable: jax.stages.Compiled, weights: Sequence[Array], images: Array
) -> jax.stages.Compiled:
    """The executable, or that of an alternative: the one with the shortest of some calls in turn."""
    candidates = [executable]
    for options in ALTERNATIVES:
        try:
            candidates.append(lowered.compile(compiler_options=options))
        except jax.errors.JaxRuntimeError as error:
            if "option" not in str(error):
                raise  # else this JAX lacks it: none of these options is promised

    def seconds(candidate: jax.stages.Compiled) -> float:
        start = time.perf_counter()
        jax.block_until_ready(candidate(weights, images))
        return time.perf_counter() - start

    rounds = [[seconds(candidate) for candidate in candidates] for _ in range(ROUNDS)]
    return candidates[int(np.argmin(np.min(rounds, axis=0)))]


@no_type_check
def _is_weight(leaf: Any, on_cpu: bool) -> bool:
    """Whether it is an argument of the program: every array is, but for those that a program for a CPU has inside."""
    return _is_any_array(leaf) and not (on_cpu and leaf.size <= MOST_FOLDED)


@no_type_check
def _is_any_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


@no_type_check
def _as_jax(leaf: object) -> object:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


@no_type_check
def _turn(weight: Array | np.ndarray) -> Array | np.ndarray:
    """A matrix as (in, out), by which XLA's CPU backend multiplies faster than by (out, in), and back."""
    return weight.T if weight.ndim == 2 else weight


@no_type_check
def _digest(model: AnyModel, leaves: Sequence[Any], shape: tuple[int, ...], on_cpu: bool) -> str:
    """Of all that an executable depends on."""
    folded = {str(at): leaf for at, leaf in enumerate(leaves) if _is_any_array(leaf) and not _is_weight(leaf, on_cpu)}
    arguments = [f"{leaf.shape} {leaf.dtype}" for leaf in leaves if _is_weight(leaf, on_cpu)]
    device = jax.devices()[0]
    versions = [jax.__version__, platform.machine(), device.platform, device.device_kind]
    settings = [str(getattr(jax.config, name)) for name in SETTINGS]
    return digest_arrays(folded, json.dumps([config_to_json(model.config), shape, arguments, versions, settings]))


@no_type_check
def _read(serialized: bytes, digest: str, arguments: tuple[object, ...]) -> jax.stages.Compiled:
    from jax.experimental.serialize_executable import deserialize_and_load

    if serialized[:DIGEST] != digest.encode():
        raise ValueError(
            "this was serialised for another model, batch, image size, JAX or processor: compile without serialized="
        )
    in_tree, out_tree = jax.tree.structure((arguments, {})), jax.tree.structure(0)
    return deserialize_and_load(serialized[DIGEST:], in_tree, out_tree, execution_devices=jax.devices()[:1])
