"""Where the arrays of a run lie: on one device, or on a mesh."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from eqx_vit.create import make_skeleton
from eqx_vit.files import to_host
from eqx_vit.layers.config import check
from eqx_vit.paths import Leaf, named_leaves, path_name
from eqx_vit.registry import AnyConfig
from eqx_vit.sharding import local_places, parameter_shardings, place_array, shard_batch
from eqx_vit.train.step import AnyArray, EvalStep, TrainState

Tree = TypeVar("Tree")


class Placement:
    """A mesh and what lies on it; without one there is nothing to do."""

    def __init__(self, config: AnyConfig, mesh: Mesh | None) -> None:
        self._mesh = mesh
        self._named: dict[str, tuple[tuple[int, ...], NamedSharding]] = {}
        if mesh is not None:
            model, _ = make_skeleton(config)
            shapes = {name: leaf.shape for name, leaf in named_leaves(model).items()}
            shardings = jax.tree_util.tree_leaves_with_path(parameter_shardings(model, mesh))
            self._named = {path_name(path): (shapes[path_name(path)], sharding) for path, sharding in shardings}

    def in_force(self) -> AbstractContextManager[object]:
        """Within it, the mesh is the one that models are compiled for."""
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def check_batch(self, batch_size: int) -> None:
        """Raise `ValueError` for a batch that the devices cannot share equally."""
        devices = 1 if self._mesh is None else self._mesh.size
        nearest = max(devices, batch_size // devices * devices)
        check(
            batch_size % devices == 0,
            f"a batch of {batch_size} cannot be shared equally by {devices} devices: give --batch-size {nearest}, or "
            "--mesh with as many devices as divide it",
        )

    def make(self, initial: Callable[[], TrainState]) -> TrainState:
        """The training state that a function makes, each part where it belongs from the start."""
        if self._mesh is None:
            return initial()
        return jax.jit(initial, out_shardings=self._shardings(self._mesh, jax.eval_shape(initial)))()

    def place(self, tree: Tree) -> Tree:
        """A training state or a model's (params, state), each array where it belongs."""
        if self._mesh is None:
            return jax.tree.map(jnp.array, tree)  # a copy: what a step is given is gone after it
        return jax.tree.map(place_array, tree, self._shardings(self._mesh, tree))

    def keep(self, train: TrainState) -> TrainState:
        """Within a compiled step: the training state lies as it did."""
        if self._mesh is None:
            return train
        return jax.tree.map(jax.lax.with_sharding_constraint, train, self._shardings(self._mesh, train))

    def local_places(self, batch_size: int) -> Int[np.ndarray, " own"]:
        """The places of a batch whose images this process reads: all, where it is the only one."""
        return np.arange(batch_size) if self._mesh is None else local_places(batch_size, self._mesh)

    def place_batch(self, *arrays: np.ndarray) -> tuple[np.ndarray | Array, ...]:
        """Arrays of the batch's part that this process has read, over the devices."""
        return arrays if self._mesh is None else shard_batch(arrays, self._mesh)

    def place_images(self, step: EvalStep) -> EvalStep:
        """The evaluation step, for the part of the images that this process has read, and its logits of that part."""
        if self._mesh is None:
            return step

        def evaluate(params: PyTree, state: PyTree, images: AnyArray) -> np.ndarray:
            logits = to_host(step(params, state, *self.place_batch(np.asarray(images))))
            return logits[self.local_places(len(logits))]

        return evaluate

    def _shardings(self, mesh: Mesh, tree: PyTree) -> PyTree:
        """Parameters, their averages and moments by the rule for parameters; all else on every device."""
        whole = NamedSharding(mesh, PartitionSpec())

        def choose(path: jax.tree_util.KeyPath, leaf: Leaf) -> NamedSharding:
            parts = path_name(path).split(".")
            for start in range(1, len(parts)):
                shape, sharding = self._named.get(".".join(parts[start:]), ((), whole))
                if shape == leaf.shape:
                    return sharding
            return whole

        return jax.tree_util.tree_map_with_path(choose, tree)
