"""Contracts of what a model computes, and of what the library does with it: the model is compiled."""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import inference_mode

from eqx_vit.create import create
from eqx_vit.forward import forward
from eqx_vit.functional import transform
from eqx_vit.inspection import observable, observe
from eqx_vit.layers.config import Size, list_some, no_type_check
from eqx_vit.parameters import cast, count_params
from eqx_vit.paths import named_leaves, named_statistics
from eqx_vit.registry import AnyConfig, AnyModel
from eqx_vit.serialization import load, save
from eqx_vit.surgery import replace_head
from eqx_vit.testing.subject import Subject, contract, is_near, randomise, to_numpy

_forward = eqx.filter_jit(forward)  # one, so that the checks of a config share what it compiles


@no_type_check
def check_initialisation(config: AnyConfig, image_size: Size | None = None) -> None:
    """No two blocks, nor any two weights, start with the same random numbers; all are finite."""
    with contract(config, image_size, "no two weights may start equal: each needs a key of its own") as subject:
        arrays = jax.tree.map(np.asarray, named_leaves(create(config, key=jax.random.key(0))[0]))
        infinite = [name for name, array in arrays.items() if not np.all(np.isfinite(array))]
        subject.expect(not infinite, f"{list_some(infinite)} is infinite or NaN")
        seen: dict[bytes, str] = {}
        for name, array in arrays.items():
            if not name.endswith("weight") or array.ndim < 2 or np.std(array) == 0:
                continue
            # Of a stack, of three axes for linear maps and five for convolutions, each block is one.
            rows = array if array.ndim in (3, 5) else array[None]
            for index, row in enumerate(rows):
                place = f"{name}[{index}]" if array.ndim in (3, 5) else name
                first = seen.setdefault(row.tobytes(), place)
                subject.expect(first == place, f"{first} and {place} do")


@no_type_check
def check_save_and_load(config: AnyConfig, image_size: Size | None = None) -> None:
    """`load` gives back every bit of the parameters and of the state that `save` wrote."""
    with contract(config, image_size, "a saved model has to come back with every bit") as subject:
        model, state = randomise(config)
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / "model.safetensors", model, state)
            loaded, loaded_state = load(Path(folder) / "model.safetensors")
        subject.expect(loaded.config == model.config, "its config changes")
        subject.expect(jax.tree.structure(loaded) == jax.tree.structure(model), "its structure changes")
        expected = named_leaves(model) | named_statistics(model, state)
        found = named_leaves(loaded) | named_statistics(loaded, loaded_state)
        changed = [name for name in expected if _bits(found[name]) != _bits(expected[name])]
        subject.expect(not changed, f"{list_some(changed)} changes")


def _bits(array: object) -> tuple[object, bytes]:
    plain = np.asarray(array)
    return plain.dtype, plain.tobytes()


@no_type_check
def check_head_swap(config: AnyConfig, image_size: Size | None = None) -> None:
    """`replace_head` gives logits of the new number of classes and leaves all else; a head can go and come back."""
    with contract(config, image_size, "replace_head has to replace the head alone") as subject:
        model, state = create(config, key=jax.random.key(0))
        classes, key = config.num_classes + 4, jax.random.key(1)
        swapped = replace_head(model, classes, key=key)
        subject.expect(swapped.config.num_classes == classes, f"num_classes stays {swapped.config.num_classes}")
        logits = eqx.filter_eval_shape(forward, inference_mode(swapped), state, subject.images(2))[0]
        subject.expect(logits.shape == (2, classes), f"with {classes} classes two images give {logits.shape}")
        _expect_same_body(subject, model, swapped)
        headless = replace_head(model, 0, key=key)
        left = [name for name in named_leaves(headless) if _is_head(name)]
        subject.expect(not left, f"{list_some(left)} stays in a model without a head")
        eqx.filter_eval_shape(forward, inference_mode(headless), state, subject.images(2))
        back = replace_head(headless, classes, key=key)
        subject.expect(set(named_leaves(back)) == set(named_leaves(swapped)), "a head that comes back is another")


def _expect_same_body(subject: Subject, before: AnyModel, after: AnyModel) -> None:
    body = {name: leaf for name, leaf in named_leaves(before).items() if not _is_head(name)}
    found = named_leaves(after)
    changed = [name for name in body if name not in found or _bits(found[name]) != _bits(body[name])]
    subject.expect(not changed, f"{list_some(changed)} changes")


