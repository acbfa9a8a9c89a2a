"""What a training step minimises: cross-entropy or binary cross-entropy, and a teacher's part beside it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from eqx_vit.train.settings import Distillation, Loss, Settings

Logits = Float[Array, "batch classes"]


class Objective(NamedTuple):
    """The loss of a run; see `Settings`. `distillation` None: there is no teacher."""

    loss: Loss
    label_smoothing: float
    distillation: Distillation | None
    distillation_weight: float
    temperature: float


def make_objective(settings: Settings) -> Objective:
    """The loss that the settings say."""
    return Objective(
        settings.loss,
        settings.label_smoothing,
        settings.distillation if settings.teacher else None,
        settings.distillation_weight,
        settings.temperature,
    )


def classify_loss(objective: Objective, logits: Logits, targets: Logits) -> Float[Array, ""]:
    """The mean loss against targets that say each class's share of an image, mixed but not smoothed.

    Cross-entropy against smoothed shares; or binary cross-entropy, the mean over images and classes, for which each
    class with a share is there (DeiT III, arXiv 2204.07118, section 3), smoothed as the shares are.
    """
    if objective.loss == "bce":
        present = optax.smooth_labels((targets > 0).astype(jnp.float32), objective.label_smoothing)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, present))
    return jnp.mean(optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, objective.label_smoothing)))


def distil_loss(objective: Objective, logits: Logits, teacher: Logits) -> Float[Array, ""]:
    """The mean loss against a teacher (DeiT, arXiv 2012.12877, section 4): "hard", the cross-entropy against its class;
    "soft", the divergence from its probabilities at the temperature, times its square and, as in the official code, the
    mean over images and classes.
    """
    if objective.distillation == "hard":
        labels = jax.nn.one_hot(jnp.argmax(teacher, axis=-1), teacher.shape[-1])
        return jnp.mean(optax.softmax_cross_entropy(logits, labels))
    own, theirs = (jax.nn.log_softmax(one / objective.temperature, axis=-1) for one in (logits, teacher))
    return jnp.mean(jnp.exp(theirs) * (theirs - own)) * objective.temperature**2


def total_loss(
    objective: Objective, logits: Logits, distilled: Logits, targets: Logits, teacher: Logits | None
) -> Float[Array, ""]:
    """The loss of a model; `distilled` are the logits of its second head, or of its only one."""
    own = classify_loss(objective, logits, targets)
    if teacher is None:
        return own
    weight = objective.distillation_weight
    return (1 - weight) * own + weight * distil_loss(objective, distilled, teacher)
