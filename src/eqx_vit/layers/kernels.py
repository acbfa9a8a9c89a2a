"""What exists for speed alone, and the one place where the backend decides between it and the plain formulation.

All of it was measured with XLA's CPU backend, beside the plain formulation: GPUs and TPUs get the plain one, and long
attention as `jax.nn.dot_product_attention` (XLA's: cuDNN is not requested). The choice is made when a program is
lowered, not when it is traced, so that what is exported for a GPU on a machine without one is the program for a GPU.
What the backward pass keeps stands in `remat.py`.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from eqx_vit.layers.keys import stack_or_none
from eqx_vit.layers.remat import remat_except_saved
from eqx_vit.layers.upcast import upcast

Result = TypeVar("Result")
Padding = tuple[tuple[int, int], tuple[int, int]]

MAX_SCORES = 2**20  # attention scores of an image in one chunk, 4 MiB
MAX_HIDDEN = 2**18  # hidden features of an image in one chunk, 1 MiB


def choose_by_backend(*operands: PyTree, cpu: Callable[..., Result], default: Callable[..., Result]) -> Result:
    """`cpu(*operands)` where the program is lowered for a CPU, `default(*operands)` elsewhere."""
    return jax.lax.platform_dependent(*operands, cpu=cpu, default=default)


def _loop(function: Callable[..., Array], chunks: PyTree) -> Array:
    return jax.lax.map(remat_except_saved(lambda chunk: function(*chunk)), chunks)


def _batch(function: Callable[..., Array], chunks: PyTree) -> Array:
    return jax.vmap(lambda chunk: function(*chunk))(chunks)


def _join(chunks: Shaped[Array, "count _length ..."], length: int) -> Shaped[Array, "length ..."]:
    return chunks.reshape(-1, *chunks.shape[2:])[:length]


def split_into_chunks(x: Shaped[Array, "..."] | None, axis: int, count: int) -> Shaped[Array, "..."] | None:
    """`count` equal chunks along an axis, stacked; padded with zeros where it does not divide."""
    if x is None:
        return None
    length = -(-x.shape[axis] // count)
    padding = [(0, length * count - size if at == axis else 0) for at, size in enumerate(x.shape)]
    split = jnp.pad(x, padding).reshape(*x.shape[:axis], count, length, *x.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)


def map_queries(
    attend: Callable[..., Float[Array, "_queries heads value_dim"]],
    query: Float[Array, "queries heads head_dim"],
    bias: Float[Array, "_heads queries keys"] | None,
    mask: Bool[Array, "_heads queries keys"] | None,
    dropout_key: PRNGKeyArray | None,
    *,
    default: Callable[..., Float[Array, "queries heads value_dim"]] | None,
) -> Float[Array, "queries heads value_dim"]:
    """`attend(query, bias, mask, dropout_key)` of some queries at a time on a CPU, elsewhere `default` of all.

    Without `default`, of all chunks at once. A chunk has 64 queries at least, and 128 rows of scores: the products of
    smaller ones are slower than what the cache saves.
    """
    queries, heads = query.shape[:2]
    count = math.ceil(queries / max(64, 128 // heads))

    def map_chunks(mapping: Callable[..., Array], *operands: Array | None) -> Array:
        query, bias, mask, key = operands
        split = split_into_chunks
        chunks = (split(query, 0, count), split(bias, 1, count), split(mask, 1, count), stack_or_none(key, count))
        return _join(mapping(attend, chunks), queries)

    loop, batch = functools.partial(map_chunks, _loop), functools.partial(map_chunks, _batch)
    return choose_by_backend(query, bias, mask, dropout_key, cpu=loop, default=default or batch)


def map_rows(
    function: Callable[..., Float[Array, "_rows dim"]],
    x: Float[Array, "*positions dim"],
    key: PRNGKeyArray | None,
    hidden_dim: int,
) -> Float[Array, "*positions dim"]:
    """`function(rows, key)`; on a CPU of some positions at a time, where their `hidden_dim` features exceed the cache.

    What is between its operands and its result then stays in the cache, and is computed again in the backward pass:
    forward passes of long sequences are 5 to 18 % faster. Not where the layer is as wide as a quarter of the rows: each
    chunk would read its weights again.
    """
    length = math.prod(x.shape[:-1])
    if length * hidden_dim <= MAX_HIDDEN or length <= 4 * hidden_dim:
        return function(x, key)
    count = math.ceil(length * hidden_dim / MAX_HIDDEN)

    def loop(x: Array, key: PRNGKeyArray | None) -> Array:
        chunks = (split_into_chunks(x.reshape(-1, x.shape[-1]), 0, count), stack_or_none(key, count))
        return _join(_loop(function, chunks), length).reshape(x.shape)

    # A lambda: JAX hashes what it is given, and a method of a module that holds arrays has no hash.
    return choose_by_backend(x, key, cpu=loop, default=lambda x, key: function(x, key))


def map_windows(
    function: Callable[..., Float[Array, "positions dim"]],
    windows: Float[Array, "windows positions dim"],
    keys: Array | None,
) -> Float[Array, "windows positions dim"]:
    """`function(window, key)` of each window; on a CPU of two at a time (one, where their number is odd).

    What attention makes of more leaves the processor's cache: a forward pass of NesT-T takes 9 % less processor time
    than with all windows at once.
    """
    size = math.gcd(len(windows), 2)

    def loop(windows: Array, keys: Array | None) -> Array:
        chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (windows, keys))
        return _join(_loop(jax.vmap(function), chunks), len(windows))

    return choose_by_backend(windows, keys, cpu=loop, default=jax.vmap(function))


def softmax(scores: Float[Array, "*batch keys"]) -> Float[Array, "*batch keys"]:
    """Softmax over the last axis; on a CPU its backward pass keeps the weights alone, not the exponentials too."""
    return choose_by_backend(scores, cpu=_softmax, default=jax.nn.softmax)


@jax.custom_jvp
def _softmax(scores: Float[Array, "*batch keys"]) -> Float[Array, "*batch keys"]:
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


@_softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (scores,), (tangent,) = primals, tangents
    weights = _softmax(scores)
    return weights, weights * (tangent - jnp.sum(weights * tangent, axis=-1, keepdims=True))


def per_image(bias: Float[Array, "*shape"], image_array: Float[Array, "..."]) -> Float[Array, "*shape"]:
    """The bias, on a CPU multiplied by a one of each image's own, so that its gradient is a product over the batch.

    XLA's CPU backend takes twenty times as long for the same sum over the first axis.
    """
    one = 1 + jnp.sum(jax.lax.stop_gradient(image_array[:0]), dtype=bias.dtype)
    return choose_by_backend(bias, one, cpu=_times_one, default=lambda bias, one: bias + (one - 1))


def _times_one(bias: Float[Array, "*shape"], one: Float[Array, ""]) -> Float[Array, "*shape"]:
    product = jnp.matmul(one.reshape(1, 1), bias.reshape(1, -1), precision=jax.lax.Precision.HIGHEST)
    return product.reshape(bias.shape)


def convolve_depthwise(
    x: Float[Array, "height width in"],
    weight: Float[Array, "out 1 kernel_height kernel_width"],
    *,
    stride: tuple[int, int],
    padding: Padding,
    default: Callable[..., Float[Array, "new_height new_width out"]],
) -> Float[Array, "new_height new_width out"]:
    """A depthwise convolution: on a CPU, whose backend has no kernel for it, as sums of products that XLA fuses."""
    if stride == weight.shape[2:] and padding == ((0, 0), (0, 0)):
        return choose_by_backend(x, weight, cpu=_sum_of_blocks, default=default)
    cpu = functools.partial(_sum_of_shifts, stride=stride, padding=padding)
    return choose_by_backend(x, weight, cpu=remat_except_saved(cpu), default=default)  # else all shifts are kept


def _sum_of_shifts(
    x: Float[Array, "height width in"],
    weight: Float[Array, "out 1 kernel_height kernel_width"],
    *,
    stride: tuple[int, int],
    padding: Padding,
) -> Float[Array, "new_height new_width out"]:
    """For each element of the kernel, the map shifted (and strided) times the weights."""
    taps = rearrange(upcast(weight), "c 1 h w -> h w c")
    padded = jnp.pad(_repeat_channels(upcast(x), taps.shape[-1]), (*padding, (0, 0)))
    return _correlate(padded, taps, stride).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _correlate(
    x: Float[Array, "height width channels"],
    taps: Float[Array, "kernel_height kernel_width channels"],
    stride: tuple[int, int],
) -> Float[Array, "new_height new_width channels"]:
    last_row, last_column = x.shape[0] - taps.shape[0], x.shape[1] - taps.shape[1]

    def product(row: int, column: int) -> Array:
        limits = (row + last_row + 1, column + last_column + 1, x.shape[-1])
        shifted = jax.lax.slice(x, (row, column, 0), limits, (*stride, 1))
        return shifted * jnp.broadcast_to(taps[row, column], shifted.shape)

    return functools.reduce(jnp.add, itertools.starmap(product, np.ndindex(taps.shape[:2])))


@_correlate.defjvp
def _correlate_jvp(
    stride: tuple[int, int], primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The map's tangent is a sum of padded maps, whose transpose is a sum of slices: the other way XLA is slow."""
    (x, taps), (x_tangent, taps_tangent) = primals, tangents
    height, width = taps.shape[0] - 1, taps.shape[1] - 1

    def product(row: int, column: int) -> Array:
        shifts = ((height - row, row), (width - column, column), (0, 0))
        return jnp.pad(x_tangent * jnp.broadcast_to(taps[row, column], x.shape), shifts)

    padded = functools.reduce(jnp.add, itertools.starmap(product, np.ndindex(taps.shape[:2])))
    inner = jax.lax.slice(padded, (height, width, 0), x.shape, (*stride, 1))
    return _correlate(x, taps, stride), inner + _correlate(x, taps_tangent, stride)


