"""The parts that a model's constructor takes in place of the paper's: functions that make a module."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Array, Float

# Called as `attention(tokens, key=key)`; the key is None where nothing in the model is random. So is an MLP.
TokenLayer: TypeAlias = Callable[..., Float[Array, "tokens dim"]]
# Called as `norm(x)`, over the last axis.
Norm: TypeAlias = Callable[[Float[Array, "*positions dim"]], Float[Array, "*positions dim"]]
# Called as `patch_embedding(image)`: a map of tokens, or the tokens row by row.
Embedding: TypeAlias = Callable[[Float[Array, "height width channels"]], Float[Array, "*positions dim"]]

MakeTokenLayer: TypeAlias = Callable[..., TokenLayer]  # make(config, key=key)
MakeNorm: TypeAlias = Callable[[int, float], Norm]  # make(dim, eps)
MakeEmbedding: TypeAlias = Callable[..., Embedding]  # make(config, key=key)
