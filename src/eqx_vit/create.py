"""From names and configs to models, freshly initialised or with released weights."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, cast, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from eqx_vit.arguments import check_arguments
from eqx_vit.layers import check_key
from eqx_vit.layers.config import no_type_check
from eqx_vit.model import ImageModel, ImageModelConfig, Model
from eqx_vit.models.source import Source
from eqx_vit.paths import is_array
from eqx_vit.registry import AnyConfig, AnyModel, change_config, find_architecture, find_preset

Pretrained = bool | str | os.PathLike[str] | Source


@overload
def create(
    config: str, *, key: PRNGKeyArray, pretrained: Pretrained = False, **changes: object
) -> tuple[ImageModel, State]: ...
@overload
def create(
    config: ImageModelConfig[Model], *, key: PRNGKeyArray, pretrained: Pretrained = False, **changes: object
) -> tuple[Model, State]: ...
@check_arguments
@no_type_check
def create(
    config: str | AnyConfig, *, key: PRNGKeyArray, pretrained: Pretrained = False, **changes: object
) -> tuple[AnyModel, State]:
    """A freshly initialised or pretrained model, in training mode, and its BatchNorm state (empty without BatchNorm).

    **Arguments:**

    - `config` is a preset's name (see `list_models`) or a config; `changes` replace fields of it:
        `create("vit_tiny_patch16_224", key=key, num_classes=10)`.
    - `pretrained`: True for the weights released under the preset's name; `"hf-hub:owner/name"` or a folder, with
        timm's or transformers' `config.json`; a `.safetensors` or `.npz` file, in the layout of the preset's released
        weights (`.npz`: Google's); or a `Source`, which says all of it. Changes of `num_classes`, `image_size` and
        `channels` then adapt the weights as `eqx_vit.weights.load_state_dict` does: a fresh head, resized position
        tables, adapted kernels.

    **Raises:** `ValueError` for an unknown name, field or value, or anything but a random key, each with what would be
    right; for weights that do not fit, with every name that does not. `FileNotFoundError` for weights that are neither
    here nor can be downloaded.
    """
    check_key(key)
    name = config if isinstance(config, str) else None
    plain = change_config(find_preset(config) if isinstance(config, str) else config, changes)
    return build(plain, key) if pretrained is False else _load_pretrained(plain, name, pretrained, changes, key)


@overload
def create_abstract(config: str, **changes: object) -> tuple[ImageModel, State]: ...
@overload
def create_abstract(config: ImageModelConfig[Model], **changes: object) -> tuple[Model, State]: ...
@check_arguments
@no_type_check
def create_abstract(config: str | AnyConfig, **changes: object) -> tuple[AnyModel, State]:
    """A model and its state as `create` makes them, with a `jax.ShapeDtypeStruct` in place of each array.

    It costs neither memory nor compilation: to load weights into (`eqx_vit.weights.load_state_dict` takes it), and for
    `eqx.filter_eval_shape`.

    **Arguments:** `config`, `changes` as for `create`.

    **Raises:** `ValueError` for an unknown name, field or value.
    """
    return make_skeleton(change_config(find_preset(config) if isinstance(config, str) else config, changes))


def build(config: ImageModelConfig[Model], key: PRNGKeyArray) -> tuple[Model, State]:
    """The freshly initialised model of a config, and its BatchNorm state (empty for models without)."""
    model = cast(Callable[..., Model], find_architecture(config).model)
    # Within another jit, where every new array is a tracer, JAX refuses compiler options.
    make = _initialise_jit if isinstance(jnp.zeros(()), Tracer) else _initialise_fast
    return make(model, config, check_key(key))


def initialise(model: Callable[..., Model], config: AnyConfig, key: PRNGKeyArray) -> tuple[Model, State]:
    """The model of a config, op by op: for `eqx.filter_eval_shape`, and to be compiled.

    **Raises:** `ValueError` for a function that makes no model, or one of another config.
    """
    make: Callable[..., tuple[Model, State]] = eqx.nn.make_with_state(model)
    made, state = make(config, key=key)
    if not isinstance(made, ImageModel) or made.config != config:
        name = getattr(model, "__name__", "the function")
        given = "of another config" if isinstance(made, ImageModel) else f"a {type(made).__name__}"
        raise ValueError(
            f"{name}(config, key=key) must make a model of that config, which it keeps as .config; {given}"
        )
    return made, state


def make_skeleton(config: AnyConfig) -> tuple[AnyModel, State]:
    """The model and state of a config with shapes in place of arrays: nothing is compiled."""
    return _make_skeleton(find_architecture(config).model, config, jax.dtypes.canonicalize_dtype(float))


@functools.lru_cache(maxsize=64)
def _make_skeleton(
    model: Callable[..., AnyModel], config: AnyConfig, _default_dtype: np.dtype
) -> tuple[AnyModel, State]:
    skeleton = eqx.filter_eval_shape(initialise, model, config, jax.random.key(0))
    # Shape and dtype alone: what is kept must not know the mesh that was in force when it was made.
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array(leaf) else leaf, skeleton)


# Op by op, the initialisation would be hundreds of small compilations. As it runs once, XLA need not optimise it far:
# its first level compiles in half the time, and what it makes runs as fast. Equinox hands the option on to `jax.jit`,
# but its annotations leave it out.
_filter_jit: Callable[..., Callable[..., Any]] = eqx.filter_jit
_initialise_jit = eqx.filter_jit(initialise)
_initialise_fast = _filter_jit(initialise, compiler_options={"xla_backend_optimization_level": 1})


def _load_pretrained(
    config: AnyConfig, name: str | None, pretrained: Pretrained, changes: Mapping[str, object], key: PRNGKeyArray
) -> tuple[AnyModel, State]:
    """The model of the checkpoint, loaded, and made into that of `config`."""
    # Not at the top: weights import what is above them in this package.
    from eqx_vit.weights.checkpoints import find_image_size
    from eqx_vit.weights.engine import load_state_dict
    from eqx_vit.weights.locate import locate_checkpoint
    from eqx_vit.weights.read import read_weights

    original = config if name is None else find_preset(name)
    checkpoint = locate_checkpoint(config, name, pretrained)
    own = [field.name for field in dataclasses.fields(config)]
    sizes = {field: getattr(original, field) for field in ("num_classes", "image_size", "channels") if field in changes}
    sizes |= {field: value for field, value in checkpoint.model_fields.items() if field in own}
    model, state = load_state_dict(
        *make_skeleton(change_config(config, sizes)),
        read_weights(checkpoint.path),
        source=checkpoint.layout,
        num_classes=config.num_classes if "num_classes" in changes else None,
        image_size=find_image_size(config) if "image_size" in changes else None,
        channels=config.channels if "channels" in changes else None,
        key=key,
    )
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((model, state))):
        return model, state
    # The weights have no head for this model: it keeps the one that it was made with.
    made = build(model.config, jax.random.fold_in(key, 0))
    return jax.tree.map(lambda leaf, new: new if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, (model, state), made)
