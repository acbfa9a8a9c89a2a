"""Look inside a model: attention of a layer, a linear probe on every layer's features, Grad-CAM, a gradient.

    python examples/look_inside.py [PICTURE.png]     # half a minute; the ViT learns digits first

Prints the accuracy of a linear probe on the features of each block, a ridge regression in closed form: that of the
class token rises with depth, from 0.8 to above 0.9. Writes a picture of one digit: Grad-CAM, rollout, attention.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import eqx_vit

pixels, labels = map(np.asarray, load_digits(return_X_y=True))
labels = labels.astype(int)
images = (pixels.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
order = np.random.default_rng(0).permutation(len(images))
train, test = order[:1400], order[1400:]

config = eqx_vit.ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=10, dim=48, depth=8, heads=4, mlp_dim=96)
model, state = eqx_vit.create(config, key=jax.random.key(0))
optimiser = optax.adamw(2e-3, weight_decay=0.05, mask=eqx_vit.decay_mask)
optimiser_state = optimiser.init(eqx_vit.trainable(model))


@eqx.filter_jit
def step(model, optimiser_state, images, labels):
    def loss(model):
        logits, _ = eqx_vit.forward(model, state, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = eqx_vit.trainable(eqx.filter_grad(loss)(model))
    updates, optimiser_state = optimiser.update(gradients, optimiser_state, eqx_vit.trainable(model))
    return eqx.apply_updates(model, updates), optimiser_state


for draw in np.random.default_rng(0).spawn(300):
    batch = draw.choice(train, 64, replace=False)
    model, optimiser_state = step(model, optimiser_state, images[batch], labels[batch])
model = eqx_vit.inference_mode(model)

# Attention of layer 7: its class token's row, per head. Any other value has a name too.
names = ["blocks.attention.weights[class]", "blocks.mlp"]
logits, seen = eqx_vit.observe(model, state, images[test[:5]], names)
print("attention of layer 7:", seen["blocks.attention.weights[class]"][:, 7].shape, "(images, heads, tokens)")
print("all names:", ", ".join(eqx_vit.observable(model)))


def probe(features):  # ridge regression on the one-hot labels
    features = np.asarray(features).reshape(len(features), -1)
    targets = (labels[train, None] == np.arange(10)).astype(np.float32)
    inner = features[train].T @ features[train] + 10 * np.eye(features.shape[1], dtype=np.float32)
    weights = np.linalg.solve(inner, features[train].T @ targets)
    return np.mean(np.argmax(features[test] @ weights, axis=1) == labels[test])


print("accuracy of a linear probe on each block: on its class token, on all of its patches")
layers = eqx_vit.intermediates(model, state, images, prefix_tokens=True)
for info, (patches, prefix) in zip(eqx_vit.feature_info(model), layers, strict=True):
    print(f"  {info.name}  {info.shape}  {probe(prefix):.3f}  {probe(patches):.3f}")

# A gradient with respect to what is seen: how much each attention weight of the class token matters to the true class.
name, batch, classes = names[0], images[test[:5]], jnp.asarray(labels[test[:5]])


@jax.grad
def relevance(perturbation):
    logits, _ = eqx_vit.observe(model, state, batch, [name], perturbations={name: perturbation})
    return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()


slope = relevance(jnp.zeros_like(seen[name]))
print("mean |gradient| of each layer's weights:", np.abs(slope).mean(axis=(0, 2, 3)).round(3))

heads = eqx_vit.attention_maps(model, state, batch, layers=[7])[0][0]
maps = [images[test[0], ..., 0], eqx_vit.grad_cam(model, state, batch, classes)[0]]
maps += [eqx_vit.attention_rollout(model, state, batch)[0], *heads]
titles = ["image", f"Grad-CAM of {classes[0]}", "rollout", *(f"layer 7, head {head}" for head in range(len(heads)))]
figure = Figure(figsize=(14, 2.4), layout="constrained")
for axes, title, values in zip(figure.subplots(1, len(maps)), titles, maps, strict=True):
    axes.imshow(values)
    axes.set(title=title, xticks=[], yticks=[])
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "look_inside.png")
