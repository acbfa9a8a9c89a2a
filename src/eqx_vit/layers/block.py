"""The pre-norm transformer block."""

from collections.abc import Callable
from typing import Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from eqx_vit.layers.drop import DropPath
from eqx_vit.layers.keys import split_or_none
from eqx_vit.layers.mlp import MLP
from eqx_vit.layers.norm import LayerNorm, LayerScale
from eqx_vit.layers.parts import MakeNorm, Norm, TokenLayer

AttentionLayer = TypeVar("AttentionLayer", bound=Callable[..., Array])


class PreNormBlock(eqx.Module, Generic[AttentionLayer]):
    """Attention and MLP, each normalised before and added after (arXiv 2010.11929, section 3.1, equations 2 and 3).

    x = x + drop_path(layer_scale1(attention(norm1(x))))
    x = x + drop_path(layer_scale2(mlp(norm2(x))))
    """

    norm1: Norm
    attention: AttentionLayer
    layer_scale1: LayerScale | eqx.nn.Identity
    norm2: Norm
    mlp: MLP | TokenLayer
    layer_scale2: LayerScale | eqx.nn.Identity
    drop_path: DropPath

    def __init__(
        self,
        attention: AttentionLayer,
        mlp: MLP | TokenLayer,
        dim: int,
        *,
        norm: MakeNorm = LayerNorm,
        norm_eps: float,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        """**Arguments:**

        - `attention`: called as `attention(x, key=key)`, and returns an array of the shape of `x`; `mlp` likewise.
        - `dim`: width of a token; `norm`: makes both norms, as `norm(dim, norm_eps)`.
        - `drop_path`: the rate of stochastic depth, drawn for each branch.
        - `layer_scale`: where the factors on both branches start; None for no factors.
        """
        self.norm1 = norm(dim, norm_eps)
        self.attention = attention
        self.layer_scale1 = make_layer_scale(dim, layer_scale)
        self.norm2 = norm(dim, norm_eps)
        self.mlp = mlp
        self.layer_scale2 = make_layer_scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def __call__(
        self,
        x: Float[Array, "*positions dim"],
        drop_scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*positions dim"]:
        """`drop_scale` multiplies the rate of stochastic depth."""
        attention_key, path1_key, mlp_key, path2_key = split_or_none(key, 4)
        branch = self.layer_scale1(self.attention(self.norm1(x), key=attention_key))
        x = add_branch(x, self.drop_path(branch, drop_scale, key=path1_key))
        branch = self.layer_scale2(self.mlp(self.norm2(x), key=mlp_key))
        return add_branch(x, self.drop_path(branch, drop_scale, key=path2_key))


def add_branch(
    x: Float[Array, "*positions dim"], branch: Float[Array, "*positions dim"]
) -> Float[Array, "*positions dim"]:
    """`x + branch`: an attention or an MLP of a user's own that returns another shape is told so here."""
    return x + branch


def make_layer_scale(dim: int, initial_value: float | None) -> LayerScale | eqx.nn.Identity:
    """Layer scale from `initial_value`, or nothing where that is None."""
    return eqx.nn.Identity() if initial_value is None else LayerScale(dim, initial_value)
