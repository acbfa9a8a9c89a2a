"""What is given to a public function by mistake: one sentence that names it, never what it ran into inside."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TINY, tiny_size

import eqx_vit as typed_eqx_vit

eqx_vit: Any = typed_eqx_vit  # type checkers refuse what is wrong here
KEY = jax.random.key(0)
VIT, VIT_STATE = eqx_vit.create_abstract(TINY["vit"])
LEVIT, LEVIT_STATE = eqx_vit.create_abstract(TINY["levit"])
_, WIDER_STATE = eqx_vit.create_abstract(TINY["levit"], dim=24)
IMAGE = jnp.zeros((*tiny_size("vit"), 3))
LEVIT_IMAGE = jnp.zeros((*tiny_size("levit"), 3))


def forward(model: Any = LEVIT, state: Any = LEVIT_STATE, images: Any = LEVIT_IMAGE[None], key: Any = KEY) -> object:
    inference = eqx_vit.inference_mode(model) if isinstance(model, eqx.Module) else model
    return eqx.filter_eval_shape(eqx_vit.forward, inference, state, images, key)


def call(image: Any = LEVIT_IMAGE, state: Any = LEVIT_STATE, key: Any = KEY) -> object:
    return eqx.filter_eval_shape(eqx_vit.inference_mode(LEVIT), image, state, key=key)


def load_state_dict(
    model: Any = VIT,
    state: Any = VIT_STATE,
    state_dict: Any = None,
    source: Any = "timm",
    skip: Any = (),
    num_classes: Any = 5,
    image_size: Any = 16,
    channels: Any = 3,
) -> object:
    requests = {"num_classes": num_classes, "image_size": image_size, "channels": channels}
    return eqx_vit.weights.load_state_dict(model, state, state_dict, source=source, skip=skip, **requests)


# What each takes by default is right, but for those whose own work no test here needs: weights, files.
FUNCTIONS: dict[str, Callable[..., object]] = {
    "create": lambda config=None, pretrained=None, key=None: eqx_vit.create(config, pretrained=pretrained, key=key),
    "create_abstract": lambda config=TINY["vit"]: eqx_vit.create_abstract(config),
    "forward": forward,
    "call": call,
    "observe": lambda model=LEVIT, state=LEVIT_STATE, images=LEVIT_IMAGE[None], names="head", key=KEY: eqx_vit.observe(
        model, state, images, names, key
    ),
    "observable": lambda model=LEVIT, state=None, image_size=None: eqx_vit.observable(model, state, image_size),
    "feature_info": lambda model=LEVIT, state=None, image_size=None: eqx_vit.feature_info(model, state, image_size),
    "intermediates": lambda images=LEVIT_IMAGE[None], indices=None, norm=False, layout="map": eqx_vit.intermediates(
        LEVIT, LEVIT_STATE, images, indices, norm, layout=layout
    ),
    "attention_maps": lambda layers=None: eqx_vit.attention_maps(VIT, VIT_STATE, IMAGE[None], layers),
    "grad_cam": lambda classes=None: eqx_vit.grad_cam(VIT, VIT_STATE, IMAGE[None], classes),
    "list_models": lambda pattern="*": eqx_vit.list_models(pattern),
    "transform": lambda config=TINY["vit"]: eqx_vit.transform(config),
    "cast": lambda dtype=jnp.bfloat16: eqx_vit.cast(jnp.zeros(2), dtype),
    "save": lambda path=None, model=VIT, state=None: eqx_vit.save(path, model, state),
    "load": lambda path=None: eqx_vit.load(path),
    "replace_head": lambda num_classes=3, key=None: eqx_vit.replace_head(VIT, num_classes, key=key),
    "resize": lambda model=None, image_size=None: eqx_vit.resize(model, image_size),
    "load_state_dict": load_state_dict,
    "to_state_dict": lambda model=VIT, state=VIT_STATE, target=None: eqx_vit.weights.to_state_dict(
        model, state, target
    ),
    "read_weights": lambda path=None: eqx_vit.weights.read_weights(path),
    "preprocessing": lambda name="vit_tiny_patch16_224": eqx_vit.weights.preprocessing(name),
    "shapes": lambda model_class=eqx_vit.ViT, config=TINY["vit"], image_size=(16, 16): eqx_vit.testing.shapes(
        model_class, config, image_size
    ),
    "image_size_of": lambda config=TINY["vit"]: eqx_vit.testing.image_size_of(config),
}
WRONG: list[object] = [object(), 1.5, -1, [None], jnp.zeros((4, 4), dtype=int), eqx_vit.ViT, LEVIT, VIT_STATE, b""]


@pytest.mark.parametrize(
    ("function", "argument"),
    [(name, each) for name in FUNCTIONS for each in inspect.signature(FUNCTIONS[name]).parameters],
)
def test_what_is_wrong_is_named_in_one_sentence(function: str, argument: str) -> None:
    default = inspect.signature(FUNCTIONS[function]).parameters[argument].default
    for value in WRONG:
        if isinstance(value, type(default)) and default is not None:
            continue  # of the right kind
        with pytest.raises(ValueError, match=r"^.{10,800}(\n---|$)"):  # one line, but for a note of JAX's
            FUNCTIONS[function](**{argument: value})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: eqx_vit.forward(LEVIT_STATE, LEVIT, LEVIT_IMAGE[None]), "given a State as the model"),
        (lambda: eqx_vit.forward(LEVIT, VIT_STATE, LEVIT_IMAGE[None]), "the state lacks the statistics of stem"),
        (
            lambda: eqx_vit.forward(LEVIT, WIDER_STATE, LEVIT_IMAGE[None]),
            "statistics of 3 channels for .*, which has 2",
        ),
        (lambda: call(state=VIT_STATE), "it was not made with this model"),
        (lambda: LEVIT(LEVIT_IMAGE, LEVIT_STATE), "this LeViT has no floating-point parameters"),
        (lambda: VIT(IMAGE, key=5), "key must be one random key .* given 5"),
        (lambda: eqx_vit.list_models(None), "list_models: pattern must be of type str, given None"),
        (
            lambda: eqx_vit.weights.to_state_dict(LEVIT, VIT_STATE, "timm"),
            "the state lacks the statistics of .*: it was not made with this model",
        ),
        (lambda: eqx_vit.weights.load_state_dict(VIT, VIT_STATE, {}, source=None), "source must be of type str"),
        (lambda: eqx_vit.create(None, key=KEY), "create: config must be the name of a preset or a config"),
    ],
)
def test_the_sentence_says_what(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_the_state_may_be_a_keyword() -> None:
    model = eqx_vit.inference_mode(LEVIT)
    logits, _ = eqx.filter_eval_shape(model, LEVIT_IMAGE, state=LEVIT_STATE, key=KEY)
    assert logits.shape == (5,)


MODEL, STATE = eqx_vit.create(TINY["vit"], key=KEY)


@pytest.mark.parametrize(
    "run",
    [
        lambda: jax.device_put(MODEL)(IMAGE),
        lambda: jax.tree.map(jnp.asarray, MODEL)(IMAGE),
        lambda: jax.jit(lambda model: model(IMAGE))(jax.tree.map(jnp.asarray, MODEL)),
        lambda: jax.lax.scan(lambda model, _: (model, model(IMAGE)), jax.tree.map(jnp.asarray, MODEL), length=2),
        lambda: eqx_vit.forward(jax.device_put(eqx_vit.inference_mode(MODEL)), STATE, IMAGE[None]),
    ],
)
def test_a_flag_that_became_an_array_is_named(run: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"inference is an array.*eqx\.filter_jit.*eqx\.partition"):
        run()


def test_labels_that_optax_calls_are_named() -> None:
    labels = jax.tree.map(lambda _: "frozen", eqx_vit.trainable(MODEL))
    optimiser = optax.multi_transform({"frozen": optax.set_to_zero()}, labels)
    with pytest.raises(ValueError, match=r"given a ViT: .*lambda _: labels"):
        optimiser.init(eqx_vit.trainable(MODEL))
    optax.multi_transform({"frozen": optax.set_to_zero()}, lambda _: labels).init(eqx_vit.trainable(MODEL))


@pytest.mark.parametrize("name", ["levit", "deepvit"])
def test_batch_norm_refuses_one_value_a_channel(name: str) -> None:
    """DeepViT's are of maps, of which one image has many values."""
    model, state = eqx_vit.create_abstract(TINY[name])
    images = np.zeros((1, *tiny_size(name), 3), np.float32)
    run = lambda: eqx.filter_eval_shape(eqx_vit.forward, model, state, images, KEY)  # noqa: E731
    if name == "deepvit":
        run()
    else:
        with pytest.raises(ValueError, match="at least 2 images, or put the model in inference mode"):
            run()
