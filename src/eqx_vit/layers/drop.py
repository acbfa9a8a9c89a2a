"""Dropout and drop-path. The rates are static, so that no optimiser sees them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt16

from eqx_vit.layers.recompute import dear

REMEDIES = (
    "pass key=jax.random.key(...) to train with it, or call the model in inference mode: "
    "model = eqx_vit.inference_mode(model)"
)


class Dropout(eqx.Module):
    """Each element is zeroed with probability `rate`, the others divided by `1 - rate` (Srivastava et al., 2014).

    **Raises:** `ValueError` where it is live (rate above 0, training mode) and gets no key.
    """

    rate: float = eqx.field(static=True)
    inference: bool

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.inference = False

    def __call__(self, x: Float[Array, "*shape"], *, key: PRNGKeyArray | None = None) -> Float[Array, "*shape"]:
        if not is_live(self):
            return x
        # In 65,536ths, the unit of 16 random bits, of which a word of the generator holds two: it is half the work.
        dropped = min(max(round(self.rate * 2**16), 1), 2**16 - 1)
        kept = dear(_random_16_bits(required(key, "Dropout", self.rate), x.shape) >= dropped)
        return jnp.where(kept, x / (1 - dropped / 2**16), jnp.zeros_like(x))


class DropPath(eqx.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): a whole residual branch is dropped, per image.

    `scale` multiplies the rate: the linear ramp over depth of most papers is a scan input in [0, 1], not a leaf.

    **Raises:** `ValueError` where it is live (rate above 0, training mode) and gets no key.
    """

    rate: float = eqx.field(static=True)
    inference: bool

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.inference = False

    def __call__(
        self,
        branch: Float[Array, "*shape"],
        scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*shape"]:
        if not is_live(self):
            return branch
        keep = jnp.asarray(1 - self.rate * scale, dtype=jnp.float32)
        kept = dear(jax.random.bernoulli(required(key, "DropPath", self.rate), keep))
        return branch * jnp.where(kept, 1 / keep, jnp.zeros_like(keep)).astype(branch.dtype)


def _random_16_bits(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt16[Array, "*shape"]:
    *leading, last = shape or (1,)
    words = jax.random.bits(key, (*leading, (last + 1) // 2), dtype=jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*leading, -1)
    return halves[..., :last].reshape(shape)


def required(key: PRNGKeyArray | None, name: str, rate: float) -> PRNGKeyArray:
    """The key, or the error of a live random layer that got none."""
    if key is None:
        raise ValueError(f"{name} with rate {rate} is in training mode and got no key: {REMEDIES}")
    return key


def ramp(depth: int) -> Float[Array, " depth"]:
    """The linear drop-path ramp: 0 for the first block, 1 for the last."""
    return jnp.linspace(0.0, 1.0, depth)


def is_live(tree: PyTree) -> bool:
    """Whether any dropout or drop-path inside `tree` draws random numbers: rate above 0, and in training mode."""
    leaves: list[Any] = jax.tree.leaves(tree, is_leaf=_is_drop)
    return any(_is_drop(leaf) and leaf.rate > 0 and not leaf.inference for leaf in leaves)


def _is_drop(node: Any) -> bool:
    return isinstance(node, Dropout | DropPath)
