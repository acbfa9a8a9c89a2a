"""Initialisers with explicit fans: functions of (key, shape), named for what the papers' codes use."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

Initializer = Callable[[PRNGKeyArray, tuple[int, ...]], Array]


def constant(value: float) -> Initializer:
    """Every element `value`."""
    return lambda key, shape: jnp.full(shape, value, dtype=float)


def normal(std: float) -> Initializer:
    """Normal with mean 0."""
    return lambda key, shape: std * jax.random.normal(key, shape)


def truncated_normal(std: float = 0.02, *, sigmas: float | None = None) -> Initializer:
    """Normal cut at the absolute values -2 and 2, as PyTorch's `trunc_normal_` and timm have it.

    `sigmas` given, the cut is at so many standard deviations, as Flax's codes have it (a deviation of 0.88 std for 2).
    """
    cut = 2 / std if sigmas is None else sigmas
    if cut > 5.5:  # float32 has no normal numbers so far out, and jax.random would draw the cut itself, once in 2 ** 23
        return normal(std)
    return lambda key, shape: std * jax.random.truncated_normal(key, -cut, cut, shape)


def uniform(limit: float) -> Initializer:
    """Uniform in [-limit, limit]."""
    return lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def fan_in_uniform(fan_in: int) -> Initializer:
    """PyTorch's default for linear and convolution weights and biases: uniform within 1 / sqrt(fan_in)."""
    return uniform(1 / math.sqrt(fan_in))


def xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    """Glorot and Bengio (2010): uniform within sqrt(6 / (fan_in + fan_out))."""
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def xavier_normal(fan_in: int, fan_out: int) -> Initializer:
    """Glorot and Bengio (2010), the normal form: variance 2 / (fan_in + fan_out)."""
    return normal(math.sqrt(2 / (fan_in + fan_out)))


def fan_out_normal(*, groups: int = 1) -> Initializer:
    """He et al. (arXiv 1502.01852): variance 2 / fan_out, as the shape of a convolution in `groups` tells it."""
    return lambda key, shape: normal(math.sqrt(2 * groups / (shape[0] * math.prod(shape[2:]))))(key, shape)


def lecun_normal(fan_in: int) -> Initializer:
    """Flax's default: normal cut at two standard deviations, rescaled so that its variance is 1 / fan_in."""
    std = math.sqrt(1 / fan_in) / 0.87962566103423978  # the deviation of a unit normal cut at -2 and 2
    return lambda key, shape: std * jax.random.truncated_normal(key, -2, 2, shape)
