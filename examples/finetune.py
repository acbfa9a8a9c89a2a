"""Fine-tuning: load weights, train a new head on top of them, save the model, and hand it to timm.

    python examples/finetune.py       # no network: a ViT that has learnt the digits 0 to 5 learns 6 to 9, 2 minutes
    python examples/finetune.py --pretrained hub --data photos --image-size 224 --layer-decay 0.75 --out mine

`--pretrained` is hub (the released weights), hf-hub:owner/name, a folder or a file; `--data` has a folder of images for
each class. With a layer decay of 0.75 a block learns at 0.75 times the rate of the next one; with 0 only the last norm
and the head learn. Prints the accuracy on images held out: above 0.9 for the digits 6 to 9 (frozen: 0.7).
"""

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from PIL import Image
from sklearn.datasets import load_digits

import eqx_vit
from eqx_vit import weights

MODEL = "vit_tiny_patch16_224"  # or another of timm's ViT, DeiT and DeiT III


def pictures(folder, rule):
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    labels, names = np.unique([path.parent.name for path in files], return_inverse=True)[::-1]
    return np.stack([rule.apply(Image.open(path)) for path in files]), labels, names.tolist()


def digits(first, last, rule):
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    chosen = np.isin(labels, range(first, last + 1))
    images = [rule.apply(Image.fromarray(image.astype(np.uint8))) for image in pixels[chosen].reshape(-1, 8, 8) * 15.9]
    return np.stack(images), labels[chosen] - first, [str(digit) for digit in range(first, last + 1)]


def fit(model, state, images, labels, epochs, decay):
    adamw = optax.adamw(1e-3, weight_decay=0.05, mask=eqx_vit.decay_mask)
    optimiser = optax.chain(adamw, eqx_vit.scale_by_layer(decay))

    def loss(model, state, images, labels, key):
        logits, state = eqx_vit.forward(model, state, images, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    # Split once: eqx.filter_jit would tell arrays from the rest at every step.
    arrays, rest = eqx.partition((model, state, optimiser.init(eqx_vit.trainable(model))), eqx.is_array)

    @partial(jax.jit, donate_argnums=0)
    def step(arrays, images, labels, key):
        model, state, optimiser_state = eqx.combine(arrays, rest)
        gradients, state = eqx.filter_grad(loss, has_aux=True)(model, state, images, labels, key)
        gradients, parameters = eqx_vit.trainable(gradients), eqx_vit.trainable(model)
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, parameters)
        model = eqx.apply_updates(model, updates)
        return eqx.filter((model, state, optimiser_state), eqx.is_array)

    test, train = np.split(np.random.default_rng(0).permutation(len(images)), [len(images) // 5])
    for number, random in enumerate(np.random.default_rng(0).spawn(epochs * (len(train) // 32))):
        chosen, key = random.choice(train, 32, replace=False), jax.random.key(number)
        arrays = step(arrays, images[chosen], labels[chosen], key)
    model, state, _ = eqx.combine(arrays, rest)
    logits, _ = eqx.filter_jit(eqx_vit.forward)(eqx_vit.inference_mode(model), state, images[test])
    return model, state, np.mean(np.argmax(logits, axis=-1) == labels[test])


parser = argparse.ArgumentParser()
kinds = {"pretrained": (str, ""), "data": (Path, None), "image-size": (int, 32), "layer-decay": (float, 0.75)}
for name, (kind, default) in {**kinds, "out": (Path, tempfile.mkdtemp())}.items():
    parser.add_argument(f"--{name}", type=kind, default=default)
options = parser.parse_args()
out, key, size = options.out, jax.random.key(0), options.image_size
rule = dataclasses.replace(weights.preprocessing(MODEL), image_size=(size, size))
if not options.pretrained:  # make the weights that others download
    images, labels, names = digits(0, 5, rule)
    model, state = eqx_vit.create(MODEL, key=key, image_size=size, num_classes=len(names))
    model, state, accuracy = fit(model, state, images, labels, epochs=10, decay=1.0)
    weights.export(out / "digits-0-5", model, state, target="timm", architecture=MODEL, preprocessing=rule)
    print(f"digits 0 to 5: {accuracy:.2f}")
images, labels, names = pictures(options.data, rule) if options.data else digits(6, 9, rule)
pretrained = options.pretrained == "hub" or options.pretrained or out / "digits-0-5"
model, state = eqx_vit.create(MODEL, key=key, pretrained=pretrained, image_size=size, num_classes=len(names))
model, state, accuracy = fit(model, state, images, labels, epochs=12, decay=options.layer_decay)
print(f"{', '.join(names)}: {accuracy:.2f}")
weights.export(out / "timm", model, state, target="timm", architecture=MODEL, preprocessing=rule, class_names=names)
eqx_vit.save(out / "model.safetensors", model, state)
print(f"in {out}: model.safetensors for eqx_vit.load, and timm/,")
print(f"for timm.create_model('local-dir:{out / 'timm'}', pretrained=True)")
