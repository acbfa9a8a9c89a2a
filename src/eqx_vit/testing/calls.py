"""Contracts of what a model is called with and returns: it is traced, and nothing is compiled."""

import re
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array

from eqx_vit.create import create_abstract
from eqx_vit.forward import forward
from eqx_vit.layers import dropout_active
from eqx_vit.layers.config import Size, no_type_check
from eqx_vit.parameters import cast
from eqx_vit.registry import AnyConfig, AnyModel
from eqx_vit.testing.sizes import shapes_of
from eqx_vit.testing.subject import Subject, contract

# What draws random numbers, as a jaxpr names it.
RANDOM = re.compile(r"\b(random_(bits|wrap|unwrap|split|fold_in|seed|gamma)|threefry2x32|rng_\w+)\b")


@no_type_check
def check_shapes(config: AnyConfig, image_size: Size | None = None) -> None:
    """One image gives `num_classes` logits and a batch a row each; with `num_classes=0` the features for a head come
    out, and what `features` gives stays the same. Logits have the dtype of the parameters."""
    with contract(config, image_size, "logits have to be (num_classes,), in the dtype of the parameters") as subject:
        model, state = subject.abstract(0.0)
        features, logits = shapes_of(model, state, subject.image_size)
        subject.expect(logits == (config.num_classes,) or config.num_classes == 0, f"one image gives {logits}")
        batch = _trace_forward(eqx.filter_eval_shape(cast, model, jnp.bfloat16), state, subject.images(2))
        subject.expect(batch.shape == (2, *logits), f"two images give {batch.shape}")
        subject.expect(batch.dtype == jnp.bfloat16, f"parameters of bfloat16 give {batch.dtype}")
    with contract(config, image_size, "num_classes=0 has to give the features that the head would read") as subject:
        bare_features, bare = shapes_of(*create_abstract(config, num_classes=0), subject.image_size)
        subject.expect(len(bare) == 1 and bare[0] > 0, f"one image gives {bare}")
        subject.expect(bare_features == features, f"`features` are {features} with a head, and {bare_features} without")


@no_type_check
def check_wrong_images(config: AnyConfig, image_size: Size | None = None) -> None:
    """An image of a wrong rank, layout, dtype or size is refused with a `ValueError` that says what is wrong."""
    rule = "a wrong image has to be refused before anything is computed, with a ValueError that says what is wrong"
    with contract(config, image_size, rule) as subject:
        # Of the model there are only shapes: whatever it would compute raises another error.
        model, state = subject.abstract()
        rest = (state,) if isinstance(model, eqx.nn.StatefulLayer) else ()
        for message, (given, image) in _wrong_images(subject).items():
            for call in (model, model.features, model.logits_pair):
                _expect_refusal(subject, call, (image, *rest), given, message)


def _wrong_images(subject: Subject) -> Mapping[str, tuple[str, object]]:
    """Images that no model takes, described, by a pattern of the message that refuses them."""
    (height, width), channels = subject.image_size, subject.config.channels
    image = np.zeros((height, width, channels), np.float32)
    wrong: dict[str, tuple[str, object]] = {
        "batched": ("a batch", image[None]),
        "channel axis is missing": ("an image without channels", image[..., 0]),
        f"{channels + 2} channels": (
            "an image of two channels more",
            np.zeros((height, width, channels + 2), np.float32),
        ),
        "dtype": ("an image of whole numbers", image.astype(np.uint8)),
        "a list": ("a list", [[[0.0] * channels]]),
    }
    if channels not in (height, width):
        wrong["channels-first"] = ("an image with its channels first", np.moveaxis(image, -1, 0))
    larger = (height + 1, width)
    if not _takes(subject.config, larger):
        wrong[rf"{height + 1}\b"] = ("an image one pixel higher", np.zeros((*larger, channels), np.float32))
    return wrong


def _takes(config: AnyConfig, image_size: tuple[int, int]) -> bool:
    try:
        config.check_image_size(*image_size)
    except ValueError:
        return False
    return True


def _expect_refusal(
    subject: Subject, call: Callable[..., object], arguments: tuple[object, ...], given: str, message: str
) -> None:
    try:
        call(*arguments)
    except ValueError as error:
        subject.expect(re.search(message, str(error)) is not None, f"for {given} it says: {str(error)[:200]}")
    except Exception as error:  # whatever came of computing with it
        subject.expect(False, f"{given} raises a {type(error).__name__}")
    else:
        subject.expect(False, f"{given} is taken")


@no_type_check
def check_numpy_images(config: AnyConfig, image_size: Size | None = None) -> None:
    """Images of numpy are as good as those of JAX, in any floating-point dtype."""
    with contract(config, image_size, "images of numpy have to be taken") as subject:
        model, state = subject.abstract(0.0)
        image = np.asarray(subject.images(1))[0].astype(np.float64)
        rest = (state,) if isinstance(model, eqx.nn.StatefulLayer) else ()
        eqx.filter_eval_shape(lambda model, *rest: model(image, *rest), eqx.nn.inference_mode(model), *rest)
        images = np.asarray(subject.images(2)).astype(np.float16)
        logits = eqx.filter_eval_shape(lambda model, state: forward(model, state, images)[0], model, state)
        subject.expect(logits.dtype == jnp.float32, f"numpy's float16 gives logits of {logits.dtype}")


@no_type_check
def check_inference(config: AnyConfig, image_size: Size | None = None) -> None:
    """In inference mode, whatever the dropout rates, no key is needed, and none of its operations is random."""
    with contract(config, image_size, "inference has to need no key, and to hold no random operation") as subject:
        model, state = subject.abstract(0.5)
        model = eqx.nn.inference_mode(model)
        program, _, _ = eqx.filter_make_jaxpr(forward)(model, state, subject.images(2))
        found = RANDOM.search(str(program))
        subject.expect(found is None, f"{found and found[0]} is in its program")
        subject.expect(not dropout_active(model), "some dropout stays active")


def _trace_forward(model: AnyModel, state: State, images: Array) -> jax.ShapeDtypeStruct:
    return eqx.filter_eval_shape(forward, model, state, images)[0]
