"""What a run writes so that it can go on: models for `eqx_vit.load`, and one file with the whole state of training."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from eqx_vit.files import digest_arrays, read_arrays, write_arrays
from eqx_vit.functional import from_dicts
from eqx_vit.layers.config import check
from eqx_vit.paths import named_leaves, path_name
from eqx_vit.registry import AnyConfig
from eqx_vit.serialization import save
from eqx_vit.train.run_folder import EpochMetrics
from eqx_vit.train.step import TrainState, averaged_model

METADATA = "eqx_vit.training_state"  # the metrics so far, and a digest of these and the arrays


def save_averaged_model(path: Path, config: AnyConfig, train: TrainState) -> None:
    """Write the averaged model as a file for `eqx_vit.load`."""
    save(path, *from_dicts(config, *averaged_model(train)))


def save_training_state(path: Path, train: TrainState, history: Sequence[EpochMetrics]) -> None:
    """Write all arrays of the training state, and the metrics so far, as one file; atomic.

    One file, since of two files a kill could leave one old and one new.
    """
    arrays = {path_name(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(train)}
    kept = {"digest": digest_arrays(arrays, _to_json(history)), "history": [metrics._asdict() for metrics in history]}
    write_arrays(path, arrays, {METADATA: json.dumps(kept)})


def load_training_state(path: Path, make_initial: Callable[[], TrainState]) -> tuple[TrainState, list[EpochMetrics]]:
    """The training state, in NumPy arrays, and the metrics that `save_training_state` wrote. `make_initial` tells the
    shapes.

    **Raises:** `ValueError` for a damaged file, or one of another model or optimiser.
    """
    arrays, metadata = read_arrays(path)
    if METADATA not in metadata:
        raise ValueError(f"{path} is not a training state")
    try:
        kept = json.loads(metadata[METADATA])
        history = [EpochMetrics(**line) for line in kept["history"]]
        check(
            kept["digest"] == digest_arrays(arrays, _to_json(history)), "its content has changed since it was written"
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: {error}; delete it, and --resume starts this run from its first step"
        ) from error
    skeleton = jax.eval_shape(make_initial)
    shapes = named_leaves(skeleton)
    wrong = sorted(shapes.keys() ^ arrays.keys()) or [
        name for name, leaf in shapes.items() if (leaf.shape, leaf.dtype) != (arrays[name].shape, arrays[name].dtype)
    ]
    if wrong:
        raise ValueError(f"{path} does not fit this run's model: {len(wrong)} arrays differ, such as {wrong[0]}")
    train = jax.tree_util.tree_map_with_path(lambda at, _: arrays[path_name(at)], skeleton)
    return train, history


def _to_json(history: Sequence[EpochMetrics]) -> str:
    return json.dumps([metrics._asdict() for metrics in history])
