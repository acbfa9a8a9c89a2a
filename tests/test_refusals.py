"""What a config refuses, and in which words."""

from dataclasses import replace
from typing import Any

import pytest
from cases import CASES, having, rows
from hypothesis import given, strategies as st

from eqx_vit.layers.config import pair
from eqx_vit.model import PatchGridConfig


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
