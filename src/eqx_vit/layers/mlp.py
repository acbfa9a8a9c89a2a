"""The two-layer perceptron of a transformer block, and the activations as functions."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.drop import Dropout
from eqx_vit.layers.init import Initializer, constant, truncated_normal
from eqx_vit.layers.keys import split_or_none
from eqx_vit.layers.linear import Linear
from eqx_vit.layers.precision import widened
from eqx_vit.layers.recompute import lean, pieces

PIECE = 2**18  # hidden features of an image that are there at a time, 1 MiB

Activation = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU, `x * Phi(x)` (arXiv 1606.08415), PyTorch's default; computed in float32."""
    wide = widened(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by the tanh approximation, Flax's default."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by a sigmoid, `x * sigmoid(1.702 x)` (arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def hard_swish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x * min(max(x + 3, 0), 6) / 6` (MobileNetV3, arXiv 1905.02244, section 5.2)."""
    return jax.nn.hard_swish(x)


class MLP(eqx.Module):
    """Linear, activation, dropout, linear, dropout, over the last axis; initialisers as `Linear` takes them.

    Of many positions some are done at a time: what is between the two maps stays in the processor's cache.
    """

    expand: Linear
    contract: Linear
    expand_dropout: Dropout
    contract_dropout: Dropout
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation: Activation = gelu,
        dropout: float = 0.0,
        weight_init: Initializer | None = truncated_normal(0.02),
        bias_init: Initializer | None = constant(0.0),
        key: PRNGKeyArray,
    ) -> None:
        expand_key, contract_key = jax.random.split(key)
        self.expand = Linear(dim, hidden_dim, weight_init=weight_init, bias_init=bias_init, key=expand_key)
        self.contract = Linear(hidden_dim, dim, weight_init=weight_init, bias_init=bias_init, key=contract_key)
        self.expand_dropout = Dropout(dropout)
        self.contract_dropout = Dropout(dropout)
        self.activation = activation

    def __call__(
        self, x: Float[Array, "*positions dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*positions dim"]:
        rows, width = x.reshape(-1, x.shape[-1]), self.expand.weight.shape[0]
        count = -(-rows.shape[0] * width // PIECE)
        if count == 1 or rows.shape[0] <= 4 * width:  # of wide layers, each piece would read the weights again
            return self._some(x, key)
        keys = None if key is None else jax.random.split(key, count)
        mapped = jax.lax.map(lean(lambda piece: self._some(*piece)), (pieces(rows, 0, count), keys))
        return mapped.reshape(-1, x.shape[-1])[: rows.shape[0]].reshape(x.shape)

    def _some(self, x: Float[Array, "*some dim"], key: PRNGKeyArray | None) -> Float[Array, "*some dim"]:
        expand_key, contract_key = split_or_none(key)
        hidden = self.expand_dropout(self.activation(self.expand(x)), key=expand_key)
        return self.contract_dropout(self.contract(hidden), key=contract_key)
