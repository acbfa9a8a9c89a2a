"""A Flax `TrainState` loop on handwritten digits, with a model of this library in place of a linen module.

    python examples/flax_dropin.py          # needs: pip install -e ".[train,flax]"

Takes about 40 seconds on two CPU cores. Prints the test accuracy after each epoch, above 0.9 at the end. For a linen
model the lines that differ are the import of the model and its keywords.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

from eqx_vit.flax import LeViT

EPOCHS, BATCH, SIZE = 12, 64, 32


class State(TrainState):
    batch_stats: dict


def digits():
    """(images, labels): 1,797 grey images of (SIZE, SIZE, 1) with values in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    images = jnp.asarray(pixels, jnp.float32).reshape(-1, 8, 8, 1) / 16
    return jax.image.resize(images, (len(images), SIZE, SIZE, 1), "linear"), jnp.asarray(labels)


@partial(jax.jit, donate_argnums=0)
def train_step(state, images, labels, key):
    def loss(params):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates

    gradients, updates = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, batch_stats=updates["batch_stats"])


@jax.jit
def accuracy(state, images, labels):
    logits = state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, images)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


images, labels = digits()
order = np.random.default_rng(0).permutation(len(images))
train, test = order[360:], order[:360]

v = LeViT(
    image_size=SIZE,
    num_classes=10,
    stages=2,
    dim=(64, 96),
    depth=2,
    heads=4,
    dim_key=16,
    dim_value=32,
    mlp_mult=2,
    dropout=0.1,
)
params_key, loop_key = jax.random.split(jax.random.key(0))
variables = v.init(params_key, images[:1])
state = State.create(apply_fn=v.apply, tx=optax.adamw(2e-3), **variables)

for epoch in range(EPOCHS):
    shuffled = np.random.default_rng(epoch).permutation(train)
    for number in range(len(train) // BATCH):
        batch = shuffled[number * BATCH : (number + 1) * BATCH]
        key = jax.random.fold_in(loop_key, epoch * len(train) + number)
        state = train_step(state, images[batch], labels[batch], key)
    print(f"epoch {epoch + 1:2d}  test accuracy {accuracy(state, images[test], labels[test]):.3f}")
