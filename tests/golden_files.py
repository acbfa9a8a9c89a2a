"""Golden files: outputs of the official implementations, and the comparison of a model of ours with them.

Parameters and inputs are not stored but drawn again, each from its own frozen `RandomState(crc32("<file>/<name>"))`;
the JSON in a file's `meta` says how: `state` lists [key, shape, kind, ...] in checkpoint order, `generated` inputs and
cotangents, `slices` the large arrays of which only every n-th element is kept.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqx_vit
from eqx_vit.paths import named_leaves
from eqx_vit.weights import load_state_dict, to_state_dict

FOLDER = Path(__file__).parent / "golden"


@dataclasses.dataclass(frozen=True)
class Golden:
    """One file: `meta`, the checkpoint `state`, and every other array (`input`, `output`, `grad/<key>`, ...)."""

    meta: dict[str, Any]
    state: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    def image_batch(self, name: str = "input") -> jax.Array:
        """An input as (batch, height, width, channels)."""
        images = self.arrays[name]
        return jnp.asarray(images if self.meta.get("layout") == "NHWC" else np.moveaxis(images, 1, -1))


def read(name: str) -> Golden:
    """The golden file `tests/golden/<name>.npz`, complete."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    stem = meta.get("file", name)
    stored = [[key.removeprefix("state/"), None, "raw"] for key in arrays if key.startswith("state/")]
    state: dict[str, np.ndarray] = {}
    for key, shape, kind, *numbers in meta.get("state", stored):
        match kind:
            case "raw":
                state[key] = arrays.pop(f"state/{key}")
            case "same":
                state[key] = state[numbers[0]]
            case "constant":
                state[key] = np.full(shape, numbers[0], dtype=numbers[1])
            case _:
                state[key] = _draw(f"{stem}/{key}", shape, kind, *numbers)
    for key, (shape, scale, *mean) in meta.get("generated", {}).items():
        arrays[key] = _draw(f"{stem}/{key}", shape, "normal", mean[0] if mean else 0.0, scale)
    return Golden(meta, state, arrays)


def _draw(name: str, shape: Sequence[int], kind: str, first: Any, second: Any) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if kind == "uniform":
        return random.uniform(first, second, tuple(shape)).astype(np.float32)
    assert kind == "normal", kind
    return np.asarray(np.asarray(first) + np.asarray(second) * random.standard_normal(tuple(shape)), dtype=np.float32)


def loaded(name: str, config: Any, source: str) -> tuple[Golden, Any, eqx.nn.State]:
    """The golden file, and a model of `config` (in training mode) and its state with the file's weights."""
    golden = read(name)
    return golden, *load_state_dict(*eqx_vit.create_abstract(config), golden.state, source=source)


def zeros(config: Any) -> tuple[Any, eqx.nn.State]:
    """A model to save every array of: to compile the initialisation would take most of the time."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        eqx_vit.create_abstract(config),
    )


def check(name: str, config: Any, source: str, unused: Sequence[str] = (), *, atol: float = 2e-5) -> None:
    """Every array of the golden file that a classifier can be held against, and the way back of its weights.

    That is: the inference output, in bfloat16 to a tenth of its largest element, gradients of `sum(output * cotangent)`
    for parameters and image, and what `check_training` compares. Entries in `unused` have rows that no model reads, so
    that they do not come back whole.
    """
    golden, model, state = loaded(name, config, source)
    returned = to_state_dict(model, state, source)
    for key, array in golden.state.items():
        if not key.endswith("num_batches_tracked") and key not in unused:
            np.testing.assert_array_equal(
                returned[key], array, err_msg=f"{name}: {key} does not come back as it went in"
            )
    assert set(returned) >= set(golden.state), sorted(set(golden.state) - set(returned))
    frozen = eqx.nn.inference_mode(model)
    if "cotangent" in golden.arrays:
        check_gradients(golden, frozen, state, source, atol, name)
    else:
        logits, _ = eqx.filter_jit(eqx_vit.forward)(frozen, state, golden.image_batch())
        close(logits, golden.arrays["output"], atol, f"{name}: output")
    half, _ = eqx.filter_jit(eqx_vit.forward)(eqx_vit.cast(frozen, jnp.bfloat16), state, golden.image_batch())
    assert half.dtype == jnp.bfloat16
    expected = golden.arrays["output"]
    close(half.astype(jnp.float32), expected, 0.1 * float(np.abs(expected).max()), f"{name}: output in bfloat16")
    if "train_output" in golden.arrays:
        check_training(golden, model, state, source, atol, name)


def check_training(golden: Golden, model: Any, state: eqx.nn.State, source: str, atol: float, name: str) -> None:
    """The output in training mode (all rates are 0) and BatchNorm's statistics after it.

    A variance over few positions magnifies rounding, the file's own too: levit-big112's output, in float32, is 1.5e-5
    from what float64 gives, and what float32 gives depends on the processor. So the file is held against our model in
    float64, and our model in float32 against that; and against the file, where half the tolerance is left for it.
    """
    train = eqx.filter_jit(eqx_vit.forward)
    images = golden.image_batch("train_input")
    with jax.enable_x64(True):
        exact, _ = train(*_as_float64((model, state, images)))
    # Official code returns the pair of heads in training mode, ours their mean.
    heads = [array for key, array in golden.arrays.items() if key in ("train_output", "train_output_dist")]
    expected = np.mean(heads, axis=0)
    close(exact, expected, atol, f"{name}: train_output")
    with optimised():
        logits, after = train(model, state, images)
    close(logits, np.asarray(exact), atol, f"{name}: train_output in float32")
    if np.abs(np.asarray(exact) - expected).max() < atol / 2:
        close(logits, expected, atol, f"{name}: train_output in float32, and the file's")
    found = to_state_dict(model, after, source)
    for key, expected in golden.arrays.items():
        if key.startswith("train_state/") and not key.endswith("num_batches_tracked"):
            close(found[key.removeprefix("train_state/")], expected, atol, f"{name}: {key}")


def _as_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, tree)


@contextlib.contextmanager
def optimised() -> Iterator[None]:
    """As users compile: batch statistics over few positions show the order of summation at the tolerance."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def check_gradients(golden: Golden, model: Any, state: eqx.nn.State, source: str, atol: float, name: str) -> None:
    """`output`, `grad/<key>` and `grad_input` of the file, from one program."""

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def gradients_and_logits(model_and_images: Any) -> Any:
        logits, _ = eqx_vit.forward(model_and_images[0], state, model_and_images[1])
        return jnp.sum(logits * golden.arrays["cotangent"]), logits

    (of_model, of_images), logits = gradients_and_logits((model, golden.image_batch()))
    close(logits, golden.arrays["output"], atol, f"{name}: output")
    compare_gradients(golden, "grad/", of_model, state, source, atol, name)
    if "grad_input" in golden.arrays:
        channels_last = golden.meta.get("layout") == "NHWC"
        found = np.asarray(of_images) if channels_last else np.moveaxis(np.asarray(of_images), -1, 1)
        close(_sliced(golden, "grad_input", found), golden.arrays["grad_input"], atol, f"{name}: grad_input")


