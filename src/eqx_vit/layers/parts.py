"""The parts that a model's constructor takes in place of the paper's: functions that make a module."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Array, Float

if TYPE_CHECKING:
    # Or a checker would refuse `model.blocks[1].attention.qkv`, which the paper's attention has and not every one.
    TokenLayer: TypeAlias = Any
    Norm: TypeAlias = Any
    Embedding: TypeAlias = Any
else:
    # Called as `attention(tokens, key=key)`; the key is None where nothing in the model is random. So is an MLP.
    TokenLayer = Callable[..., Float[Array, "tokens dim"]]
    # Called as `norm(x)`, over the last axis.
    Norm = Callable[[Float[Array, "*positions dim"]], Float[Array, "*positions dim"]]
    # Called as `patch_embedding(image)`: a map of tokens, or the tokens row by row.
    Embedding = Callable[[Float[Array, "height width channels"]], Float[Array, "*positions dim"]]

MakeTokenLayer: TypeAlias = Callable[..., TokenLayer]  # make(config, key=key)
MakeNorm: TypeAlias = Callable[[int, float], Norm]  # make(dim, eps)
MakeEmbedding: TypeAlias = Callable[..., Embedding]  # make(config, key=key)
