"""What every contract is checked on: a config's model, fresh or with random parameters, and images for it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, PyTree

from eqx_vit.arguments import check_argument
from eqx_vit.create import create, create_abstract
from eqx_vit.inputs import image_size_of
from eqx_vit.layers.config import Size, no_type_check, pair
from eqx_vit.parameters import trainable
from eqx_vit.paths import is_array
from eqx_vit.registry import AnyConfig, AnyModel, find_architecture


class ContractError(AssertionError):
    """A model breaks a contract. The message names the model, what it has to do, and what was found."""


@dataclass(frozen=True)
class Subject:
    """The config that a contract is checked on.

    **Attributes:** `image_size`: (height, width) of the images; `name`, of the model; `rule`: what it has to do.
    """

    config: AnyConfig
    image_size: tuple[int, int]
    name: str
    rule: str

    def expect(self, holds: bool | np.bool_, found: str) -> None:
        """Raise `ContractError` unless it holds, with what was found instead."""
        if not holds:
            raise ContractError(f"{self.name}: {self.rule}; {found}")

    def images(self, count: int = 3) -> Float[Array, "count height width channels"]:
        """Random images, the same at each call."""
        shape = (count, *self.image_size, self.config.channels)
        return jnp.asarray(np.random.default_rng(7).standard_normal(shape), dtype=jnp.float32)

    def abstract(self, rate: float | None = None) -> tuple[AnyModel, State]:
        """The model and its state with shapes in place of arrays; with a rate, of all dropout and drop-path."""
        return create_abstract(self.config if rate is None else with_rates(self.config, rate))


@contextlib.contextmanager
@no_type_check
def contract(config: AnyConfig, image_size: Size | None, rule: str) -> Iterator[Subject]:
    """One contract, for a `with` statement: what the model raises inside breaks it too.

    Matrix products are exact inside, so that the numbers are the same on all devices.

    **Arguments:** `image_size` of the images, in pixels, by default the config's, and 224 for models that take any
    size; `rule`: what the model has to do, as a part of a sentence.

    **Raises:** `ContractError`; `ValueError` for what is no config, and for an image size that it does not take.
    """
    check_argument("a contract", "image_size", image_size, Size | None)
    name = find_architecture(config).title
    height, width = image_size_of(config) if image_size is None else pair(image_size)
    config.check_image_size(height, width)
    try:
        with jax.default_matmul_precision("highest"):
            yield Subject(config, (height, width), name, rule)
    except (ContractError, ImportError):  # what is not installed is no fault of the model
        raise
    except Exception as error:
        first = (str(error) or "no message").strip().splitlines()[0][:300]
        raise ContractError(f"{name}: {rule}; {type(error).__name__} is raised: {first}") from error


def with_rates(config: AnyConfig, rate: float) -> AnyConfig:
    """The config with every dropout and drop-path rate set."""
    return dataclasses.replace(config, **dict.fromkeys(config.rates(), rate))


def randomise(config: AnyConfig, rate: float = 0.0) -> tuple[AnyModel, State]:
    """A config's model with every parameter drawn, so that none hides behind a zero, and its fresh state.

    **Arguments:** `rate` of every dropout and drop-path.
    """
    model, state = _with_rates_of(create_abstract(with_rates(config, rate)), create(config, key=jax.random.key(0)))
    parameters = trainable(model)
    random = np.random.default_rng(3)

    def draw(leaf: Array) -> Array:
        # Wide maps are drawn narrower: where a softmax is one-hot, no gradient passes.
        scale = min(0.3, 2 * max(leaf.shape, default=1) ** -0.5)
        return jnp.asarray(np.asarray(leaf) + scale * random.standard_normal(leaf.shape), dtype=leaf.dtype)

    drawn = jax.tree.map(draw, parameters)
    merged = jax.tree.map(
        lambda new, leaf: leaf if new is None else new, drawn, model, is_leaf=lambda node: node is None
    )
    return merged, state


def _with_rates_of(skeleton: PyTree, made: PyTree) -> PyTree:
    """What was made for one config, with the dropout rates of the skeleton of another: to make it would be to compile
    its initialisation again."""
    arrays = jax.tree.unflatten(jax.tree.structure(skeleton), jax.tree.leaves(made))
    return jax.tree.map(lambda ours, leaf: leaf if is_array(leaf) else ours, skeleton, arrays)


def to_numpy(array: PyTree) -> np.ndarray:
    """An array as float32, which numpy can compute with."""
    return np.asarray(jnp.asarray(array).astype(jnp.float32))


def is_near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays of (batch, classes) agree to a part of how much the expected ones vary."""
    if found.shape != expected.shape or not np.all(np.isfinite(found)):
        return False
    spread = np.max(np.abs(expected - np.mean(expected, axis=0))) + np.finfo(np.float32).eps * np.max(np.abs(expected))
    return bool(np.max(np.abs(found - expected), initial=0.0) <= tolerance * spread)
