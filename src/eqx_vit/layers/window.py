"""Windows of a map, and the relative positions inside one."""

import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from eqx_vit.layers.sharding import keep_whole


def to_windows(x: Float[Array, "height width dim"], window: tuple[int, int]) -> Float[Array, "windows positions dim"]:
    """The map cut into windows of (height, width), each flattened row-major."""
    return keep_whole(rearrange(x, "(a h) (b w) d -> (a b) (h w) d", h=window[0], w=window[1]))


def from_windows(
    windows: Float[Array, "windows positions dim"], window: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "height width dim"]:
    """The inverse of `to_windows`, for a map of (height, width) `size`."""
    rows = size[0] // window[0]
    return keep_whole(rearrange(windows, "(a b) (h w) d -> (a h) (b w) d", a=rows, h=window[0], w=window[1]))


def grid_coordinates(rows: int, columns: int) -> Int[np.ndarray, "positions 2"]:
    """(row, column) of each position of a grid, row-major."""
    return np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)


def relative_position_index(rows: int, columns: int) -> Int[np.ndarray, "positions positions"]:
    """Index of (query - key) into a row-major table of `(2 rows - 1) * (2 columns - 1)` offsets (Swin's order)."""
    coordinates = grid_coordinates(rows, columns)
    offset = coordinates[:, None] - coordinates[None] + np.array([[[rows - 1, columns - 1]]])
    return offset[..., 0] * (2 * columns - 1) + offset[..., 1]
