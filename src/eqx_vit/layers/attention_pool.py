"""Pooling by attention: a learned query reads the tokens."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.attention import attend, merge_heads, split_heads
from eqx_vit.layers.init import xavier_uniform
from eqx_vit.layers.linear import Linear, OutputProjection
from eqx_vit.layers.mlp import MLP
from eqx_vit.layers.parts import MakeNorm, Norm, TokenLayer


class AttentionPool(eqx.Module):
    """A learned query attends to the tokens, and an MLP follows (big_vision's MAP head; arXiv 2106.04560, section 3.2).

    pooled = projection(attention(query(probe), tokens))
    pooled = pooled + mlp(norm(pooled))
    """

    probe: Float[Array, "1 dim"]
    query: Linear
    key_value: Linear  # rows: k of all heads, v of all heads
    projection: OutputProjection
    norm: Norm
    mlp: MLP | TokenLayer
    heads: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp: MLP | TokenLayer,
        *,
        head_dim: int | None = None,
        norm: MakeNorm,
        norm_eps: float,
        key: PRNGKeyArray,
    ) -> None:
        """**Arguments:** `dim`: width of a token; `heads`, and `head_dim`, which defaults to `dim // heads`; `mlp`:
        called as `mlp(x, key=None)`, so that it must have no dropout; `norm`: makes the norm, as `norm(dim, norm_eps)`.
        """
        probe_key, query_key, key_value_key, projection_key = jax.random.split(key, 4)
        inner = heads * (head_dim or dim // heads)
        init = xavier_uniform(dim, inner)
        self.probe = xavier_uniform(1, dim)(probe_key, (1, dim))
        self.query = Linear(dim, inner, weight_init=init, key=query_key)
        self.key_value = Linear(dim, 2 * inner, weight_init=init, key=key_value_key)
        self.projection = OutputProjection(inner, dim, weight_init=init, key=projection_key)
        self.norm = norm(dim, norm_eps)
        self.mlp = mlp
        self.heads = heads

    def __call__(self, tokens: Float[Array, "tokens dim"]) -> Float[Array, " dim"]:
        (query,) = split_heads(self.query(self.probe), 1, self.heads)
        keys, value = split_heads(self.key_value(tokens), 2, self.heads)
        pooled = self.projection(merge_heads(attend(query, keys, value)))
        return (pooled + self.mlp(self.norm(pooled)))[0]
