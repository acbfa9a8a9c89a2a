"""What every architecture keeps, whatever its paper: run over `MODELS` with the configs of `tiny.py`."""

import dataclasses
import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.door import is_bearable
from jaxtyping import jaxtyped
from tiny import TINY, compiled_model, tiny_size

import eqx_vit
from eqx_vit import MODELS
from eqx_vit.layers import Stack, dropout_active
from eqx_vit.model import FixedSizeConfig, StatefulImageModel
from eqx_vit.paths import named_leaves, named_statistics, with_named_statistics
from eqx_vit.testing import image_size_of, shapes

# Parameters that no gradient can reach, as name patterns with the reason.
WITHOUT_GRADIENT: dict[str, dict[str, str]] = {}

# The rows of the shape tables whose numbers are tested: those of `features`, one a branch, and of the logits.
STATED = re.compile("(norm|features)(, .*)?|head")

every_model = pytest.mark.parametrize("name", MODELS)


def test_each_model_has_a_tiny_config() -> None:
    assert set(TINY) == set(MODELS)


@functools.cache
def tiny(name: str) -> tuple[Any, Any]:
    """The tiny model as it is initialised."""
    return eqx_vit.create(TINY[name], key=jax.random.key(0))


def drawn(name: str, rate: float = 0.0) -> tuple[Any, Any]:
    """The tiny model with every parameter drawn by numpy: no initialisation hides behind zeros, and none compiles."""
    model, state = eqx.filter_eval_shape(
        eqx.nn.make_with_state(MODELS[name].model), with_rates(TINY[name], rate), key=jax.random.key(0)
    )
    random = np.random.default_rng(3)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(0.3 * random.standard_normal(leaf.shape), dtype=leaf.dtype)

    model = jax.tree.map(draw, model)
    # Fresh statistics: means 0, variances 1.
    statistics = named_statistics(model, state)
    fresh = {key: jnp.full(leaf.shape, key.endswith("var"), leaf.dtype) for key, leaf in statistics.items()}
    return model, with_named_statistics(model, state, fresh)


def images_for(name: str, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(7), (batch, *tiny_size(name), TINY[name].channels))


def with_rates(config: Any, rate: float) -> Any:
    """The config with every dropout and drop-path rate set."""
    names = [field.name for field in dataclasses.fields(config) if "drop" in field.name and field.type is float]
    return dataclasses.replace(config, **dict.fromkeys(names, rate))


@every_model
def test_trains_with_live_dropout(name: str) -> None:
    model, state = drawn(name, 0.2)
    images = images_for(name)

    @eqx.filter_grad(has_aux=True)
    def gradients_and_logits(model: Any) -> Any:
        logits, _ = eqx_vit.forward(model, state, images, jax.random.key(1))
        return jnp.sum(logits), logits

    gradients, logits = eqx.filter_eval_shape(gradients_and_logits, model)
    assert named_leaves(gradients).keys() == named_leaves(model).keys()
    assert logits.shape == (2, TINY[name].num_classes)


@compiled_model
def test_trains_under_jit_without_retracing(name: str) -> None:
    config = TINY[name]
    model, state = drawn(name, 0.2)
    images = images_for(name)

    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def step(model: Any, state: Any, key: Any) -> Any:
        def loss(model: Any) -> Any:
            logits, after = eqx_vit.forward(model, state, images, key)
            return jnp.sum(jnp.square(logits - 1)), (logits, after)

        (_, (logits, after)), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        return logits, after, gradients

    logits, after, gradients = step(model, state, jax.random.key(1))
    again, _, _ = step(model, after, jax.random.key(1))
    other, _, _ = step(model, after, jax.random.key(2))
    assert logits.shape == (2, config.num_classes)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((logits, after, gradients)))
    np.testing.assert_array_equal(logits, again)
    if dropout_active(model):
        assert not np.array_equal(logits, other)
    for key, statistic in named_statistics(model, after).items():
        assert not key.endswith("running_mean") or np.any(np.asarray(statistic)), key


@compiled_model
def test_every_parameter_receives_gradient(name: str) -> None:
    model, state = drawn(name)
    images = images_for(name, batch=3)
    cotangent = jax.random.normal(jax.random.key(5), (3, TINY[name].num_classes))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradients(model: Any) -> Any:
        return jnp.sum(eqx_vit.forward(model, state, images)[0] * cotangent)

    without = WITHOUT_GRADIENT.get(name, {})
    found = named_leaves(eqx_vit.trainable(gradients(model)))
    dead = [leaf for leaf, array in found.items() if not np.any(np.asarray(array))]
    assert {leaf for leaf in dead if not any(re.fullmatch(pattern, leaf) for pattern in without)} == set()
    for pattern in without:
        assert any(re.fullmatch(pattern, leaf) for leaf in found), f"{pattern} names no parameter"


