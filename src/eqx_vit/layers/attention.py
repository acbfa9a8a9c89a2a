"""Scaled dot-product attention, as pure functions and as the one ordinary module.

Axes: queries, keys = positions that attend, and that are attended to; heads; head_dim.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from eqx_vit.layers import kernels
from eqx_vit.layers.drop import Dropout, dropout_active
from eqx_vit.layers.init import Initializer, constant, truncated_normal
from eqx_vit.layers.keys import split_or_none
from eqx_vit.layers.linear import Linear, OutputProjection
from eqx_vit.layers.marks import NO_MARKS, attention_marks, mark, mark_attention, mark_weights
from eqx_vit.layers.norm import LayerNorm
from eqx_vit.layers.upcast import at_least_float32

Scale = float | Float[Array, ""] | Float[Array, " heads"] | None


def attend(
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    value: Float[Array, "keys heads value_dim"],
    *,
    scale: Scale = None,
    bias: Float[Array, "#heads queries keys"] | None = None,
    mask: Bool[Array, "#heads queries keys"] | None = None,
    dropout: Dropout | None = None,
    dropout_key: PRNGKeyArray | None = None,
    max_scores: int | None = kernels.MAX_SCORES,
) -> Float[Array, "queries heads value_dim"]:
    """`softmax(query @ key * scale + bias) @ value` per head (Vaswani et al., arXiv 1706.03762, section 3.2.1).

    **Arguments:** `scale` defaults to `head_dim ** -0.5`; `bias` is added after scaling; where `mask` is False nothing
    is attended to; `dropout` acts on the attention weights. Above `max_scores` scores an image, a CPU computes some
    queries at a time, and other backends use `jax.nn.dot_product_attention`.
    """
    asked = attention_marks()
    if asked.first_row is not None:
        with mark_attention(asked._replace(first_row=None)):
            attended = attend(
                query,
                key,
                value,
                scale=scale,
                bias=bias,
                mask=mask,
                dropout=dropout,
                dropout_key=dropout_key,
                max_scores=max_scores,
            )
        return _mark_first_row(attended, scale_query(query, scale), key, value, bias, mask, asked.first_row)
    is_long = max_scores is not None and query.shape[0] * query.shape[1] * key.shape[0] > max_scores
    if is_long and asked.weights is None:
        return _attend_long(scale_query(query, scale), key, value, bias, mask, dropout, dropout_key)
    queries, keys, values = (jnp.swapaxes(x, 0, 1) for x in (scale_query(query, scale), key, value))
    scores = jnp.einsum("hqd,hkd->hqk", queries, keys, preferred_element_type=at_least_float32(query.dtype))
    weights = attention_weights(scores, bias, mask)
    weights = weights if dropout is None else dropout(weights, key=dropout_key)
    return jnp.swapaxes(weights.astype(value.dtype) @ values, 0, 1)


def scale_query(
    query: Float[Array, "queries heads head_dim"], scale: Scale = None
) -> Float[Array, "queries heads head_dim"]:
    """`query * scale`, where `scale` defaults to `head_dim ** -0.5` and may differ by head."""
    factor = jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, dtype=query.dtype)
    return query * jnp.broadcast_to(factor[..., None] if factor.ndim else factor, query.shape)


def attention_scores(
    query: Float[Array, "queries heads head_dim"], key: Float[Array, "keys heads head_dim"], scale: Scale = None
) -> Float[Array, "heads queries keys"]:
    """`query @ key * scale` per head, in float32, for attention that changes the scores before the softmax."""
    queries, keys = jnp.swapaxes(scale_query(query, scale), 0, 1), jnp.swapaxes(key, 0, 1)
    return jnp.einsum("hqd,hkd->hqk", queries, keys, preferred_element_type=at_least_float32(query.dtype))


def attention_weights(
    scores: Float[Array, "heads queries keys"],
    bias: Float[Array, "#heads queries keys"] | None = None,
    mask: Bool[Array, "#heads queries keys"] | None = None,
) -> Float[Array, "heads queries keys"]:
    """Softmax over the keys in float32; `bias` is added to the scores, and where `mask` is False the weight is 0."""
    if bias is not None:
        scores = scores + jnp.broadcast_to(kernels.per_image(bias, scores), scores.shape).astype(scores.dtype)
    if mask is not None:
        scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, jnp.finfo(scores.dtype).min)
    return mark_weights(kernels.softmax(scores))


def attention_values(
    weights: Float[Array, "heads queries keys"], value: Float[Array, "keys heads value_dim"]
) -> Float[Array, "queries heads value_dim"]:
    """The weighted sums of the values, in their dtype."""
    return jnp.swapaxes(weights.astype(value.dtype) @ jnp.swapaxes(value, 0, 1), 0, 1)


def _mark_first_row(
    attended: Float[Array, "queries heads value_dim"],
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    value: Float[Array, "keys heads value_dim"],
    bias: Float[Array, "#heads queries keys"] | None,
    mask: Bool[Array, "#heads queries keys"] | None,
    name: str,
) -> Float[Array, "queries heads value_dim"]:
    """`attended`, after the weights of the first query are computed once more by themselves, and marked.

    What an observer adds to them reaches the result.
    """
    bias, mask = (None if x is None else x[:, :1] for x in (bias, mask))
    with mark_attention(NO_MARKS):
        row = attention_weights(attention_scores(query[:1], key, 1.0), bias, mask)
    change = mark(row[:, 0], name) - row[:, 0]
    return attended.at[0].add(attention_values(change[:, None], value)[0])


def _attend_long(
    query: Float[Array, "queries heads head_dim"],
    key: Float[Array, "keys heads head_dim"],
    value: Float[Array, "keys heads value_dim"],
    bias: Float[Array, "#heads queries keys"] | None,
    mask: Bool[Array, "#heads queries keys"] | None,
    dropout: Dropout | None,
    dropout_key: PRNGKeyArray | None,
) -> Float[Array, "queries heads value_dim"]:
    """`attend` for many scores, with `scale` already applied, by backend."""

    def attend_chunk(query: Array, bias: Array | None, mask: Array | None, dropout_key: PRNGKeyArray | None) -> Array:
        drop = functools.partial(attend, dropout=dropout, dropout_key=dropout_key)
        return drop(query, key, value, scale=1.0, bias=bias, mask=mask, max_scores=None)

    def attend_by_jax(query: Array, bias: Array | None, mask: Array | None, _: PRNGKeyArray | None) -> Array:
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=1.0)

    # JAX's own does not hand out the weights, for dropout, and takes values as wide as the keys alone.
    drops = dropout is not None and dropout_active(dropout)
    default = None if drops or value.shape != key.shape else attend_by_jax
    return kernels.map_queries(attend_chunk, query, bias, mask, dropout_key, default=default)


class Attention(eqx.Module):
    """Multi-head self-attention with one fused projection, whose rows are ordered (q, k, v), heads, head_dim."""

    qkv: Linear
    query_norm: LayerNorm | None
    key_norm: LayerNorm | None
    projection: OutputProjection | eqx.nn.Identity
    attention_dropout: Dropout
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
        """**Arguments:**

        - `dim`: width of a token; `heads`, and `head_dim`, which defaults to `dim // heads`.
        - `qkv_bias`: whether the fused projection has a bias.
        - `qk_norm_eps`: given, queries and keys pass a LayerNorm per head.
        - `scale`: of the scores, `head_dim ** -0.5` by default.
        - `project_out`: False leaves out the linear map at the end and its dropout; it needs `heads * head_dim == dim`.
        - `dropout`: the rate on the output and, unless `attention_dropout` says otherwise, on the attention weights.
        - `qkv_init`, `projection_init`, `bias_init`: initialisers as `Linear` takes them.
        """
        qkv_key, projection_key = jax.random.split(key)
        size = dim // heads if head_dim is None else head_dim
        self.qkv = Linear(
            dim, 3 * heads * size, use_bias=qkv_bias, weight_init=qkv_init, bias_init=bias_init, key=qkv_key
        )
        self.query_norm = None if qk_norm_eps is None else LayerNorm(size, qk_norm_eps)
        self.key_norm = None if qk_norm_eps is None else LayerNorm(size, qk_norm_eps)
        self.projection = (
            OutputProjection(
                heads * size,
                dim,
                dropout=dropout,
                weight_init=projection_init,
                bias_init=bias_init,
                key=projection_key,
            )
            if project_out
            else eqx.nn.Identity()
        )
        self.attention_dropout = Dropout(dropout if attention_dropout is None else attention_dropout)
        self.heads = heads
        self.scale = scale

    def __call__(
        self, tokens: Float[Array, "tokens dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        attention_key, projection_key = split_or_none(key)
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        if self.query_norm is not None and self.key_norm is not None:
            query, keys = self.query_norm(query), self.key_norm(keys)
        attended = attend(
            query, keys, value, scale=self.scale, dropout=self.attention_dropout, dropout_key=attention_key
        )
        return self.projection(merge_heads(attended), key=projection_key)


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
