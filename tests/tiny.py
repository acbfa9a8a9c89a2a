"""The smallest sensible configuration of each architecture, and which of them a generic test runs by default."""

from collections.abc import Iterable
from typing import Any

import pytest
from cases import CASES

from eqx_vit.testing import image_size_of

TINY: dict[str, Any] = {name: case.TINY for name, case in CASES.items()}
ONE_OF_EACH_KIND = ("vit", "levit", "cait", "t2t")


def tiny_size(name: str) -> tuple[int, int]:
    """(height, width) of the images that the generic tests give to a model."""
    return image_size_of(TINY[name], getattr(CASES[name], "IMAGE_SIZE", (32, 32)))


def marks_but_for(names: Iterable[str], name: str) -> tuple[pytest.MarkDecorator, ...]:
    """The marks of a model's test that runs by default for some models alone: what compiles much is for the slow
    session."""
    return () if name in names else (pytest.mark.slow,)


def slow_but_for(*names: str) -> pytest.MarkDecorator:
    """A test of every model, by default of these alone."""
    models = [pytest.param(name, marks=marks_but_for(names, name)) for name in TINY]
    return pytest.mark.parametrize("name", models)


compiled_model = slow_but_for(*ONE_OF_EACH_KIND)
