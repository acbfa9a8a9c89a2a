"""What a config refuses, and in which words; and what it takes for a number."""

import dataclasses
import functools
import itertools
import json
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import pytest
from cases import CASES, having, rows
from hypothesis import given, strategies as st
from tiny import TINY, compiled_model, tiny_size

import eqx_vit
from eqx_vit.layers.config import mentions, pair
from eqx_vit.model import PatchGridConfig
from eqx_vit.registry import config_from_json, config_to_json
from eqx_vit.testing import image_size_of
from eqx_vit.train.settings import SMALL_SETTINGS

NESTED = functools.reduce(lambda inner, _: [inner], range(9999), 1)


@pytest.mark.parametrize(("name", "row"), rows("REFUSED"))
def test_wrong_configs_are_refused(name: str, row: Any) -> None:
    changes, message = row
    with pytest.raises(ValueError, match=message):
        replace(CASES[name].TINY, **changes)


@pytest.mark.parametrize("name", having("refused"))
@given(data=st.data())
def test_drawn_configs_are_refused(name: str, data: st.DataObject) -> None:
    changes, message = data.draw(CASES[name].refused())
    with pytest.raises(ValueError, match=message):
        replace(CASES[name].TINY, **changes)


@pytest.mark.parametrize(("name", "row"), rows("REFUSED_SIZES"))
def test_wrong_sizes_are_refused(name: str, row: Any) -> None:
    changes, size, message = row
    with pytest.raises(ValueError, match=message):
        replace(CASES[name].TINY, **changes).check_image_size(*size)


@pytest.mark.parametrize("name", [name for name in CASES if isinstance(CASES[name].TINY, PatchGridConfig)])
@given(data=st.data())
def test_images_that_do_not_split_into_patches_are_refused(name: str, data: st.DataObject) -> None:
    config = CASES[name].TINY
    patch_size = pair(config.patch_size)[0]
    size = data.draw(st.integers(1, 64).filter(lambda size: size % patch_size))
    with pytest.raises(ValueError, match=rf"image_size {size} is not a multiple of \d+: use "):
        replace(config, image_size=size)


def float_fields(config: Any) -> dict[str, Any]:
    """The annotation of each field that may be a float."""
    return {field.name: field.type for field in dataclasses.fields(config) if mentions(field.type, float)}


def set_to(config: Any, name: str, number: Any) -> Any:
    """The config with a number in a field, or in both places of a pair."""
    pairs = name == "image_scale"
    return replace(config, **{name: (number, number) if pairs else number})


@pytest.mark.parametrize("name", TINY)
def test_an_int_is_a_float_to_a_config(name: str) -> None:
    for field, number in taken_ints(TINY[name]):
        given, same = (set_to(TINY[name], field, each) for each in (number, float(number)))
        assert (given, hash(given)) == (same, hash(same))
        assert repr(given) == repr(same) or mentions(float_fields(TINY[name])[field], int)
        assert config_from_json(json.loads(json.dumps(config_to_json(given)))) == given


@compiled_model
def test_a_model_can_be_made_with_every_int_that_its_config_takes(name: str) -> None:
    config = TINY[name]
    for field, number in taken_ints(config):
        config = set_to(config, field, number)
    model, state = eqx.filter_eval_shape(eqx_vit.create, config, key=jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *image_size_of(config, tiny_size(name)), config.channels), "float32")
    logits, _ = eqx.filter_eval_shape(eqx_vit.forward, model, state, images)
    assert logits.shape == (2, config.num_classes)


def taken_ints(config: Any) -> list[tuple[str, int]]:
    """(field, 0 or 1) of the numbers that the config takes; of the others the config says which field is wrong."""
    taken = []
    for field, number in itertools.product(float_fields(config), (0, 1)):
        try:
            set_to(config, field, number)
        except ValueError as error:
            assert field in str(error)  # noqa: PT017
        else:
            taken.append((field, number))
    return taken


@pytest.mark.parametrize("config", [*TINY.values(), SMALL_SETTINGS], ids=lambda config: type(config).__name__)
def test_a_number_that_is_negative_or_none_of_float32_is_refused_by_name(config: Any) -> None:
    numbers = (-1, -1e-30, float("inf"), float("nan"), 1e300, 10**400, -(10**5000))
    for field, number in itertools.product(float_fields(config), numbers):
        with pytest.raises(ValueError, match=rf"\b{field}\b") as raised:
            set_to(config, field, number)
        assert_one_short_line(raised.value)


@pytest.mark.parametrize("value", [10**400, 10**5000, "x" * 10_000, [[[[1]]]], NESTED], ids=range(5))
def test_a_message_is_short_whatever_is_given(value: Any) -> None:
    with pytest.raises(ValueError, match=r"ViTConfig\.dim must be int, given") as raised:
        replace(TINY["vit"], dim=value)
    assert_one_short_line(raised.value)


def assert_one_short_line(error: BaseException) -> None:
    assert len(str(error)) < 250
    assert "\n" not in str(error)
