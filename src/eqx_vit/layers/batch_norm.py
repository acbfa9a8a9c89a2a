"""Batch normalisation with PyTorch's semantics."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import kernels
from eqx_vit.layers.remat import save_for_backward
from eqx_vit.layers.upcast import upcast

BATCH_AXIS = "batch"


class BatchNorm(eqx.nn.StatefulLayer):
    """Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167) over all leading axes and the vmapped batch.

    PyTorch's semantics: the biased batch variance normalises, the unbiased one is stored, and
    `running = (1 - momentum) * running + momentum * batch`. The statistics are float32 whatever the compute dtype.

    **Raises:** `ValueError` where it runs in training mode without the batch axis that `eqx_vit.forward` sets up.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    statistics: eqx.nn.StateIndex
    eps: float = eqx.field(static=True)
    momentum: float = eqx.field(static=True)
    inference: bool

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, initial_weight: float = 1.0) -> None:
        """**Arguments:** `channels`: length of the last axis; `eps`: added to the variance; `momentum`: the share of
        the batch in the running statistics, as PyTorch counts it; `initial_weight`: where the scale starts.
        """
        self.weight = jnp.full(channels, initial_weight, dtype=float)
        self.bias = jnp.zeros(channels)
        self.statistics = eqx.nn.StateIndex((jnp.zeros(channels), jnp.ones(channels)))
        self.eps = eps
        self.momentum = momentum
        self.inference = False

    def __call__(
        self, x: Float[Array, "*positions channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*positions channels"], eqx.nn.State]:
        """Normalise `x`; in training mode also update the running statistics in `state`. `key` is not used."""
        wide = upcast(x)
        mean, variance = state.get(self.statistics)
        if not self.inference:
            mean, variance, unbiased = batch_statistics(wide)
            state = state.set(self.statistics, self._update(state, mean, unbiased))
        factor = upcast(self.weight) * jax.lax.rsqrt(variance + self.eps).astype(wide.dtype)
        y = kernels.scale_about_mean(wide, mean.astype(wide.dtype), factor, upcast(self.bias))
        return y.astype(x.dtype), state

    def _update(
        self, state: eqx.nn.State, mean: Float[Array, " channels"], variance: Float[Array, " channels"]
    ) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        old_mean, old_variance = state.get(self.statistics)
        new_mean = (1 - self.momentum) * old_mean + self.momentum * mean.astype(old_mean.dtype)
        new_variance = (1 - self.momentum) * old_variance + self.momentum * variance.astype(old_variance.dtype)
        return jax.lax.stop_gradient((new_mean, new_variance))


def batch_statistics(
    x: Float[Array, "*positions channels"],
) -> tuple[Float[Array, " channels"], Float[Array, " channels"], Float[Array, " channels"]]:
    """Mean, biased and unbiased variance per channel over the positions and the batch axis, in two passes."""
    try:
        batch = jax.lax.axis_size(BATCH_AXIS)
    except NameError:
        raise ValueError(
            "BatchNorm is in training mode outside a batch: call eqx_vit.forward(model, state, images, key=key), "
            "or put the model in inference mode: model = eqx_vit.inference_mode(model)"
        ) from None
    axes = tuple(range(x.ndim - 1))
    count = batch * x.size // x.shape[-1]
    mean = save_for_backward(jax.lax.pmean(jnp.mean(x, axis=axes), BATCH_AXIS))
    variance = save_for_backward(jax.lax.pmean(kernels.mean_square_about(x, mean), BATCH_AXIS))
    return mean, variance, variance * (count / max(count - 1, 1))
