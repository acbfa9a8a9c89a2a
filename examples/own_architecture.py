"""An architecture of your own, in a file of your own: a ViT with talking heads and a convolutional stem.

    python examples/own_architecture.py                                         # all of it, in a minute
    eqx-vit train --import examples/own_architecture.py --model talking_digits  # or: evaluate, predict, look

The program trains it on digits from the command line, loads what was saved, looks inside, and puts it through the
contracts that the library's own models keep. Prints the accuracy on test images, above 0.9, and where the run lies.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.datasets import load_digits

import eqx_vit
from eqx_vit.layers import Conv, Linear, attention_scores, attention_values, attention_weights, merge_heads, split_heads


@dataclass(frozen=True, kw_only=True)
class TalkingViTConfig(eqx_vit.ViTConfig):
    """The fields of a ViT, and one more: plain data, which files keep."""

    stem_width: int = 16

    def check(self) -> None:
        super().check()
        if self.patch_size != 2:
            raise ValueError(f"TalkingViTConfig.patch_size must be 2, the stride of the stem; given {self.patch_size}")


class TalkingHeads(eqx.Module):
    """Attention whose heads are mixed before and after the softmax (Shazeer et al., arXiv 2003.02436)."""

    qkv: Linear
    before: Array
    after: Array
    projection: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, config: TalkingViTConfig, *, key: Array) -> None:
        qkv_key, before_key, after_key, projection_key = jax.random.split(key, 4)
        self.qkv = Linear(config.dim, 3 * config.dim, key=qkv_key)
        near_identity = [
            jnp.eye(config.heads) + 0.1 * jax.random.normal(k, (config.heads,) * 2) for k in (before_key, after_key)
        ]
        self.before, self.after = near_identity
        self.projection = Linear(config.dim, config.dim, key=projection_key)
        self.heads = config.heads

    def __call__(self, tokens: Float[Array, "tokens dim"], *, key: Array | None = None) -> Float[Array, "tokens dim"]:
        query, keys, value = split_heads(self.qkv(tokens), 3, self.heads)
        scores = jnp.einsum("gh,hqk->gqk", self.before.astype(jnp.float32), attention_scores(query, keys))
        weights = attention_weights(scores)  # what `observe` calls blocks.attention.weights
        weights = jnp.einsum("gh,hqk->gqk", self.after.astype(jnp.float32), weights)
        return self.projection(merge_heads(attention_values(weights, value)))


class Stem(eqx.Module):
    """Two convolutions; the second one halves the image, as patches of 2 would."""

    first: Conv
    second: Conv

    def __init__(self, config: TalkingViTConfig, *, key: Array) -> None:
        first_key, second_key = jax.random.split(key)
        self.first = Conv(config.channels, config.stem_width, 3, padding=1, key=first_key)
        self.second = Conv(config.stem_width, config.dim, 2, stride=2, key=second_key)

    def __call__(self, image: Float[Array, "height width channels"]) -> Float[Array, "rows columns dim"]:
        return self.second(jax.nn.gelu(self.first(image)))


def make_talking_vit(config: TalkingViTConfig, *, key: Array) -> eqx_vit.ViT:
    return eqx_vit.ViT(config, key=key, attention=TalkingHeads, patch_embedding=Stem)


DIGITS = TalkingViTConfig(
    image_size=8, patch_size=2, num_classes=10, dim=64, depth=4, heads=4, mlp_dim=128, channels=1, drop_path=0.1
)
eqx_vit.register(
    eqx_vit.Architecture("talking_vit", make_talking_vit, TalkingViTConfig, presets={"talking_digits": DIGITS})
)


def main() -> None:
    run = Path(tempfile.mkdtemp()) / "run"
    train = ["train", "--import", __file__, "--model", "talking_digits", "--epochs", "20", "--learning-rate", "4e-3"]
    subprocess.run([sys.executable, "-m", "eqx_vit", *train, "--output", run], check=True)

    model, state = eqx_vit.load(run / "best.safetensors")
    model = eqx_vit.inference_mode(model)
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    images = (images - images.mean()) / images.std()
    logits, seen = eqx_vit.observe(model, state, images, ["blocks.attention.weights[class]", "patch_embedding.first"])
    print(f"all digits: accuracy {np.mean(np.argmax(logits, axis=1) == labels):.3f}")
    print({name: value.shape for name, value in seen.items()})
    print("Grad-CAM:", eqx_vit.grad_cam(model, state, images[:2]).shape)

    wider = eqx_vit.resize(eqx_vit.replace_head(model, 3, key=jax.random.key(0)), 16)
    print("3 classes at 16 x 16:", eqx_vit.forward(wider, state, jnp.zeros((1, 16, 16, 1)))[0].shape)
    variables = eqx_vit.flax.TalkingViT(**vars(DIGITS)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    print("as Flax has it:", list(variables["params"]))
    eqx_vit.testing.check_contracts(DIGITS)
    print("all contracts hold; the run is in", run)


if __name__ == "__main__":
    main()
