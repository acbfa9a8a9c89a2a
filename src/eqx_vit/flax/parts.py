"""The parts that stand alone in the Flax API: `SPT` and `PatchMerger`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import eqx_vit
from eqx_vit.flax.description import split_variables
from eqx_vit.flax.rngs import Rngs, params_key
from eqx_vit.forward import Images
from eqx_vit.functional import NestedDict, NestedMapping, check_leaves, flatten, unflatten
from eqx_vit.layers.config import check_at_least, check_fields, no_type_check
from eqx_vit.paths import named_leaves, with_named_leaves

Tokens = Float[Array, "batch tokens dim"]


@no_type_check
@dataclass(frozen=True)
class SPT:
    """`eqx_vit.SPT`: images of (batch, height, width, channels) to tokens of (batch, tokens, dim)."""

    dim: int
    patch_size: int | tuple[int, int]

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, 1, "dim", "patch_size")

    @no_type_check
    def init(self, rngs: Rngs, images: Images | jax.ShapeDtypeStruct) -> NestedDict:
        """Fresh variables; of `images` only the channel count matters."""
        return _init(self._make(images), rngs)

    @no_type_check
    def apply(self, variables: NestedMapping, images: Images, *, rngs: Rngs | None = None) -> Tokens:
        """Tokens. Nothing is random: `rngs` is taken as linen takes it, and not used."""
        return _apply(self._make(images), variables, images)

    @no_type_check
    def _make(self, images: Images | jax.ShapeDtypeStruct) -> Callable[..., eqx_vit.SPT]:
        _check_batch(images, "images", ("batch", "height", "width", "channels"))
        return functools.partial(eqx_vit.SPT, self.dim, self.patch_size, channels=images.shape[-1])


@no_type_check
@dataclass(frozen=True)
class PatchMerger:
    """`eqx_vit.PatchMerger`: tokens of (batch, tokens, dim) to (batch, num_tokens_out, dim)."""

    dim: int
    num_tokens_out: int

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, 1, "dim", "num_tokens_out")

    @no_type_check
    def init(self, rngs: Rngs, tokens: Tokens | jax.ShapeDtypeStruct) -> NestedDict:
        """Fresh variables; `tokens` is not looked at."""
        return _init(self._make(), rngs)

    @no_type_check
    def apply(self, variables: NestedMapping, tokens: Tokens, *, rngs: Rngs | None = None) -> Tokens:
        """Merged tokens. Nothing is random: `rngs` is taken as linen takes it, and not used."""
        _check_batch(tokens, "tokens", ("batch", "tokens", self.dim))
        return _apply(self._make(), variables, tokens)

    def _make(self) -> Callable[..., eqx_vit.PatchMerger]:
        return functools.partial(eqx_vit.PatchMerger, self.dim, self.num_tokens_out)


@no_type_check
def _init(make: Callable[..., eqx.Module], rngs: Rngs) -> NestedDict:
    return {"params": unflatten(named_leaves(make(key=params_key(rngs))))}


@no_type_check
def _apply(make: Callable[..., eqx.Module], variables: NestedMapping, batch: Images | Tokens) -> Tokens:
    if isinstance(batch, jax.ShapeDtypeStruct):
        raise ValueError("apply takes an array, given a ShapeDtypeStruct: init alone takes a shape in its place")
    params, _ = split_variables(variables)
    skeleton = eqx.filter_eval_shape(make, key=jax.random.key(0))
    leaves = check_leaves("params", named_leaves(skeleton), flatten("params", params))
    return jax.vmap(with_named_leaves(skeleton, leaves))(jnp.asarray(batch))


@no_type_check
def _check_batch(batch: Images | Tokens | jax.ShapeDtypeStruct, name: str, axes: tuple[str | int, ...]) -> None:
    """Raise `ValueError` for anything but floats of these axes, where a number stands for its size."""
    expected = f"{name} must be a float array of ({', '.join(map(str, axes))})"
    if not isinstance(batch, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise ValueError(f"{expected}, given a {type(batch).__name__}: convert it with jnp.asarray")
    if not jnp.issubdtype(batch.dtype, jnp.floating):
        raise ValueError(f"{expected}, given dtype {batch.dtype}: convert it with jnp.asarray(..., 'float32')")
    sizes = zip(axes, batch.shape, strict=False)
    if len(axes) != len(batch.shape) or any(isinstance(axis, int) and axis != size for axis, size in sizes):
        raise ValueError(f"{expected}, given shape {batch.shape}: one example is a batch of one")
