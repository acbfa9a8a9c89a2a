"""A plain `eqx.filter_jit` training loop on scikit-learn's handwritten digits, for any model of the table.

    python examples/training_loop.py                     # a small ViT, about 25 seconds on two CPU cores
    python examples/training_loop.py levit_128s          # any preset, BatchNorm ones included; minutes

Prints the test accuracy after each epoch: the small ViT ends at about 0.94.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import eqx_vit
from eqx_vit.testing import image_size_of

SMALL = eqx_vit.ViTConfig(
    image_size=8, patch_size=2, num_classes=10, dim=64, depth=4, heads=4, mlp_dim=128, channels=3, dropout=0.1
)
EPOCHS, BATCH = 20, 32


def digits(image_size):
    """(images, labels): 1,797 images of (height, width, 3) with values in [0, 1], as large as the model takes them."""
    pixels, labels = load_digits(return_X_y=True)
    images = jnp.asarray(pixels, jnp.float32).reshape(-1, 8, 8, 1) / 16
    images = jax.image.resize(images, (len(images), *image_size, 1), "linear")
    return jnp.repeat(images, 3, axis=-1), jnp.asarray(labels)


def loss(model, state, images, labels, key):
    logits, state = eqx_vit.forward(model, state, images, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state


@eqx.filter_jit(donate="all")
def step(model, state, optimiser_state, images, labels, key):
    (_, state), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(model, state, images, labels, key)
    parameters = eqx_vit.trainable(model)
    updates, optimiser_state = optimiser.update(eqx_vit.trainable(gradients), optimiser_state, parameters)
    return eqx.apply_updates(model, updates), state, optimiser_state


@eqx.filter_jit
def accuracy(model, state, images, labels):
    logits, _ = eqx_vit.forward(eqx_vit.inference_mode(model), state, images)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


model_key, head_key, loop_key = jax.random.split(jax.random.key(0), 3)
model, state = eqx_vit.create(sys.argv[1] if len(sys.argv) > 1 else SMALL, key=model_key)
model = eqx_vit.replace_head(model, 10, key=head_key)
print(f"{type(model).__name__}, {eqx_vit.count_params(model):,} parameters")

images, labels = digits(image_size_of(model.config))
order = np.random.default_rng(0).permutation(len(images))
train, test = order[360:], order[:360]

steps = EPOCHS * (len(train) // BATCH)
schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
optimiser = optax.adamw(schedule, weight_decay=0.05, mask=eqx_vit.decay_mask)
optimiser_state = optimiser.init(eqx_vit.trainable(model))

for epoch in range(EPOCHS):
    shuffled = np.random.default_rng(epoch).permutation(train)
    for number in range(len(train) // BATCH):
        batch = shuffled[number * BATCH : (number + 1) * BATCH]
        key = jax.random.fold_in(jax.random.fold_in(loop_key, epoch), number)
        model, state, optimiser_state = step(model, state, optimiser_state, images[batch], labels[batch], key)
    print(f"epoch {epoch + 1:2d}  test accuracy {accuracy(model, state, images[test], labels[test]):.3f}")
