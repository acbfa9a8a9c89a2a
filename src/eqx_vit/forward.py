"""A batch of images through a model: the only place that distinguishes models with BatchNorm from those without."""

from collections.abc import Callable
from typing import cast

import equinox as eqx
import jax
import numpy as np
from equinox.nn import State
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from eqx_vit.inputs import check_state
from eqx_vit.layers import BATCH_AXIS, Stack, check_key
from eqx_vit.layers.config import no_type_check
from eqx_vit.layers.sharding import batch_axes, gather
from eqx_vit.model import ImageModel
from eqx_vit.registry import AnyModel

Images = Float[Array, "batch height width channels"] | Float[np.ndarray, "batch height width channels"]


@no_type_check
def forward(
    model: AnyModel, state: State, images: Images, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, "batch classes"], State]:
    """A batch of images to logits, and the state after it: for models with and without BatchNorm alike.

    The batch, and the model, may be sharded over a mesh, of Auto or of Explicit axes: the logits are sharded as the
    batch is, the state is replicated.

    **Arguments:** `state` as `create` returned it; `images` of (batch, height, width, channels); `key` for active
    dropout, split over the images.

    **Raises:** `ValueError` for images that do not fit the config, a missing key, or a stateful model without the
    state that `create` returned beside it.
    """
    return run_batch(model, _call, state, images, key)


@no_type_check
def _call(model: AnyModel, *arguments: PyTree, key: PRNGKeyArray | None) -> PyTree[Array]:
    return model(*arguments, key=key)


@no_type_check
def check_batch(model: object, state: object, images: object, key: object) -> None:
    """Raise `ValueError` for what no batch can be run with."""
    if not isinstance(model, ImageModel):
        raise ValueError(
            f"forward takes a model, its state and images, given a {type(model).__name__} as the model: "
            "logits, state = eqx_vit.forward(model, state, images, key)"
        )
    if not isinstance(images, jax.Array | np.ndarray) or images.ndim != 4 or images.shape[0] == 0:
        given = f"shape {images.shape}" if isinstance(images, jax.Array | np.ndarray) else f"a {type(images).__name__}"
        raise ValueError(
            f"forward takes an array of (batch, height, width, channels), given {given}: one image is a batch of one, "
            "image[None]"
        )
    if key is not None:
        check_key(key)
    if state is not None or isinstance(model, eqx.nn.StatefulLayer):
        check_state(model, state)


@no_type_check
def run_batch(
    model: AnyModel,
    run: Callable[..., PyTree[Array]],
    state: State,
    images: Images,
    key: PRNGKeyArray | None,
    *mapped: PyTree[Array],
) -> tuple[PyTree[Array], State]:
    """`forward` of anything that one image goes through.

    `run(model, image, *mapped, key=key)` gives its result; for a model with BatchNorm
    `run(model, image, state, *mapped, key=key)` gives (result, state). `mapped` are further arrays of the batch.
    """
    check_batch(model, state, images, key)
    mesh = _find_explicit_mesh((model, state, images, key))
    if mesh is None:
        return _map_images(model, run, state, images, key, mapped)
    # Explicit axes want each operation to say its sharding: inside, the compiler chooses it, as it does with Auto axes.
    arrays, static = eqx.partition((model, state, images, key, mapped), eqx.is_array)
    shardings = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (jax.typeof(images).sharding.spec[:1], ())]

    def run_arrays(arrays: PyTree) -> tuple[PyTree[Array], State]:
        model, state, images, key, mapped = eqx.combine(arrays, static)
        return _map_images(model, run, state, images, key, mapped)

    run_auto = jax.sharding.auto_axes(run_arrays, axes=mesh.explicit_axes, out_sharding=tuple(shardings))
    return cast(tuple[PyTree[Array], State], run_auto(arrays))


def _find_explicit_mesh(tree: PyTree) -> AbstractMesh | None:
    """The mesh with Explicit axes over which arrays of the tree are sharded."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


@no_type_check
def _map_images(
    model: AnyModel,
    run: Callable[..., PyTree[Array]],
    state: State,
    images: Images,
    key: PRNGKeyArray | None,
    mapped: tuple[PyTree[Array], ...],
) -> tuple[PyTree[Array], State]:
    keys = None if key is None else jax.random.split(key, images.shape[0])
    axes = batch_axes(images.shape[0]) or None
    if axes:
        model = jax.tree.map(lambda node: node if _is_stack(node) else gather(node), model, is_leaf=_is_stack)
    if not isinstance(model, eqx.nn.StatefulLayer):
        return jax.vmap(lambda image, key, mapped: run(model, image, *mapped, key=key), spmd_axis_name=axes)(
            images, keys, mapped
        ), state
    return jax.vmap(
        lambda state, image, key, mapped: run(model, image, state, *mapped, key=key),
        in_axes=(None, 0, 0, 0),
        out_axes=(0, None),
        axis_name=BATCH_AXIS,
        spmd_axis_name=axes,
    )(state, images, keys, mapped)


def _is_stack(node: object) -> bool:
    return isinstance(node, Stack)  # its blocks are gathered one by one
