"""What the head's token attends to: maps of each head, and the attention rollout over all layers."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, Float

from eqx_vit.forward import Images, check_batch
from eqx_vit.inspection.features import Indices, take_indices
from eqx_vit.inspection.naming import FIRST_ROW, WEIGHTS
from eqx_vit.inspection.observe import observe
from eqx_vit.layers.config import no_type_check
from eqx_vit.points import AttentionPoint
from eqx_vit.registry import AnyModel


@no_type_check
def attention_maps(
    model: AnyModel, state: State, images: Images, layers: Indices = None
) -> list[Float[Array, "batch heads rows columns"]]:
    """The attention to the patches, per head, of each layer: that of the class token, or where the head reads the mean
    of the tokens, the mean of theirs. In inference mode.

    What a map lacks to a sum of 1 goes to the class token and whatever else is before the patches. Of CaiT the layers
    are the class blocks, of CvT those of the last stage; of CrossViT it is the large branch's class token on the small
    patches; of Parallel ViT the heads of a layer's branches come one after the other.

    **Arguments:** `layers`: which, negative ones from the end; a number for the last so many; None for all. `state`,
    `images`: as `eqx_vit.forward` takes them.

    **Raises:** `ValueError` for a model without such attention and a layer that there is not, and whatever `forward`
    raises.
    """
    check_batch(model, state, images, None)
    points = _find_points(model, images)
    kinds = [FIRST_ROW if point.class_token else WEIGHTS for point in points]
    names = [point.module + kind for point, kind in zip(points, kinds, strict=True)]
    _, seen = observe(eqx.nn.inference_mode(model), state, images, names)
    maps: list[Array] = []
    for point, name in zip(points, names, strict=True):
        weights = seen[name] if point.class_token else jnp.mean(seen[name], axis=-2)
        # Whatever stands between the batch and the heads is the depth, then the branches that run side by side.
        weights = weights.reshape(len(images), weights.shape[1] if weights.ndim > 3 else 1, -1, weights.shape[-1])
        maps += [_to_map(weights[:, layer], point) for layer in range(weights.shape[1])]
    return [maps[index] for index in take_indices(len(maps), layers)]


@no_type_check
def attention_rollout(model: AnyModel, state: State, images: Images) -> Float[Array, "batch rows columns"]:
    """How much of each patch reaches what the head reads, if the layers mixed the tokens and did nothing else: the
    product of `(attention + identity) / 2` over the layers, with the mean over the heads (Abnar and Zuidema, arXiv
    2005.00928, section 3). In inference mode.

    **Raises:** `ValueError` for a model whose tokens change on the way, and whatever `forward` raises.
    """
    check_batch(model, state, images, None)
    points = _find_points(model, images)
    names = [point.module + WEIGHTS for point in points]
    if not has_constant_tokens(model, images):
        raise ValueError(
            f"the tokens of {type(model).__name__} are not the same in all layers, as a product of attentions needs: "
            "eqx_vit.attention_maps shows each layer's, eqx_vit.grad_cam explains a class"
        )
    _, seen = observe(eqx.nn.inference_mode(model), state, images, names)
    mixings: list[Array] = []
    for name in names:
        weights = seen[name]
        layers = jnp.mean(weights.reshape(len(images), weights.shape[1], -1, *weights.shape[-2:]), axis=2)
        identity = jnp.broadcast_to(jnp.eye(layers.shape[-1], dtype=layers.dtype), layers.shape)
        mixings += list(jnp.moveaxis((layers + identity) / 2, 1, 0))
    rollout = functools.reduce(lambda below, mixing: mixing @ below, mixings)
    rows = rollout[:, 0] if points[0].class_token else jnp.mean(rollout, axis=1)
    return _to_map(rows, points[0])


@no_type_check
def has_constant_tokens(model: AnyModel, images: Images) -> bool:
    """Whether `attention_rollout` takes the model: all layers attend from the same tokens to the same tokens."""
    points = model.attention_points(*images.shape[1:3])
    return (
        bool(points)
        and len({(point.grid, point.prefix) for point in points}) == 1
        and all(point.self_attention for point in points)
    )


@no_type_check
def resize_maps(maps: Float[Array, "... rows columns"], size: tuple[int, int]) -> Float[Array, "... height width"]:
    """Maps at patch resolution, enlarged (bilinearly) to (height, width), to be laid over the image."""
    return jax.image.resize(maps, (*maps.shape[:-2], *size), "linear")


@no_type_check
def _find_points(model: AnyModel, images: Images) -> list[AttentionPoint]:
    points = model.attention_points(*images.shape[1:3])
    if not points:
        raise ValueError(
            f"{type(model).__name__} has no token that attends to all patches: eqx_vit.grad_cam explains a class of "
            "any model, and eqx_vit.observe gives the weights of any attention by its name"
        )
    return points


@no_type_check
def _to_map(weights: Float[Array, "*batch keys"], point: AttentionPoint) -> Float[Array, "*batch rows columns"]:
    return weights[..., point.prefix :].reshape(*weights.shape[:-1], *point.grid)
