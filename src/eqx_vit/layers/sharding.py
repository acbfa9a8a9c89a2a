"""Where the compiler is told how arrays lie on a mesh: the batch over its devices, what a block computes with, whole.

Only within `jax.set_mesh` of a mesh with Auto axes called `data` and `fsdp` and no others. Left to itself, XLA shards
activations as it finds the parameters sharded, and moves them about wherever a map is cut into windows.
"""

import math

import equinox as eqx
import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import PyTree

from eqx_vit.layers.config import no_type_check

BATCH_AXES = ("data", "fsdp")
# Of smaller parameters (norms, biases), each device keeps all: to collect them would take longer than it is worth.
SMALLEST_SHARDED = 2**12


@no_type_check  # the batch of a program to be exported is a symbol
def batch_axes(batch: int | None = None) -> tuple[str, ...]:
    """The axes of the mesh in force over which a batch is sharded; none where it does not divide, or without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    fits = sizes and all(name in BATCH_AXES for name in sizes) and set(mesh.axis_types) == {AxisType.Auto}
    if not fits or (batch is not None and batch % math.prod(sizes.values())):
        return ()
    return tuple(sizes)


def parameter_spec(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """How a parameter, without its axis of depth, lies over the devices of `fsdp`: along its largest axis that divides.

    On all of them whole, where none does or it is small.
    """
    fitting = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if devices == 1 or not fitting or math.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    largest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * largest, "fsdp")


@no_type_check
def gather(tree: PyTree) -> PyTree:
    """Parameters on every device whole, for what is computed next; their gradients are sharded as they are."""
    if not batch_axes():
        return tree
    mesh = jax.sharding.get_abstract_mesh()
    devices = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)).get("fsdp", 1)

    def shard(leaf: PyTree) -> PyTree:
        if not eqx.is_array(leaf):
            return leaf
        # The derivative of a constraint is the same constraint: this one is the gradient's.
        return jax.lax.with_sharding_constraint(leaf, parameter_spec(leaf.shape, devices))

    return keep_whole(jax.tree.map(shard, tree))


@no_type_check
def keep_whole(tree: PyTree) -> PyTree:
    """The arrays, on every device whole: of one image, those of a batch being mapped over the devices."""
    if not batch_axes():
        return tree
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()) if eqx.is_array(leaf) else leaf, tree
    )