def compare_gradients(
    golden: Golden, prefix: str, gradients: Any, state: eqx.nn.State, source: str, atol: float, name: str
) -> None:
    """Each `<prefix><key>` array against a gradient tree of ours; large gradients are compared relatively."""
    found = to_state_dict(gradients, state, source)
    for key, expected in golden.arrays.items():
        if key.startswith(prefix):
            ours = _sliced(golden, key, found[key.removeprefix(prefix)])
            close(ours, expected, atol * max(1.0, float(np.abs(expected).max())), f"{name}: {key}")


def close(found: Any, expected: np.ndarray, atol: float, what: str) -> None:
    """Equal shapes, and no element further apart than `atol`."""
    found = np.asarray(found)
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    difference = float(np.abs(found - expected).max(initial=0.0))
    assert difference <= atol, f"{what}: off by {difference:.2e}, allowed {atol:.0e}"


def _sliced(golden: Golden, name: str, array: np.ndarray) -> np.ndarray:
    slices = golden.meta.get("slices", {})
    return array.reshape(-1)[:: slices[name][1]] if name in slices else array


def hashed(name: str, shape: Sequence[int]) -> np.ndarray:
    """A full-size preset's array by the integer-hash recipe of the `*-presets` files (SplitMix64)."""
    count = int(np.prod(shape, dtype=np.int64))
    z = np.uint64(zlib.crc32(name.encode())) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    u = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return _scaled(name, u, tuple(shape)).reshape(shape).astype(np.float32)


def _scaled(name: str, u: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    s, last = 2 * u - 1, name.rsplit(".", 1)[-1]
    if name == "input":
        return np.sqrt(3) * s
    if last == "running_var":
        return 0.5 + u
    if last == "running_mean":
        return 0.2 * s
    if name.endswith(("proj.1.bn.weight", ".m.2.bn.weight")):
        return 0.5 * (1 + 0.1 * s)
    if len(shape) == 1:
        return 1 + 0.1 * s if last == "weight" else 0.1 * s
    if last == "weight":
        gain = 0.5 if name.endswith("kqv.weight") else 1.0
        return gain * np.sqrt(3) * s / np.sqrt(np.prod(shape[1:]))
    return 2 * s if last == "attention_biases" else 0.3 * s


def check_preset(name: str, variant: str, config: Any, source: str, *, atol: float = 2e-5) -> None:
    """The logits of one full-size model of a `*-presets` file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        expected, meta = file[f"output/{variant}"], json.loads(str(file["meta"]))
    described = meta["models"][variant]
    model, state = eqx_vit.create(config, key=jax.random.key(0))
    # The official count has the buffers, which are not trained, in it.
    assert sum(leaf.size for leaf in named_leaves(model).values()) == described["params"]
    names = to_state_dict(model, state, source)
    weights = {
        key: hashed(key, array.shape) if np.issubdtype(array.dtype, np.floating) else array
        for key, array in names.items()
    }
    model, state = load_state_dict(model, state, weights, source=source)
    images = jnp.asarray(np.moveaxis(hashed("input", described["input_shape"]), 1, -1))
    logits, _ = eqx.filter_jit(eqx_vit.forward)(eqx.nn.inference_mode(model), state, images)
    close(logits, expected, atol, f"{name}: {variant}")
