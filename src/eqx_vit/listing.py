"""The table of presets that `eqx-vit models` prints."""

import dataclasses

import equinox as eqx
import jax

from eqx_vit.counting import multiply_adds
from eqx_vit.create import preset
from eqx_vit.layers.config import pair
from eqx_vit.models import MODELS
from eqx_vit.surface import build, count_params

HEADINGS = ("name", "parameters", "multiply-adds", "image size", "weights")


def cells(name: str) -> tuple[str, str, str, str, str]:
    """A preset's cells under `HEADINGS`. Nothing is compiled or computed: the model is only traced.

    **Raises:** `ValueError` for an unknown name.
    """
    config = preset(name)
    model, _ = eqx.filter_eval_shape(build, config, jax.random.key(0))
    sized = "image_size" in [field.name for field in dataclasses.fields(config)]
    size = " x ".join(map(str, pair(config.image_size))) if sized else "any"
    source = next(row for row in MODELS.values() if name in row.presets).weights.get(name)
    return (
        name,
        f"{count_params(model):,}",
        f"{multiply_adds(config) / 1e9:,.2f} G",
        size,
        source.hub if source else "-",
    )
