"""What every architecture keeps, whatever its paper: the kit of `eqx_vit.testing`, and the tables of our own."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from beartype.door import is_bearable
from jaxtyping import jaxtyped
from tiny import ONE_OF_EACH_KIND, TINY, marks_but_for, tiny_size

import eqx_vit
from eqx_vit import MODELS, testing
from eqx_vit.layers import Stack
from eqx_vit.testing import COMPILED, TRACED, image_size_of, randomise, shapes

# The rows of the shape tables whose numbers are tested: those of `features`, one a branch, and of the logits.
STATED = re.compile("(norm|features)(, .*)?|head")
# Which models a contract is checked on by default. Of all of them `test_shapes.py` draws sizes, `test_golden.py` runs
# bfloat16 and `test_inspection.py` looks inside: what a contract says of these is left to the slow session.
BY_DEFAULT: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(TRACED, tuple(TINY)),
    **dict.fromkeys(COMPILED, ONE_OF_EACH_KIND),
    **dict.fromkeys((testing.check_shapes, testing.check_inference), ONE_OF_EACH_KIND),
    **dict.fromkeys((testing.check_numpy_images, testing.check_save_and_load), ("vit", "levit")),
    testing.check_image_sizes: ("vit",),
    testing.check_bfloat16: ("vit",),
    testing.check_observe: (),
}

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.mark.parametrize(
    ("check", "name"),
    [
        pytest.param(check, name, marks=marks_but_for(names, name), id=f"{check.__name__}-{name}")
        for check, names in BY_DEFAULT.items()
        for name in TINY
    ],
)
def test_contracts(check: Any, name: str) -> None:
    check(TINY[name], tiny_size(name))


@every_model
def test_presets_survive_json(name: str) -> None:
    for config in MODELS[name].presets.values():
        testing.check_config_json(config)


def test_each_model_has_a_tiny_config() -> None:
    assert set(TINY) == set(MODELS)


def drawn(name: str, rate: float = 0.0) -> tuple[Any, Any]:
    """The tiny model with every parameter random."""
    return randomise(TINY[name], rate)


def images_for(name: str, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(7), (batch, *tiny_size(name), TINY[name].channels))


@pytest.mark.parametrize("name", ["vit", "levit"])
def test_forward_refuses_what_is_not_a_batch(name: str) -> None:
    model, state = drawn(name)
    images, wrong = images_for(name), dict[str, Any](state=None, key=0)
    with pytest.raises(ValueError, match="one image is a batch of one"):
        eqx_vit.forward(model, state, images[0])
    with pytest.raises(ValueError, match="key must be one random key"):
        eqx_vit.forward(model, state, images, wrong["key"])


def test_a_model_with_batch_norm_needs_its_state_and_a_batch() -> None:
    model, state = drawn("levit")
    images, nothing = images_for("levit"), dict[str, Any](state=None)
    with pytest.raises(ValueError, match="create"):
        eqx_vit.forward(model, nothing["state"], images)
    bare = eqx_vit.LeViT(TINY["levit"], key=jax.random.key(0))
    with pytest.raises(ValueError, match="create"):
        eqx_vit.forward(bare, state, images)
    with pytest.raises(ValueError, match="BatchNorm is in training mode outside a batch"):
        model(images[0], state)


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
    model: Any = row.model  # a class, of each of our own
    features, logits = shapes(model, config, image_size_of(config))
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


def test_builds_the_same_within_a_compiled_function() -> None:
    key = jax.random.key(0)
    built = eqx.filter_jit(lambda: eqx_vit.create(TINY["levit"], key=key))()
    assert eqx.tree_equal(built, eqx_vit.create(TINY["levit"], key=key), rtol=1e-5, atol=1e-6)


def test_transform_refuses_what_is_not_a_config() -> None:
    fields: Any = {"dim": 8}
    with pytest.raises(ValueError, match="is not a config of this library: use one of ViTConfig"):
        eqx_vit.transform(fields)


def test_transform_names_arrays_that_are_missing_or_unexpected() -> None:
    init, apply = eqx_vit.transform(TINY["vit"])
    params, collections = init(jax.random.key(0))
    broken = {key: value for key, value in params.items() if key != "head"} | {"odd": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"missing params\.head.*unexpected params\.odd"):
        apply(broken, collections, None, images_for("vit"))
