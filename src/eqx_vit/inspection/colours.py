"""Features as colours."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from eqx_vit.layers.config import check, no_type_check


@no_type_check
def features_to_rgb(features: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch rows columns 3"]:
    """The first three principal components of patch features as red, green and blue, from 0 to 1 (the pictures of DINO,
    arXiv 2304.07193, section 7.6).

    They are those of all images together: patches of one colour are alike, in whatever image. Each component fills the
    range, but for the outermost hundredth on either side.

    **Raises:** `ValueError` for anything but maps of at least 3 channels.
    """
    check(
        features.ndim == 4 and features.shape[-1] >= 3,
        f"features must be maps of (batch, rows, columns, 3 or more channels), given shape {features.shape}",
    )
    patches = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
    centred = patches - jnp.mean(patches, axis=0, keepdims=True)
    _, _, directions = jnp.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is arbitrary: the component that varies most is to be bright where it is rarer.
    components = centred @ directions[:3].T
    skew = jnp.sum(components**3, axis=0, keepdims=True)
    components = components * jnp.where(skew < 0, -1.0, 1.0)
    low, high = jnp.percentile(components, jnp.array([1.0, 99.0]), axis=0)[:, None]
    scaled = (components - low) / jnp.maximum(high - low, jnp.finfo(jnp.float32).tiny)
    return jnp.clip(scaled, 0, 1).reshape(*features.shape[:-1], -1)
