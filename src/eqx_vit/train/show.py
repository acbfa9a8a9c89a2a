"""batch.png: images of the first step, as the model is given them."""

from pathlib import Path

from eqx_vit.train.batches import read_batches
from eqx_vit.train.data import Data
from eqx_vit.train.loop import make_examples
from eqx_vit.train.optimiser import make_optimiser
from eqx_vit.train.plots import draw_batch
from eqx_vit.train.run_folder import Run
from eqx_vit.train.step import make_step_config, show_batch

BATCH = "batch.png"


def write_batch(folder: Path, run: Run, data: Data) -> Path:
    """Write the picture; nothing is trained.

    **Raises:** `ValueError` where no training image can be read.
    """
    examples = make_examples(run, data)
    optimiser = make_optimiser(run.config, run.settings, examples.total)
    with read_batches(examples, examples.batch_size) as batches:
        batch = next(batches)
    config = make_step_config(run.config, optimiser, run.settings, run.input_spec)
    images, targets = show_batch(config, 0, batch.images, batch.labels)
    draw_batch(folder / BATCH, images, targets, data.classes, f"{run.settings.model}: images of the first step")
    return folder / BATCH
