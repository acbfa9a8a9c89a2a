"""Models on many devices: one mesh, the batch over all of it, the parameters over a part of it.

    mesh = eqx_vit.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        model = eqx_vit.shard(model, mesh)
        step(model, ..., eqx_vit.shard_batch(images, mesh))

Within `jax.set_mesh`, `forward` computes each image on one device, and collects the parameters of one block at a time
(fully sharded data parallelism: arXiv 1910.02054, stage 3). BatchNorm's statistics are those of the whole batch.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from eqx_vit.layers import Stack
from eqx_vit.layers.config import check, no_type_check
from eqx_vit.layers.sharding import BATCH_AXES, parameter_spec
from eqx_vit.model import replace_fields
from eqx_vit.paths import is_array


def make_mesh(data: int | None = None, fsdp: int = 1) -> Mesh:
    """A mesh over all devices: `fsdp` that share the parameters, so often as there are devices or `data` says.

    **Raises:** `ValueError` for numbers whose product is not that of the devices.
    """
    devices = len(jax.devices())
    check(fsdp >= 1 and (data is None or data >= 1), f"a mesh needs 1 device or more each way, given {data}, {fsdp}")
    rows = devices // fsdp if data is None else data
    check(
        rows * fsdp == devices,
        f"a mesh of data={rows}, fsdp={fsdp} has {rows * fsdp} devices, and there are {devices}: their product must be "
        "that",
    )
    return jax.make_mesh((rows, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def parameter_shardings(model: PyTree, mesh: Mesh) -> PyTree:
    """How each array of a model lies on a mesh with an axis `fsdp`: along its largest axis that divides, never depth.

    Small arrays are on every device whole. Fits the arrays of the model; None in other places.
    """
    return _place(model, mesh, ())


@no_type_check
def shard(model: PyTree, mesh: Mesh) -> PyTree:
    """The model, or its gradients or moments, with the arrays placed as `parameter_shardings` says.

    **Raises:** `ValueError` for a mesh without an axis `fsdp`.
    """
    return jax.tree.map(
        lambda sharding, leaf: leaf if sharding is None else place_array(leaf, sharding),
        parameter_shardings(model, mesh),
        model,
        is_leaf=lambda node: node is None,
    )


@no_type_check
def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Arrays of a batch with its first axis over all devices of the mesh.

    Where the mesh spans several processes, each gives the part of the batch that is at its `local_places`.

    **Raises:** `ValueError` for a batch that the devices do not share equally.
    """
    sharding = _batch_sharding(mesh)
    devices = len(mesh.local_devices)

    def place(leaf: np.ndarray | Array) -> Array:
        check(
            leaf.shape[0] % devices == 0,
            f"a batch of {leaf.shape[0]} cannot be shared equally by the {devices} devices of the mesh",
        )
        if devices == mesh.size:
            return jax.device_put(leaf, sharding)
        batch_size = leaf.shape[0] // devices * mesh.size
        own, places, every = np.asarray(leaf), local_places(batch_size, mesh), np.arange(batch_size)
        return jax.make_array_from_callback(
            (batch_size, *leaf.shape[1:]),
            sharding,
            lambda index: own[np.searchsorted(places, every[(index or (slice(None),))[0]])],
        )

    return jax.tree.map(place, batch)


def local_places(batch_size: int, mesh: Mesh) -> Int[np.ndarray, " own"]:
    """The places of a batch that the devices of this process compute, in order: all, where it is the only one."""
    spans = _batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.sort(np.concatenate([np.arange(batch_size)[span] for span in spans if span is not None]))


@no_type_check
def place_array(array: np.ndarray | Array, sharding: NamedSharding) -> Array:
    """An array that every process has whole, or that is sharded already, as the sharding says."""
    if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


@no_type_check
def _place(tree: PyTree, mesh: Mesh, depths: tuple[int, ...]) -> PyTree:
    axes = ", ".join(mesh.axis_names)
    check("fsdp" in mesh.shape, f"the mesh has no axis fsdp, but {axes}: eqx_vit.make_mesh makes one that has")

    def place(node: PyTree) -> PyTree:
        if isinstance(node, Stack):
            return replace_fields(node, block=_place(node.block, mesh, (*depths, node.depth)))
        if not is_array(node):
            return None
        spec = parameter_spec(node.shape[len(depths) :], mesh.shape["fsdp"])
        return NamedSharding(mesh, PartitionSpec(*[None] * len(depths), *spec))

    return jax.tree.map(place, tree, is_leaf=lambda node: isinstance(node, Stack))
