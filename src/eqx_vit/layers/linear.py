"""A linear map of the last axis."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.init import Initializer, constant, fan_in_uniform, truncated_normal
from eqx_vit.layers.recompute import dear


class Linear(eqx.Module):
    """`x @ weight.T + bias` over the last axis, whatever the leading axes.

    `eqx.nn.Linear` takes one vector; this one takes token sequences and maps, and its initialisers are arguments, where
    None is PyTorch's default.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        weight_init: Initializer | None = truncated_normal(0.02),
        bias_init: Initializer | None = constant(0.0),
        key: PRNGKeyArray,
    ) -> None:
        default = fan_in_uniform(in_features)
        self.weight = (weight_init or default)(key, (out_features, in_features))
        # Folded in, not split: a bias never changes what the weight draws.
        self.bias = (bias_init or default)(jax.random.fold_in(key, 1), (out_features,)) if use_bias else None

    def __call__(self, x: Float[Array, "*positions in"]) -> Float[Array, "*positions out"]:
        # Not `x @ weight.T`: a scan keeps the transposed weights of every block for the backward pass.
        y = dear(jnp.einsum("...i,oi->...o", x, self.weight))
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)