def _sum_of_blocks(
    x: Float[Array, "height width in"], weight: Float[Array, "out 1 kernel_height kernel_width"]
) -> Float[Array, "new_height new_width out"]:
    """Where the kernel is the stride: a weighted sum over each block of the map."""
    channels, _, height, width = weight.shape
    whole = upcast(x)[: x.shape[0] // height * height, : x.shape[1] // width * width]
    blocks = rearrange(_repeat_channels(whole, channels), "(a h) (b w) c -> a b h w c", h=height, w=width)
    weights = rearrange(upcast(weight), "c 1 h w -> 1 1 h w c")
    return jnp.sum(blocks * jnp.broadcast_to(weights, blocks.shape), axis=(2, 3)).astype(x.dtype)


def _repeat_channels(x: Float[Array, "height width in"], channels: int) -> Float[Array, "height width out"]:
    """Each channel as often as it has filters; they lie side by side."""
    return repeat(x, "h w c -> h w (c filters)", filters=channels // x.shape[-1])


def max_pool(
    x: Float[Array, "height width dim"], size: int, stride: int, padding: tuple[int, int]
) -> Float[Array, "new_height new_width dim"]:
    """The largest value of each window; on a CPU one axis after the other, as maxima of strided slices, since the
    gradient of XLA's own is several times slower there.
    """
    cpu = functools.partial(_maxima_of_slices, size=size, stride=stride, padding=padding)
    default = functools.partial(_reduce_windows, size=size, stride=stride, padding=padding)
    return choose_by_backend(x, cpu=cpu, default=default)


def _maxima_of_slices(x: Array, size: int, stride: int, padding: tuple[int, int]) -> Array:
    for axis in (0, 1):
        around = [(0, 0), (0, 0), (0, 0)]
        around[axis] = padding
        padded = jnp.pad(x, around, constant_values=-jnp.inf)
        reach = (padded.shape[axis] - size) // stride * stride + 1
        x = jax.lax.slice_in_dim(padded, 0, reach, stride, axis)
        for start in range(1, size):
            x = jnp.maximum(x, jax.lax.slice_in_dim(padded, start, start + reach, stride, axis))
    return x


def _reduce_windows(x: Array, size: int, stride: int, padding: tuple[int, int]) -> Array:
    least = np.array(-np.inf, dtype=x.dtype)  # NumPy's: of a traced one JAX cannot tell that it is the least
    return jax.lax.reduce_window(
        x, least, jax.lax.max, (size, size, 1), (stride, stride, 1), (padding, padding, (0, 0))
    )


def scale_about_mean(
    x: Float[Array, "*positions channels"],
    mean: Float[Array, " channels"],
    factor: Float[Array, " channels"],
    bias: Float[Array, " channels"],
) -> Float[Array, "*positions channels"]:
    """`(x - mean) * factor + bias`; on a CPU the mean's derivative shares with the bias the sum over the positions.

    With `mean_square_about`, a training step of LeViT is 3 to 6 % faster: it sums over the positions twice, not four
    times.
    """

    def plain(x: Array, mean: Array, factor: Array, bias: Array) -> Array:
        return (x - _like(mean, x)) * _like(factor, x) + _like(bias, x)

    def about_constant(x: Array, mean: Array, factor: Array, bias: Array) -> Array:
        constant = jax.lax.stop_gradient(mean)
        return plain(x, constant, factor, bias - (mean - constant) * factor)

    return choose_by_backend(x, mean, factor, bias, cpu=about_constant, default=plain)


def mean_square_about(
    x: Float[Array, "*positions channels"], mean: Float[Array, " channels"]
) -> Float[Array, " channels"]:
    """The mean over the positions of `(x - mean) ** 2`; on a CPU no derivative sums over them for the mean."""

    def plain(x: Array, mean: Array) -> Array:
        return jnp.mean(jnp.square(x - _like(mean, x)), axis=tuple(range(x.ndim - 1)))

    def about_constant(x: Array, mean: Array) -> Array:
        constant = jax.lax.stop_gradient(mean)
        # The second term, zero where `mean` is that of all positions, keeps the derivatives of every order exact.
        return plain(x, constant) - jnp.square(mean - constant)

    return choose_by_backend(x, mean, cpu=about_constant, default=plain)


def _like(channels: Array, x: Array) -> Array:
    return jnp.broadcast_to(channels, x.shape)
