"""The smallest sensible configuration of each architecture, and which of them a generic test runs by default."""

from typing import Any

import pytest
from cases import CASES

from eqx_vit.testing import image_size_of

TINY: dict[str, Any] = {name: case.TINY for name, case in CASES.items()}


def tiny_size(name: str) -> tuple[int, int]:
    """(height, width) of the images that the generic tests give to a model."""
    return image_size_of(TINY[name], getattr(CASES[name], "IMAGE_SIZE", (32, 32)))


def slow_but_for(*names: str) -> pytest.MarkDecorator:
    """A test of every model, by default of these alone: what compiles much is left to the slow session."""
    models = [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
    return pytest.mark.parametrize("name", models)


compiled_model = slow_but_for("vit", "levit", "cait", "t2t")  # one of each kind
