"""A loop of your own on many devices: the batch over all of them, the parameters over some.

    python examples/many_devices.py                          # all devices that there are
    JAX_NUM_CPU_DEVICES=8 python examples/many_devices.py    # 8 simulated ones

Prints where the largest array lies, and the test accuracy after each epoch, which on any number of devices ends above
0.9. Parameters, gradients and Adam's moments are spread over up to four devices, the axis `fsdp` of the mesh.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import eqx_vit

CONFIG = eqx_vit.ViTConfig(
    image_size=8, patch_size=2, num_classes=10, dim=64, depth=4, heads=4, mlp_dim=128, channels=1, dropout=0.1
)
EPOCHS, BATCH = 12, 64


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


devices = len(jax.devices())
mesh = eqx_vit.make_mesh(fsdp=next(size for size in (4, 2, 1) if devices % size == 0))
model, state = eqx_vit.create(CONFIG, key=jax.random.key(0))
model = eqx_vit.shard(model, mesh)

pixels, labels = load_digits(return_X_y=True)
images = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(images))
train, test = order[320:], order[:320]

steps = EPOCHS * (len(train) // BATCH)
schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
optimiser = optax.adamw(schedule, weight_decay=0.05, mask=eqx_vit.decay_mask)

with jax.set_mesh(mesh):
    optimiser_state = optimiser.init(eqx_vit.trainable(model))  # the moments lie as the parameters do
    largest = max(jax.tree.leaves(eqx.filter(model, eqx.is_array)), key=lambda leaf: leaf.size)
    print(f"{dict(mesh.shape)}: an array of {largest.shape}, of which a device has {largest.addressable_data(0).shape}")
    for epoch in range(EPOCHS):
        shuffled = np.random.default_rng(epoch).permutation(train)
        for number in range(len(train) // BATCH):
            rows = shuffled[number * BATCH : (number + 1) * BATCH]
            batch, targets = eqx_vit.shard_batch((images[rows], labels[rows]), mesh)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), epoch), number)
            model, state, optimiser_state = step(model, state, optimiser_state, batch, targets, key)
        found = accuracy(model, state, *eqx_vit.shard_batch((images[test], labels[test]), mesh))
        print(f"epoch {epoch + 1:2d}  test accuracy {found:.3f}")
