"""Scaled dot-product attention, as pure functions and as the one ordinary module.

Axes: queries, keys - positions in the sequences that ask and that are asked; heads; head_dim.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from eqx_vit.layers.drop import Dropout
from eqx_vit.layers.init import Initializer, constant, truncated_normal
from eqx_vit.layers.keys import split_or_none
from eqx_vit.layers.linear import Linear
from eqx_vit.layers.norm import LayerNorm
from eqx_vit.layers.precision import wide_dtype
from eqx_vit.layers.recompute import dear, lean, pieces

LARGE = 2**20  # scores of an image, 4 MiB


def attention_scores(
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    scale: float | Float[Array, ""] | Float[Array, " heads"] | None = None,
) -> Float[Array, "heads queries keys"]:
    """`query @ key * scale` per head, in float32; `scale` defaults to `head_dim ** -0.5`, and may differ by head."""
    factor = jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, dtype=query.dtype)
    factor = jnp.broadcast_to(factor[..., None] if factor.ndim else factor, query.shape)
    wide = wide_dtype(query.dtype)
    queries, keys = _heads_first(query * factor), _heads_first(key)
    return jnp.einsum("hqd,hkd->hqk", queries, keys, preferred_element_type=wide)


def attention_weights(
    scores: Float[Array, "heads queries keys"],
    bias: Float[Array, "#heads queries keys"] | None = None,
    mask: Bool[Array, "#heads queries keys"] | None = None,
) -> Float[Array, "heads queries keys"]:
    """Softmax over the keys in float32; `bias` is added to the scores, and where `mask` is False the weight is 0."""
    if bias is not None:
        scores = scores + jnp.broadcast_to(_per_image(bias, scores), scores.shape).astype(scores.dtype)
    if mask is not None:
        scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, jnp.finfo(scores.dtype).min)
    return _softmax(scores)


def _per_image(
    bias: Float[Array, "_heads queries keys"], scores: Float[Array, "heads queries keys"]
) -> Float[Array, "_heads queries keys"]:
    """The bias, multiplied by a one that each image has for itself, so that its gradient is a product over the batch.

    XLA's CPU backend takes twenty times as long for the same sum over the first axis.
    """
    one = 1 + jnp.sum(jax.lax.stop_gradient(scores[:0]), dtype=bias.dtype)
    product = jnp.matmul(one.reshape(1, 1), bias.reshape(1, -1), precision=jax.lax.Precision.HIGHEST)
    return product.reshape(bias.shape)


@jax.custom_jvp
def _softmax(scores: Float[Array, "heads queries keys"]) -> Float[Array, "heads queries keys"]:
    """Softmax whose backward pass keeps the weights alone: `jax.nn.softmax` keeps the exponentials too."""
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


@_softmax.defjvp
def _softmax_jvp(
    primals: tuple[Float[Array, "heads queries keys"]], tangents: tuple[Float[Array, "heads queries keys"]]
) -> tuple[Float[Array, "heads queries keys"], Float[Array, "heads queries keys"]]:
    (scores,), (tangent,) = primals, tangents
    weights = _softmax(scores)
    return weights, weights * (tangent - jnp.sum(weights * tangent, axis=-1, keepdims=True))


def attention_values(
    weights: Float[Array, "heads queries keys"], value: Float[Array, "keys heads value_dim"]
) -> Float[Array, "queries heads value_dim"]:
    """The weighted sums of the values, in their dtype."""
    return _heads_first(weights.astype(value.dtype) @ _heads_first(value))


def _heads_first(x: Float[Array, "first second head_dim"]) -> Float[Array, "second first head_dim"]:
    """Positions and heads exchanged: left to `einsum`, the products come out transposed and take twice as long."""
    return jnp.swapaxes(x, 0, 1)


def attend(
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    value: Float[Array, "keys heads value_dim"],
    *,
    scale: float | Float[Array, ""] | Float[Array, " heads"] | None = None,
    bias: Float[Array, "#heads queries keys"] | None = None,
    mask: Bool[Array, "#heads queries keys"] | None = None,
    dropout: Dropout | None = None,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "queries heads value_dim"]:
    """`softmax(query @ key * scale + bias) @ value` per head (Vaswani et al., arXiv 1706.03762, section 3.2.1).

    **Arguments:** `scale` defaults to `head_dim ** -0.5`; `bias` is added after scaling; where `mask` is False nothing
    is attended to; `dropout` acts on the attention weights. Where the scores of an image are many, some queries are
    done at a time and their weights computed again in the backward pass: none of it has to leave the processor's cache.
    """

    def some(piece: Any) -> Float[Array, "_queries heads value_dim"]:
        query, bias, mask, dropout_key = piece
        weights = attention_weights(attention_scores(query, key, scale), bias, mask)
        return attention_values(weights if dropout is None else dropout(weights, key=dropout_key), value)

    if query.shape[0] * query.shape[1] * key.shape[0] <= LARGE:
        return dear(some((query, bias, mask, dropout_key)))
    count = -(-query.shape[0] // max(64, 128 // query.shape[1]))
    keys = None if dropout_key is None else jax.random.split(dropout_key, count)
    split = (pieces(query, 0, count), pieces(bias, 1, count), pieces(mask, 1, count), keys)
    mixed = jax.lax.map(lean(some), split)
    return dear(mixed.reshape(-1, *mixed.shape[2:])[: query.shape[0]])


class Attention(eqx.Module):
    """Multi-head self-attention with one fused projection, whose rows are ordered (q, k, v), heads, head_dim."""

    qkv: Linear
    query_norm: LayerNorm | None
    key_norm: LayerNorm | None
    projection: Linear | eqx.nn.Identity
    attention_dropout: Dropout
    projection_dropout: Dropout
    heads: int = eqx.field(static=True)
    scale: float | None = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        qk_norm_eps: float | None = None,
        scale: float | None = None,
        project_out: bool = True,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        qkv_init: Initializer | None = truncated_normal(0.02),
        projection_init: Initializer | None = truncated_normal(0.02),
        bias_init: Initializer | None = constant(0.0),
        key: PRNGKeyArray,
    ) -> None:
        """`head_dim` defaults to `dim // heads`; `qk_norm_eps` given means LayerNorm on queries and keys per head.

        `project_out=False` leaves out the linear map at the end and its dropout; it needs `heads * head_dim == dim`.
        `scale` defaults to `head_dim ** -0.5`; `dropout` acts on the output and, unless `attention_dropout` says
        otherwise, on the attention weights. Initialisers as `Linear` takes them.
        """
        qkv_key, projection_key = jax.random.split(key)
        size = dim // heads if head_dim is None else head_dim
        self.qkv = Linear(
            dim, 3 * heads * size, use_bias=qkv_bias, weight_init=qkv_init, bias_init=bias_init, key=qkv_key
        )
        self.query_norm = None if qk_norm_eps is None else LayerNorm(size, qk_norm_eps)
        self.key_norm = None if qk_norm_eps is None else LayerNorm(size, qk_norm_eps)
        self.projection = (
            Linear(heads * size, dim, weight_init=projection_init, bias_init=bias_init, key=projection_key)
            if project_out
            else eqx.nn.Identity()
        )
        self.attention_dropout = Dropout(dropout if attention_dropout is None else attention_dropout)
        self.projection_dropout = Dropout(dropout if project_out else 0.0)
        self.heads = heads
        self.scale = scale

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        if self.query_norm is not None and self.key_norm is not None:
            query, keys = self.query_norm(query), self.key_norm(keys)
        mixed = attend(query, keys, value, scale=self.scale, dropout=self.attention_dropout, dropout_key=attention_key)
        return self.projection_dropout(self.projection(merge_heads(mixed)), key=projection_key)


def split_heads(
    fused: Float[Array, "tokens channels"], parts: int, heads: int
) -> tuple[Float[Array, "tokens heads head_dim"], ...]:
    """A fused projection, rows ordered parts, heads, head_dim, as `parts` arrays."""
    tokens = fused.shape[0]
    split = fused.reshape(tokens, parts, heads, -1)
    return tuple(split[:, part] for part in range(parts))


def merge_heads(x: Float[Array, "tokens heads head_dim"]) -> Float[Array, "tokens channels"]:
    """Heads side by side, the head outermost."""
    return x.reshape(x.shape[0], -1)
