"""The perceptrons of a transformer block, plain and gated, and the activations as functions."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers import kernels
from eqx_vit.layers.drop import Dropout
from eqx_vit.layers.init import Initializer, constant, truncated_normal
from eqx_vit.layers.keys import split_or_none
from eqx_vit.layers.linear import Linear
from eqx_vit.layers.upcast import upcast

Activation = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU, `x * Phi(x)` (arXiv 1606.08415), PyTorch's default; computed in float32."""
    wide = upcast(x)
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
    """Linear, activation, dropout, linear, dropout, over the last axis."""

    fc1: Linear
    fc2: Linear
    fc1_dropout: Dropout
    fc2_dropout: Dropout
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
        """**Arguments:** `dim`: width of a token; `hidden_dim`: between the two maps; `activation`: a function of an
        array; `dropout`: the rate after each map; `weight_init`, `bias_init`: initialisers as `Linear` takes them.
        """
        fc1_key, fc2_key = jax.random.split(key)
        self.fc1 = Linear(dim, hidden_dim, weight_init=weight_init, bias_init=bias_init, key=fc1_key)
        self.fc2 = Linear(hidden_dim, dim, weight_init=weight_init, bias_init=bias_init, key=fc2_key)
        self.fc1_dropout = Dropout(dropout)
        self.fc2_dropout = Dropout(dropout)
        self.activation = activation

    def __call__(
        self, x: Float[Array, "*positions dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*positions dim"]:
        return kernels.map_rows(self._apply, x, key, self.fc1.weight.shape[0])

    def _apply(self, x: Float[Array, "*positions dim"], key: PRNGKeyArray | None) -> Float[Array, "*positions dim"]:
        fc1_key, fc2_key = split_or_none(key)
        hidden = self.fc1_dropout(self.activation(self.fc1(x)), key=fc1_key)
        return self.fc2_dropout(self.fc2(hidden), key=fc2_key)


class SwiGLU(eqx.Module):
    """`fc2(silu(gate) * value)`, gate and value the halves of `fc1(x)` (Shazeer, arXiv 2002.05202, section 2)."""

    fc1: Linear  # rows: the gate, the value
    fc2: Linear
    fc1_dropout: Dropout
    fc2_dropout: Dropout

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        weight_init: Initializer | None = truncated_normal(0.02),
        bias_init: Initializer | None = constant(0.0),
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `dim`: width of a token; `hidden_dim`: of the gate, and of the value; `dropout`: the rate on
        the product and on the result; `weight_init`, `bias_init`: initialisers as `Linear` takes them.
        """
        fc1_key, fc2_key = jax.random.split(key)
        self.fc1 = Linear(dim, 2 * hidden_dim, weight_init=weight_init, bias_init=bias_init, key=fc1_key)
        self.fc2 = Linear(hidden_dim, dim, weight_init=weight_init, bias_init=bias_init, key=fc2_key)
        self.fc1_dropout = Dropout(dropout)
        self.fc2_dropout = Dropout(dropout)

    def __call__(
        self, x: Float[Array, "*positions dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*positions dim"]:
        return kernels.map_rows(self._apply, x, key, self.fc1.weight.shape[0])

    def _apply(self, x: Float[Array, "*positions dim"], key: PRNGKeyArray | None) -> Float[Array, "*positions dim"]:
        fc1_key, fc2_key = split_or_none(key)
        gate, value = jnp.split(self.fc1(x), 2, axis=-1)
        hidden = self.fc1_dropout(jax.nn.silu(gate) * value, key=fc1_key)
        return self.fc2_dropout(self.fc2(hidden), key=fc2_key)
