"""AdamW with a warm-up, a cosine schedule, clipped gradients, and weight decay only where it belongs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from eqx_vit.paths import path_name
from eqx_vit.surface import build, decay_mask, nested
from eqx_vit.train.settings import Settings

FINAL_SHARE = 0.01  # of the peak learning rate, at the last step


def learning_rate(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate by step: a line up from 0, then half a cosine down to a hundredth of the peak."""
    peak = settings.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=int(settings.warmup * steps), decay_steps=steps, end_value=FINAL_SHARE * peak
    )
    return lambda step: schedule(jnp.asarray(step, dtype=jnp.float32))  # an int would not pass strict promotion


def make_optimiser(config: Any, settings: Settings, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of so many steps, for the parameters of a config as `eqx_vit.transform` has them.

    Decay reaches the weights of linear maps and convolutions alone (`eqx_vit.decay_mask`).
    """
    model, _ = eqx.filter_eval_shape(build, config, jax.random.key(0))
    mask = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(decay_mask(model))}
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(learning_rate(settings, steps), weight_decay=settings.weight_decay, mask=nested(mask)),
    )