def _is_head(name: str) -> bool:
    return name.split(".")[0].startswith("head")


@no_type_check
def check_batches(config: AnyConfig, image_size: Size | None = None) -> None:
    """In inference mode an image gives the same alone, in any place of a batch, with a key and without; the state
    stays as it is."""
    with contract(config, image_size, "an image has to give the same alone and in any batch") as subject:
        model, state = _ready(config)
        images = subject.images()
        logits, after = _forward(model, state, images)
        expected = to_numpy(logits)
        subject.expect(bool(eqx.tree_equal(state, after)), "inference changes the state")
        turned = to_numpy(_forward(model, state, images[::-1])[0])[::-1]
        subject.expect(is_near(turned, expected, 1e-3), f"in another order it is off by {_distance(turned, expected)}")
        alone = eqx.filter_jit(lambda model, *rest: model(*rest, key=jax.random.key(0)))(model, images[0], state)[0]
        found = np.concatenate([to_numpy(alone)[None], expected[1:]])
        subject.expect(is_near(found, expected, 1e-3), f"alone it is off by {_distance(found, expected)}")


def _ready(config: AnyConfig) -> tuple[AnyModel, eqx.nn.State]:
    """The model in inference mode, with random parameters."""
    model, state = randomise(config)
    return inference_mode(model), state


def _distance(found: np.ndarray, expected: np.ndarray) -> str:
    return f"{np.max(np.abs(found - expected)):.2g}"


@no_type_check
def check_bfloat16(config: AnyConfig, image_size: Size | None = None) -> None:
    """`cast(model, jnp.bfloat16)` gives logits in bfloat16, near those in float32."""
    with contract(config, image_size, "logits in bfloat16 have to be near those in float32") as subject:
        model, state = _ready(config)
        logits, _ = _forward(cast(model, jnp.bfloat16), state, subject.images())
        subject.expect(logits.dtype == jnp.bfloat16, f"they are {logits.dtype}")
        expected, found = to_numpy(_forward(model, state, subject.images())[0]), to_numpy(logits)
        near = np.max(np.abs(found - expected)) <= 0.1 * np.max(np.abs(expected))
        subject.expect(near, f"they are off by {_distance(found, expected)} of {np.max(np.abs(expected)):.2g}")


@no_type_check
def check_transform(config: AnyConfig, image_size: Size | None = None) -> None:
    """`transform`'s pure functions give the parameters of `create` and the logits of `forward`."""
    with contract(config, image_size, "transform has to give what create and forward do") as subject:
        model, state = create(config, key=jax.random.key(0))
        init, apply = transform(config)
        params, collections = init(jax.random.key(0))
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        subject.expect(size == count_params(model), f"it has {size:,} parameters, not {count_params(model):,}")
        logits, after = apply(params, collections, None, subject.images())
        expected, _ = _forward(inference_mode(model), state, subject.images())
        subject.expect(np.array_equal(logits, expected), f"off by {_distance(to_numpy(logits), to_numpy(expected))}")
        subject.expect(jax.tree.structure(after) == jax.tree.structure(collections), "its state changes its structure")


@no_type_check
def check_observe(config: AnyConfig, image_size: Size | None = None) -> None:
    """`observe` sees what `observable` lists, in the shapes that it says, and leaves the logits alone."""
    with contract(config, image_size, "observe has to see what observable lists, and to leave the logits alone") as (
        subject
    ):
        model, state = _ready(config)
        images = subject.images()
        listed = observable(model, state, subject.image_size)
        subject.expect(len(listed) > 0, "nothing is listed: are the parts of the model modules, called by it?")
        logits, seen = observe(model, state, images, "*")
        batched = {name: jax.tree.map(lambda leaf: (len(images), *leaf.shape), tree) for name, tree in listed.items()}
        found = {name: jax.tree.map(jnp.shape, tree) for name, tree in seen.items()}
        differing = [name for name in sorted({*batched, *found}) if batched.get(name) != found.get(name)]
        subject.expect(not differing, f"{list_some(differing)} is seen otherwise")
        expected, given = to_numpy(_forward(model, state, images)[0]), to_numpy(logits)
        subject.expect(is_near(given, expected, 1e-3), f"they move by {_distance(given, expected)}")
