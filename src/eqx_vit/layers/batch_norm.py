"""Batch normalisation with PyTorch's semantics."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import kernels
from eqx_vit.layers.remat import save_for_backward
from eqx_vit.layers.upcast import upcast

BATCH_AXIS = "batch"


class SingleValueError(ValueError):
    """BatchNorm in training mode got one value per channel, whose variance says nothing."""


class BatchNorm(eqx.nn.StatefulLayer):
    """Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167) over all leading axes and the vmapped batch.

    PyTorch's semantics: the biased batch variance normalises, the unbiased one is stored, and
    `running = (1 - momentum) * running + momentum * batch`. The statistics are float32 whatever the compute dtype.

    Inside `jax.shard_map` or `jax.pmap` the batch is that of a device; under `jax.jit` it is the whole one, however it
    is sharded.

    **Raises:** `ValueError` where it runs in training mode without the batch axis that `eqx_vit.forward` sets up, or on
    one value a channel, whose variance says nothing.
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
            state = set_statistics(state, self, *self._update(state, mean, unbiased))
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
    if count == 1:
        raise SingleValueError(
            "BatchNorm in training mode got one value per channel: use a batch of at least 2 images, or put the model "
            "in inference mode: model = eqx_vit.inference_mode(model)"
        )
    mean = save_for_backward(_mean_over_batch(jnp.mean(x, axis=axes)))
    variance = save_for_backward(_mean_over_batch(kernels.mean_square_about(x, mean)))
    return mean, variance, variance * (count / (count - 1))


def _mean_over_batch(x: Float[Array, " channels"]) -> Float[Array, " channels"]:
    # What varies over the devices of a `jax.shard_map` JAX refuses to collect over a vmapped axis.
    return _mean_over_innermost_batch(x) if jax.typeof(x).manual_axis_type.varying else jax.lax.pmean(x, BATCH_AXIS)


@jax.custom_batching.custom_vmap
def _mean_over_innermost_batch(x: Float[Array, " channels"]) -> Float[Array, " channels"]:
    return x


@_mean_over_innermost_batch.def_vmap
def _mean_over_axis(_size: int, _batched: list[bool], x: Float[Array, "batch channels"]) -> tuple[Array, bool]:
    return jnp.mean(x, axis=0), False


def set_statistics(
    state: eqx.nn.State,
    norm: BatchNorm,
    mean: Float[Array, "*depth channels"],
    variance: Float[Array, "*depth channels"],
) -> eqx.nn.State:
    """The state with the running statistics of one BatchNorm replaced.

    Where `State.set` compares the shardings too, and refuses statistics that differ between the devices of a
    `jax.shard_map`.
    """
    own = jax.tree.structure(state.substate(norm))
    return state.update(jax.tree.unflatten(own, (mean, variance)))