@compiled_model
def test_inference_is_deterministic_and_per_image(name: str) -> None:
    model, state = drawn(name, 0.5)
    model = eqx_vit.inference_mode(model)
    images = images_for(name, batch=3)
    forward = eqx.filter_jit(eqx_vit.forward)
    logits, after = forward(model, state, images)
    with_key, _ = eqx_vit.forward(model, state, images, jax.random.key(0))
    np.testing.assert_allclose(with_key, logits, rtol=1e-4, atol=1e-4)
    swapped, _ = forward(model, state, images[::-1])
    np.testing.assert_allclose(swapped[::-1], logits, rtol=1e-4, atol=1e-4)
    assert eqx.tree_equal(state, after)
    text = str(jax.make_jaxpr(lambda images: eqx_vit.forward(model, state, images)[0])(images))
    assert "random_bits" not in text
    assert "threefry" not in text


@every_model
def test_live_dropout_needs_a_key(name: str) -> None:
    config = with_rates(TINY[name], 0.5)
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(MODELS[name].model), config, key=jax.random.key(0))
    if not dropout_active(model):
        pytest.skip("no rate to set")
    with pytest.raises(ValueError, match=r"pass key=jax.random.key\(...\).*inference_mode\(model\)"):
        eqx.filter_eval_shape(eqx_vit.forward, model, state, images_for(name))


@every_model
def test_wrong_images_are_refused_with_the_way_out(name: str) -> None:
    config = TINY[name]
    model, state = drawn(name)
    (height, width), channels = tiny_size(name), config.channels
    rest = (state,) if isinstance(model, StatefulImageModel) else ()
    image = np.zeros((height, width, channels), np.float32)
    wrong = {
        r"looks channels-first, use jnp.moveaxis\(image, 0, -1\)": np.moveaxis(image, -1, 0),
        r"looks batched, use jax.vmap\(model\)": image[None],
        "the channel axis is missing": image[..., 0],
        rf"its last axis has {channels + 2} channels": np.zeros((height, width, channels + 2), np.float32),
        "given dtype uint8: scale it first": image.astype(np.uint8),
        "given a list: convert it": image.tolist(),
    }
    if type(config).check_image_size is FixedSizeConfig.check_image_size:
        wrong[f"this {type(model).__name__} takes images of"] = np.zeros((height + 1, width, channels), np.float32)
    for message, array in wrong.items():
        for call in (model, model.features, model.logits_pair):
            with pytest.raises(ValueError, match=message):
                call(array, *rest)


@every_model
def test_forward_refuses_what_is_not_a_batch(name: str) -> None:
    model, state = drawn(name)
    images, wrong = images_for(name), dict[str, Any](state=None, key=0)
    with pytest.raises(ValueError, match="one image is a batch of one"):
        eqx_vit.forward(model, state, images[0])
    with pytest.raises(ValueError, match="key must be one random key"):
        eqx_vit.forward(model, state, images, wrong["key"])
    if isinstance(model, StatefulImageModel):
        with pytest.raises(ValueError, match="create"):
            eqx_vit.forward(model, wrong["state"], images)
        make: Any = MODELS[name].model
        bare = make(TINY[name], key=jax.random.key(0))
        with pytest.raises(ValueError, match="create"):
            eqx_vit.forward(bare, state, images)
        with pytest.raises(ValueError, match="BatchNorm is in training mode outside a batch"):
            model(images[0], state)


@compiled_model
def test_head_swap(name: str) -> None:
    model, state = tiny(name)
    images = images_for(name)
    swapped = eqx_vit.replace_head(model, 9, key=jax.random.key(1))
    assert swapped.config.num_classes == 9
    assert eqx.filter_eval_shape(eqx_vit.forward, swapped, state, images)[0].shape == (2, 9)
    before, after = named_leaves(model), named_leaves(swapped)
    for leaf, array in before.items():
        if not leaf.startswith("head"):
            np.testing.assert_array_equal(after[leaf], array, err_msg=leaf)
    headless = eqx_vit.replace_head(model, 0, key=jax.random.key(1))
    assert not [leaf for leaf in named_leaves(headless) if leaf.startswith("head")]
    eqx.filter_eval_shape(eqx_vit.forward, headless, state, images)
    back = eqx_vit.replace_head(headless, 9, key=jax.random.key(1))
    assert set(named_leaves(back)) == set(before)


@every_model
def test_config_survives_json(name: str) -> None:
    for config in (TINY[name], *MODELS[name].presets.values()):
        fields = json.loads(json.dumps(dataclasses.asdict(config)))
        assert type(config)(**fields) == config
        hash(type(config)(**fields))


@every_model
def test_wrong_configs_are_refused_by_field(name: str) -> None:
    config = TINY[name]
    title = type(config).__name__
    wrong = {
        rf"{title}.num_classes must be int, given '5' \(str\)": {"num_classes": "5"},
        rf"{title}.num_classes must not be negative": {"num_classes": -1},
        rf"{title}.channels must be int, given True \(bool\)": {"channels": True},
        rf"{title}.channels must be at least 1": {"channels": 0},
        rf"{title} has no field 'dimm'.*its fields are": {"dimm": 3},
    }
    for message, changes in wrong.items():
        with pytest.raises(ValueError, match=message):
            eqx_vit.create(config, key=jax.random.key(0), **changes)
    for field in dataclasses.fields(config):
        if "drop" in field.name and field.type is float:
            with pytest.raises(ValueError, match=field.name):
                dataclasses.replace(config, **{field.name: 1.0})


