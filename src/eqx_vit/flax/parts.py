"""The parts that stand alone in the Flax-shaped door: `SPT` and `PatchMerger`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import eqx_vit
from eqx_vit.flax.module import split_variables
from eqx_vit.flax.rngs import params_key
from eqx_vit.paths import named_leaves, with_named_leaves
from eqx_vit.surface import flat_checked, nested


@dataclass(frozen=True)
class SPT:
    """`eqx_vit.SPT`: images of (batch, height, width, channels) to tokens of (batch, tokens, dim)."""

    dim: int
    patch_size: int | tuple[int, int]

    def init(self, rngs: Any, images: Any) -> dict[str, Any]:
        """Fresh variables; of `images` only the channel count matters."""
        return _init(self._make(images), rngs)

    def apply(self, variables: Any, images: Any, *, rngs: Any = None) -> Float[Array, "batch tokens dim"]:
        """Tokens. Nothing is random: `rngs` is taken as linen takes it, and not used."""
        return _apply(self._make(images), variables, images)

    def _make(self, images: Any) -> Callable[..., Any]:
        return functools.partial(eqx_vit.SPT, self.dim, self.patch_size, channels=jnp.shape(images)[-1])


@dataclass(frozen=True)
class PatchMerger:
    """`eqx_vit.PatchMerger`: tokens of (batch, tokens, dim) to (batch, num_tokens_out, dim)."""

    dim: int
    num_tokens_out: int

    def init(self, rngs: Any, tokens: Any) -> dict[str, Any]:
        """Fresh variables; `tokens` is not looked at."""
        return _init(self._make(), rngs)

    def apply(self, variables: Any, tokens: Any, *, rngs: Any = None) -> Float[Array, "batch num_tokens_out dim"]:
        """Merged tokens. Nothing is random: `rngs` is taken as linen takes it, and not used."""
        return _apply(self._make(), variables, tokens)

    def _make(self) -> Callable[..., Any]:
        return functools.partial(eqx_vit.PatchMerger, self.dim, self.num_tokens_out)


def _init(make: Callable[..., Any], rngs: Any) -> dict[str, Any]:
    return {"params": nested(named_leaves(make(key=params_key(rngs))))}


def _apply(make: Callable[..., Any], variables: Any, batch: Any) -> Any:
    if jnp.ndim(batch) < 3:
        raise ValueError(f"apply takes a batch, given shape {jnp.shape(batch)}: one example is a batch of one")
    params, _ = split_variables(variables)
    skeleton = eqx.filter_eval_shape(make, key=jax.random.key(0))
    leaves = flat_checked("params", nested(named_leaves(skeleton)), params)
    return jax.vmap(with_named_leaves(skeleton, leaves))(jnp.asarray(batch))
