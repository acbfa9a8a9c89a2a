"""The Hypothesis strategy that the case files of several architectures share."""

from typing import Any

from hypothesis import strategies as st

from eqx_vit.testing.strategies import patch_grid_configs


def draw_patch_grid(draw: st.DrawFn, tiny: Any, **choices: st.SearchStrategy[Any]) -> tuple[Any, int, int]:
    """(config, rows, columns): `tiny` with another grid of patches, another width and depth, and the drawn choices."""
    return draw(patch_grid_configs(tiny, choices))
