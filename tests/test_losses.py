"""What a training step minimises, against the formulas in NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eqx_vit.train.losses import classify_loss, distil_loss, make_objective, total_loss
from eqx_vit.train.settings import Settings


def make_settings(**given: Any) -> Settings:
    plain: dict[str, Any] = {"model": "vit", "changes": {}, "epochs": 1, "learning_rate": 0.25, "warmup": 0.0}
    return Settings(**(plain | given))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_the_losses_are_those_of_their_formulas() -> None:
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 6, 5)) * 2
    targets = np.eye(5)[rng.integers(0, 5, 6)] * 0.7 + np.eye(5)[rng.integers(0, 5, 6)] * 0.3
    arrays = [jnp.asarray(array, dtype=jnp.float32) for array in (logits, teacher, targets)]
    smooth = targets * 0.8 + 0.2 / 5
    cross_entropy = -(smooth * np.log(softmax(logits))).sum(axis=1).mean()
    objective = make_objective(make_settings(label_smoothing=0.2))
    assert float(classify_loss(objective, arrays[0], arrays[2])) == pytest.approx(cross_entropy, rel=1e-5)

    present = (targets > 0) * 0.8 + 0.2 / 5
    chances = 1 / (1 + np.exp(-logits))
    binary = -(present * np.log(chances) + (1 - present) * np.log(1 - chances)).mean()
    objective = make_objective(make_settings(label_smoothing=0.2, loss="bce"))
    assert float(classify_loss(objective, arrays[0], arrays[2])) == pytest.approx(binary, rel=1e-5)

    hard = -np.log(softmax(logits))[np.arange(6), teacher.argmax(axis=1)].mean()
    objective = make_objective(make_settings(teacher="x", distillation="hard", label_smoothing=0.0))
    assert float(distil_loss(objective, arrays[0], arrays[1])) == pytest.approx(hard, rel=1e-5)

    own, theirs = softmax(logits / 3), softmax(teacher / 3)
    soft = (theirs * np.log(theirs / own)).sum() * 3**2 / own.size  # as DeiT's losses.py: over images and classes
    objective = make_objective(
        make_settings(teacher="x", distillation="soft", temperature=3.0, label_smoothing=0.2, distillation_weight=0.25)
    )
    assert float(distil_loss(objective, arrays[0], arrays[1])) == pytest.approx(soft, rel=1e-5)
    whole = total_loss(objective, arrays[0], arrays[0], arrays[2], arrays[1])
    assert float(whole) == pytest.approx(0.75 * cross_entropy + 0.25 * soft, rel=1e-5)
    assert float(total_loss(objective, arrays[0], arrays[0], arrays[2], None)) == pytest.approx(cross_entropy, rel=1e-5)
