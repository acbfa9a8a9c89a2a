"""Layer normalisation and layer scale over the last axis."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqx_vit.layers.remat import save_for_backward
from eqx_vit.layers.upcast import upcast


class LayerNorm(eqx.Module):
    """Layer normalisation (Ba et al., arXiv 1607.06450) over the last axis, whatever the leading axes.

    The statistics are float32 whatever the compute dtype. `eps` has no default: the papers differ (1e-5, 1e-6, 1e-12).
    """

    weight: Float[Array, " dim"]
    bias: Float[Array, " dim"]
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float) -> None:
        """**Arguments:** `dim`: length of the last axis; `eps`: added to the variance."""
        self.weight = jnp.ones(dim)
        self.bias = jnp.zeros(dim)
        self.eps = eps

    def __call__(self, x: Float[Array, "*positions dim"]) -> Float[Array, "*positions dim"]:
        return normalise(x, self.eps) * jnp.broadcast_to(self.weight, x.shape) + jnp.broadcast_to(self.bias, x.shape)


class RMSNorm(eqx.Module):
    """Root mean square normalisation (Zhang and Sennrich, arXiv 1910.07467, equation 4) over the last axis.

    The mean square is float32 whatever the compute dtype.
    """

    weight: Float[Array, " dim"]
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float) -> None:
        """**Arguments:** `dim`: length of the last axis; `eps`: added to the mean square."""
        self.weight = jnp.ones(dim)
        self.eps = eps

    def __call__(self, x: Float[Array, "*positions dim"]) -> Float[Array, "*positions dim"]:
        wide = upcast(x)
        mean_square = save_for_backward(jnp.mean(jnp.square(wide), axis=-1, keepdims=True))
        return (wide * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype) * jnp.broadcast_to(self.weight, x.shape)


def normalise(x: Float[Array, "*positions dim"], eps: float) -> Float[Array, "*positions dim"]:
    """`(x - mean) / sqrt(variance + eps)` over the last axis, in float32, returned in the dtype of `x`."""
    wide = upcast(x)
    centred = wide - save_for_backward(jnp.mean(wide, axis=-1, keepdims=True))
    variance = save_for_backward(jnp.mean(jnp.square(centred), axis=-1, keepdims=True))
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


class LayerScale(eqx.Module):
    """A learned factor per channel on a residual branch (CaiT, arXiv 2103.17239, section 2)."""

    gamma: Float[Array, " dim"]

    def __init__(self, dim: int, initial_value: float) -> None:
        """**Arguments:** `dim`: length of the last axis; `initial_value`: of every factor."""
        self.gamma = jnp.full(dim, initial_value, dtype=float)

    def __call__(self, x: Float[Array, "*positions dim"]) -> Float[Array, "*positions dim"]:
        return _scale(x, self.gamma)


def _scale(x: Float[Array, "*positions dim"], factor: Float[Array, " dim"]) -> Float[Array, "*positions dim"]:
    return x * jnp.broadcast_to(factor, x.shape)  # a function, so that a wrong width is named
