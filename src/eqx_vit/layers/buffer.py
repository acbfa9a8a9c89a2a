"""Arrays that load from checkpoints but are not trained."""

import equinox as eqx
import jax
from jaxtyping import Array, Float


class Buffer(eqx.Module):
    """A fixed array. `trainable`, `count_params` and `decay_mask` leave it out; `value` carries no gradient."""

    array: Float[Array, "..."]

    @property
    def value(self) -> Float[Array, "..."]:
        return jax.lax.stop_gradient(self.array)