@every_model
def test_presets_have_the_exact_parameter_counts(name: str) -> None:
    row = MODELS[name]
    source = Path(inspect.getfile(row.model)).read_text()
    for preset, config in row.presets.items():
        stated = re.search(rf'"{re.escape(preset)}":[^#]*# ([\d,]+)', source)
        assert stated, f"{preset} states no parameter count"
        model = eqx.filter_eval_shape(row.model, config, key=jax.random.key(0))
        assert eqx_vit.count_params(eqx.nn.delete_init_state(model)) == int(stated[1].replace(",", "")), preset
    assert set(row.weights) <= set(row.presets)


@every_model
def test_shapes_in_the_docstring_are_those_of_the_preset(name: str) -> None:
    """A table has the columns step, shape, and that of one preset, whose name is in the header."""
    row = MODELS[name]
    lines = [re.split(r"\s{2,}", line.strip()) for line in (row.model.__doc__ or "").splitlines()]
    header, *table = [cells for cells in lines if len(cells) == 3]
    assert header[:2] == ["step", "shape"]
    stated = {step: tuple(map(int, numbers.split())) for step, _, numbers in table if STATED.fullmatch(step)}
    config = row.presets[header[2]]
    features, logits = shapes(row.model, config, image_size_of(config))
    assert stated.pop("head") == logits
    assert list(stated.values()) == (list(features) if isinstance(features[0], tuple) else [features])


@every_model
def test_fields_hold_what_their_annotations_say(name: str) -> None:
    """Jaxtyping does not check the fields of a module that has its own `__init__`: here is that check."""
    model, _ = drawn(name)
    for path, module in modules(model):
        with jaxtyped("context"):
            for field in dataclasses.fields(module):
                value = getattr(module, field.name)
                hint: Any = field.type
                assert is_bearable(value, hint), f"{path}.{field.name}: {value!r} is not a {hint}"


def modules(node: Any, path: str = "model") -> list[tuple[str, Any]]:
    """Every module inside `node`; of a `Stack` its first block, since the stack's arrays have one axis more."""
    if isinstance(node, Stack):
        return modules(node[0], f"{path}[0]") if len(node) else []
    if isinstance(node, eqx.nn.StateIndex):
        return []
    if isinstance(node, eqx.Module):
        inner = [modules(getattr(node, field.name), f"{path}.{field.name}") for field in dataclasses.fields(node)]
        return [(path, node), *(found for part in inner for found in part)]
    if isinstance(node, tuple):
        return [found for index, part in enumerate(node) for found in modules(part, f"{path}.{index}")]
    return []


@every_model
def test_no_two_blocks_start_equal(name: str) -> None:
    model, _ = tiny(name)
    weights = [
        leaf
        for path, leaf in jax.tree.map(np.asarray, named_leaves(model)).items()
        if path.endswith("weight") and leaf.ndim > 1 and np.std(leaf) > 0
    ]
    seen = [row.tobytes() for weight in weights for row in (weight if weight.ndim in (3, 5) else weight[None])]
    assert len(set(seen)) == len(seen)


def test_builds_the_same_within_a_compiled_function() -> None:
    key = jax.random.key(0)
    built = eqx.filter_jit(lambda: eqx_vit.create(TINY["levit"], key=key))()
    assert eqx.tree_equal(built, tiny("levit"), rtol=1e-5, atol=1e-6)


@every_model
def test_decay_reaches_weights_alone(name: str) -> None:
    model, _ = drawn(name)
    parameters = eqx_vit.trainable(model)
    mask = eqx_vit.decay_mask(model)
    assert jax.tree.structure(mask) == jax.tree.structure(parameters)
    assert jax.tree.leaves(eqx_vit.decay_mask(parameters)) == jax.tree.leaves(mask)
    decayed = {
        path for path, leaf in named_leaves(jax.tree.map(lambda p, m: p if m else None, parameters, mask)).items()
    }
    assert decayed
    assert all(path.endswith("weight") and "norm" not in path.split(".")[-2] for path in decayed)


def test_transform_refuses_what_is_not_a_config() -> None:
    fields: Any = {"dim": 8}
    with pytest.raises(ValueError, match="is not a config of this library: use one of ViTConfig"):
        eqx_vit.transform(fields)


@compiled_model
def test_transform_gives_the_same_numbers(name: str) -> None:
    model, state = tiny(name)
    images = images_for(name)
    init, apply = eqx_vit.transform(TINY[name])
    params, collections = init(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == eqx_vit.count_params(model)
    logits, after = eqx.filter_jit(apply)(params, collections, None, images)
    expected, _ = eqx.filter_jit(eqx_vit.forward)(eqx_vit.inference_mode(model), state, images)
    np.testing.assert_array_equal(logits, expected)
    assert jax.tree.structure(after) == jax.tree.structure(collections)
    broken = {key: value for key, value in params.items() if key != "head"} | {"odd": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"missing params\.head.*unexpected params\.odd"):
        apply(broken, collections, None, images)
