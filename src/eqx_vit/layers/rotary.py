"""Rotary positions: queries and keys turned by angles that grow with a patch's place."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eqx_vit.layers.upcast import upcast


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles, one angle for each pair of channels of a head."""

    cosine: Float[Array, "tokens pairs"]
    sine: Float[Array, "tokens pairs"]


def rotary_2d(rows: int, columns: int, head_dim: int, *, prefix: int = 0, base: float = 100.0) -> Rotation:
    """The angles of DINOv3 (arXiv 2508.10104, section 3.2): `2 pi place / base ** (k / (head_dim / 4))`.

    A patch's place is its centre on an image that reaches from -1 to 1 in both axes, whatever its size; the first half
    of the angles is of the row, the second of the column. `prefix` tokens before the patches are not turned.

    **Arguments:** `head_dim`: a multiple of 4; `base`: the longest period, the shortest being 1.
    """
    periods = base ** (np.arange(head_dim // 4) / (head_dim // 4))
    down, across = (2 * (np.arange(length) + 0.5) / length - 1 for length in (rows, columns))
    places = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(rows * columns, 2)
    angles = (2 * math.pi * places[..., None] / periods).reshape(rows * columns, -1)
    angles = np.concatenate([np.zeros((prefix, angles.shape[1])), angles])
    return Rotation(jnp.asarray(np.cos(angles), dtype=jnp.float32), jnp.asarray(np.sin(angles), dtype=jnp.float32))


def rotate(x: Float[Array, "tokens heads head_dim"], rotation: Rotation) -> Float[Array, "tokens heads head_dim"]:
    """Each pair of channels (k, k + head_dim / 2) turned by its angle (RoFormer, arXiv 2104.09864, section 3.2.2).

    Computed in float32, returned in the dtype of `x`.
    """
    first, second = jnp.split(upcast(x), 2, axis=-1)
    cosine, sine = (jnp.broadcast_to(part.astype(first.dtype)[:, None], first.shape) for part in rotation)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)
