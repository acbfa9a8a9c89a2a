"""Grad-CAM: where in the image the evidence for a class is, for any model."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State
from jaxtyping import Array, Float, Int

from eqx_vit.forward import Images, check_batch
from eqx_vit.inspection.features import select, split_prefix
from eqx_vit.inspection.observe import observe
from eqx_vit.layers.config import check, no_type_check, shorten
from eqx_vit.registry import AnyModel

Classes = int | Sequence[int] | Int[Array, " batch"] | Int[np.ndarray, " batch"] | None


@no_type_check
def grad_cam(
    model: AnyModel, state: State, images: Images, classes: Classes = None
) -> Float[Array, "batch rows columns"]:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391, section 3, equations 1 and 2): the last features that reach the
    head, each channel weighted by the mean of its gradient, summed over the channels; what is negative is cut off. At
    patch resolution; in inference mode.

    Of models with a class token it is what the last attention reads, since behind it the head reads that token alone.

    **Arguments:** `classes`: one for all images, or one each; None for the one that each image is given. `state`,
    `images`: as `eqx_vit.forward` takes them.

    **Raises:** `ValueError` for a class that there is not, a model without a head, and whatever `forward` raises.
    """
    check_batch(model, state, images, None)
    count = model.config.num_classes
    check(count > 0, f"this {type(model).__name__} has no head (num_classes=0), so there is no class to explain")
    if classes is not None:
        given = np.asarray(classes) if isinstance(classes, int | Sequence | Array | np.ndarray) else np.asarray(None)
        check(
            given.shape in ((), images.shape[:1])
            and np.issubdtype(given.dtype, np.integer)
            and bool(np.all((given >= 0) & (given < count))),
            f"classes must be one number for all {len(images)} images or one each, 0 to {count - 1}, given "
            f"{shorten(classes)}",
        )
        classes = np.broadcast_to(given, len(images))
    return _grad_cam(eqx.nn.inference_mode(model), state, images, classes)


@eqx.filter_jit
@no_type_check
def _grad_cam(
    model: AnyModel, state: State, images: Images, classes: Int[np.ndarray, " batch"] | None
) -> Float[Array, "batch rows columns"]:
    point = model.cam_point(*images.shape[1:3])

    def run(perturbation: Array) -> tuple[Array, Array]:
        logits, seen = observe(model, state, images, point.module, perturbations={point.module: perturbation})
        return logits, seen[point.module]

    def score(perturbation: Array) -> tuple[Array, Array]:
        logits, seen = run(perturbation)
        chosen = jnp.argmax(logits, axis=1) if classes is None else jnp.asarray(classes)
        return jnp.sum(jnp.take_along_axis(logits, chosen[:, None], axis=1)), seen

    _, shapes = eqx.filter_eval_shape(observe, model, state, images, point.module)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[point.module])
    gradients, seen = jax.grad(score, has_aux=True)(zeros)
    features, slopes = (split_prefix(select(value, point), point)[0] for value in (seen, gradients))
    weights = jnp.mean(slopes, axis=(1, 2), keepdims=True)
    return jax.nn.relu(jnp.sum(features * jnp.broadcast_to(weights, features.shape), axis=-1))
