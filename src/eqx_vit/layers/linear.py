"""Linear maps of the last axis: alone, at the end of an attention, and as a classifier's head."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.drop import Dropout
from eqx_vit.layers.init import Initializer, constant, fan_in_uniform, truncated_normal
from eqx_vit.layers.remat import save_for_backward


class Linear(eqx.Module):
    """`x @ weight.T + bias` over the last axis, whatever the leading axes.

    `eqx.nn.Linear` takes one vector; this one takes token sequences and maps, and its initialisers are arguments.
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
        """**Arguments:** `in_features`, `out_features`: length of the last axis before and after; `use_bias`: whether
        there is a bias; `weight_init`, `bias_init`: functions of (key, shape), where None is PyTorch's default.
        """
        default = fan_in_uniform(in_features)
        self.weight = (weight_init or default)(key, (out_features, in_features))
        # Folded in, not split: a bias never changes what the weight draws.
        self.bias = (bias_init or default)(jax.random.fold_in(key, 1), (out_features,)) if use_bias else None

    def __call__(self, x: Float[Array, "*positions in"]) -> Float[Array, "*positions out"]:
        # Not `x @ weight.T`: a scan keeps the transposed weights of every block for the backward pass.
        return add_bias(save_for_backward(jnp.einsum("...i,oi->...o", x, self.weight)), self.bias)


def add_bias(x: Float[Array, "*positions dim"], bias: Float[Array, " dim"] | None) -> Float[Array, "*positions dim"]:
    """`x` with the bias, where there is one, added along the last axis."""
    return x if bias is None else x + jnp.broadcast_to(bias, x.shape)


class OutputProjection(eqx.Module):
    """The end of an attention: a linear map of all heads side by side, then dropout."""

    linear: Linear
    dropout: Dropout

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dropout: float = 0.0,
        weight_init: Initializer | None = truncated_normal(0.02),
        bias_init: Initializer | None = constant(0.0),
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `dropout`: the rate; the others as `Linear` takes them."""
        self.linear = Linear(in_features, out_features, weight_init=weight_init, bias_init=bias_init, key=key)
        self.dropout = Dropout(dropout)

    def __call__(
        self, x: Float[Array, "*positions in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*positions out"]:
        return self.dropout(self.linear(save_for_backward(x)), key=key)


def make_head(
    dim: int,
    num_classes: int,
    *,
    weight_init: Initializer | None = truncated_normal(0.02),
    bias_init: Initializer | None = constant(0.0),
    key: PRNGKeyArray,
) -> Linear | eqx.nn.Identity:
    """A classifier's head: a linear map to the logits, or nothing where `num_classes` is 0."""
    if num_classes == 0:
        return eqx.nn.Identity()
    return Linear(dim, num_classes, weight_init=weight_init, bias_init=bias_init, key=key)
