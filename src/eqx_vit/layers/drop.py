"""Dropout and drop-path. The rates are static, so that no optimiser sees them."""

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt16

from eqx_vit.layers.remat import save_for_backward

NO_KEY_HINT = (
    "pass key=jax.random.key(...) to train with it, or call the model in inference mode: "
    "model = eqx_vit.inference_mode(model)"
)


class Dropout(eqx.Module):
    """Each element is zeroed with probability `rate`, the others divided by `1 - rate` (Srivastava et al., 2014).

    **Raises:** `ValueError` where it is active (rate above 0, training mode) and gets no key.
    """

    rate: float = eqx.field(static=True)
    inference: bool

    def __init__(self, rate: float) -> None:
        """**Arguments:** `rate`: the probability, in [0, 1)."""
        self.rate = rate
        self.inference = False

    def __call__(self, x: Float[Array, "*shape"], *, key: PRNGKeyArray | None = None) -> Float[Array, "*shape"]:
        if not dropout_active(self):
            return x
        # In 65,536ths, the unit of 16 random bits, of which a word of the generator holds two: it is half the work.
        dropped = min(max(round(self.rate * 2**16), 1), 2**16 - 1)
        kept = save_for_backward(_random_16_bits(require_key(key, "Dropout", self.rate), x.shape) >= dropped)
        return jnp.where(kept, x / (1 - dropped / 2**16), jnp.zeros_like(x))


class DropPath(eqx.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): a whole residual branch is dropped, per image.

    `scale` multiplies the rate: the schedule over depth of most papers is a scan input in [0, 1], not a leaf. So does
    `factor`, an array where models that differ in their rate are trained as one (`eqx.tree_at`).

    **Raises:** `ValueError` where it is active (rate above 0, training mode) and gets no key.
    """

    rate: float = eqx.field(static=True)
    inference: bool
    factor: Float[Array, ""] | None

    def __init__(self, rate: float) -> None:
        """**Arguments:** `rate`: the probability, in [0, 1)."""
        self.rate = rate
        self.inference = False
        self.factor = None

    def __call__(
        self,
        branch: Float[Array, "*shape"],
        scale: float | Float[Array, ""] = 1.0,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*shape"]:
        if not dropout_active(self):
            return branch
        rate = self.rate * scale if self.factor is None else self.rate * scale * self.factor
        keep = jnp.asarray(1 - rate, dtype=jnp.float32)
        kept = save_for_backward(jax.random.bernoulli(require_key(key, "DropPath", self.rate), keep))
        return branch * jnp.where(kept, 1 / keep, jnp.zeros_like(keep)).astype(branch.dtype)


def _random_16_bits(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt16[Array, "*shape"]:
    *leading, last = shape or (1,)
    words = jax.random.bits(key, (*leading, (last + 1) // 2), dtype=jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*leading, -1)
    return halves[..., :last].reshape(shape)


def require_key(key: PRNGKeyArray | None, name: str, rate: float) -> PRNGKeyArray:
    """The key, or the error of an active random layer that got none."""
    if key is None:
        raise ValueError(f"{name} with rate {rate} is in training mode and got no key: {NO_KEY_HINT}")
    return key


def drop_path_schedule(depths: Sequence[int], *, endpoint: bool = True) -> tuple[Float[Array, " depth"], ...]:
    """The factors on the drop-path rate, for each stage of `depths` blocks: a line over all blocks from 0 to 1.

    `endpoint=False` ends it one step before 1.
    """
    schedule = jnp.linspace(0.0, 1.0, sum(depths), endpoint=endpoint)
    ends = list(itertools.accumulate(depths))
    return tuple(schedule[end - depth : end] for depth, end in zip(depths, ends, strict=True))


def dropout_active(tree: PyTree) -> bool:
    """Whether any dropout or drop-path inside `tree` draws random numbers: rate above 0, and in training mode."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Dropout | DropPath))
    return any(isinstance(node, Dropout | DropPath) and node.rate > 0 and not node.inference for node in nodes)
