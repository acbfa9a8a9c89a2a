"""Hypothesis strategies that the case files of several architectures share."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st


def draw_patch_grid(draw: st.DrawFn, tiny: Any, **choices: st.SearchStrategy[Any]) -> tuple[Any, int, int]:
    """(config, rows, columns): `tiny` with another grid of patches, another width and depth, and the drawn choices."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    height, width, heads = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    config = replace(
        tiny,
        image_size=(rows * height, columns * width),
        patch_size=(height, width),
        dim=8 * heads,
        heads=heads,
        depth=draw(st.integers(1, 3)),
        channels=draw(st.integers(1, 4)),
        **{name: draw(choice) for name, choice in choices.items()},
    )
    return config, rows, columns
