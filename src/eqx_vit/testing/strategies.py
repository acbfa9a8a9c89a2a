"""Hypothesis strategies of sizes and configs, for property tests. Needs Hypothesis, which the package does not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("eqx_vit.testing.strategies needs Hypothesis: pip install hypothesis") from error

from eqx_vit.layers.config import no_type_check, pair
from eqx_vit.registry import AnyConfig


def image_sizes(near: int | tuple[int, int] = 32) -> st.SearchStrategy[tuple[int, int]]:
    """(height, width) in pixels: half, once, one and a half times and twice those of a size, and any in between."""

    def sides(side: int) -> st.SearchStrategy[int]:
        multiples = [max(side * halves // 2, 1) for halves in (2, 4, 3, 1)]
        return st.sampled_from(multiples) | st.integers(1, 2 * side)

    height, width = pair(near)
    return st.tuples(sides(height), sides(width))


@st.composite
@no_type_check
def patch_grids(
    draw: st.DrawFn, most_patches: int = 6, largest_patch: int = 9
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(image size, patch size, (rows, columns) of patches), where the image splits into patches."""
    rows, columns = draw(st.integers(1, most_patches)), draw(st.integers(1, most_patches))
    height, width = draw(st.integers(1, largest_patch)), draw(st.integers(1, largest_patch))
    return (rows * height, columns * width), (height, width), (rows, columns)


def heads_and_dims(most_heads: int = 4, dim_head: int = 8) -> st.SearchStrategy[tuple[int, int]]:
    """(heads, dim), where dim is `dim_head` for each head."""
    return st.integers(1, most_heads).map(lambda heads: (heads, dim_head * heads))


@st.composite
@no_type_check
def patch_grid_configs(
    draw: st.DrawFn, config: AnyConfig, choices: Mapping[str, st.SearchStrategy[Any]] | None = None
) -> tuple[Any, int, int]:
    """(config, rows, columns): a config with another grid of patches, another width and depth, and drawn fields.

    **Arguments:** `config` has the fields of a plain ViT: `image_size`, `patch_size`, `dim`, `heads`, `depth`;
    `choices`: strategies of further fields, by name.
    """
    image_size, patch_size, (rows, columns) = draw(patch_grids())
    heads, dim = draw(heads_and_dims())
    fields = {"image_size": image_size, "patch_size": patch_size, "dim": dim, "heads": heads}
    fields |= {"depth": draw(st.integers(1, 3)), "channels": draw(st.integers(1, 4))}
    fields |= {name: draw(choice) for name, choice in (choices or {}).items()}
    return replace(config, **fields), rows, columns
