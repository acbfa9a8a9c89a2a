"""The features of each block or stage, as maps or tokens: one list for a detector, a segmentation head or a probe."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import jax
from equinox.nn import State
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from eqx_vit.forward import Images, check_batch
from eqx_vit.inputs import image_size_of
from eqx_vit.inspection.observe import observable, observe
from eqx_vit.layers.config import Size, check, list_some, no_type_check, pair, shorten
from eqx_vit.points import FeaturePoint
from eqx_vit.registry import AnyModel

Indices = int | Sequence[int] | None
Layout = Literal["map", "tokens"]


class FeatureInfo(NamedTuple):
    """An entry of `feature_info`."""

    name: str  # "blocks.3", "stages.1"
    channels: int
    reduction: int | tuple[int, int]  # pixels of the image per position: one number, or (height, width)
    shape: tuple[int, int, int]  # of the map: (rows, columns, channels)
    prefix_tokens: int  # class token, registers and the like, beside the map


@no_type_check
def feature_info(model: AnyModel, state: State | None = None, image_size: Size | None = None) -> list[FeatureInfo]:
    """What `intermediates` gives, one entry each, as timm's `feature_info`. Nothing is computed.

    The output of each block for models whose tokens stay the same, of each stage for those in stages.

    **Arguments:** `state`, `image_size`: as `eqx_vit.observable` takes them.
    """
    seen = observable(model, state, image_size)
    height, width = image_size_of(model.config) if image_size is None else pair(image_size)
    points = model.feature_points(height, width)

    def grid_of(point: FeaturePoint) -> tuple[int, int]:
        batch_of_one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), seen[point.module])
        return point.grid or jax.eval_shape(lambda value: select(value, point), batch_of_one).shape[1:3]

    return [
        FeatureInfo(
            point.name,
            point.channels,
            point.reduction if isinstance(point.reduction, int) else _one_if_equal(point.reduction),
            (*grid_of(point), point.channels),
            point.prefix,
        )
        for point in points
    ]


@overload
def intermediates(
    model: AnyModel,
    state: State,
    images: Images,
    indices: Indices = None,
    norm: bool = False,
    prefix_tokens: Literal[False] = False,
    layout: Layout = "map",
    key: PRNGKeyArray | None = None,
) -> list[Float[Array, "batch ..."]]: ...
@overload
def intermediates(
    model: AnyModel,
    state: State,
    images: Images,
    indices: Indices = None,
    norm: bool = False,
    *,
    prefix_tokens: Literal[True],
    layout: Layout = "map",
    key: PRNGKeyArray | None = None,
) -> list[tuple[Float[Array, "batch ..."], Float[Array, "batch prefix dim"]]]: ...
@no_type_check
def intermediates(
    model: AnyModel,
    state: State,
    images: Images,
    indices: Indices = None,
    norm: bool = False,
    prefix_tokens: bool = False,
    layout: Layout = "map",
    key: PRNGKeyArray | None = None,
) -> list[Float[Array, "batch ..."]] | list[tuple[Float[Array, "batch ..."], Float[Array, "batch prefix dim"]]]:
    """The features of some blocks or stages, in the order of `feature_info(model)`: timm's `forward_intermediates`.

    **Arguments:**

    - `indices`: which, negative ones from the end; a number for the last so many; None for all. Their order, and
      one given twice, make no difference.
    - `norm`: whether the model's last norm is applied where it fits, as timm does: to all blocks of a ViT (unless its
      norm follows the pool), to the last stage of a pyramid.
    - `prefix_tokens`: True gives pairs: features, and the class token and whatever else comes before the map.
    - `layout`: "map" for (batch, rows, columns, channels), "tokens" for (batch, rows * columns, channels).
    - `state`, `images`, `key`: as `eqx_vit.forward` takes them.

    **Raises:** `ValueError` for an index that there is not, and whatever `forward` raises.
    """
    check(layout in ("map", "tokens"), f'layout must be "map" or "tokens", given {shorten(layout)}')
    check_batch(model, state, images, key)
    for name, flag in (("norm", norm), ("prefix_tokens", prefix_tokens)):
        check(isinstance(flag, bool), f"{name} must be True or False, given {shorten(flag)}")
    points = model.feature_points(*images.shape[1:3])
    chosen = [points[index] for index in take_indices(len(points), indices)]
    _, seen = observe(model, state, images, sorted({point.module for point in chosen}), key)
    features = [split_prefix(select(seen[point.module], point), point, norm=norm) for point in chosen]
    laid_out = [
        (map_ if layout == "map" else map_.reshape(len(map_), -1, map_.shape[-1]), prefix) for map_, prefix in features
    ]
    return laid_out if prefix_tokens else [features for features, _ in laid_out]


@no_type_check
def take_indices(count: int, indices: Indices) -> list[int]:
    """Which of `count` features are meant, each once and in order: timm's rule.

    **Raises:** `ValueError` for an index that there is not.
    """
    if indices is None:
        return list(range(count))
    check(
        isinstance(indices, int)
        or (isinstance(indices, Sequence) and all(isinstance(index, int) for index in indices)),
        f"features are chosen by whole numbers, one or a list, given {shorten(indices)}",
    )
    if isinstance(indices, int):
        check(0 < indices <= count, f"indices={indices} asks for the last {indices} of {count} features: 1 to {count}")
        return list(range(count - indices, count))
    wrong = [index for index in indices if not -count <= index < count]
    check(
        not wrong,
        f"there is no feature {list_some([str(index) for index in wrong])}: the model has {count}, 0 to {count - 1} or "
        f"-{count} to -1, which eqx_vit.feature_info(model) lists",
    )
    return sorted({index % count for index in indices})


@no_type_check
def select(value: PyTree[Array], point: FeaturePoint) -> Float[Array, "batch ..."]:
    """The array of a point in what was seen of its module, which has the depth after the batch."""
    value = value if point.part is None else value[point.part]
    return value[(slice(None), *point.block)]


@no_type_check
def split_prefix(
    features: Float[Array, "batch ..."], point: FeaturePoint, *, norm: bool = False
) -> tuple[Float[Array, "batch rows columns dim"], Float[Array, "batch prefix dim"]]:
    """(map, prefix tokens) of a point's output."""
    if norm and point.norm is not None:
        features = point.norm(features)
    if point.grid is None:
        return features, features[:, 0, :0]
    tokens = features[:, point.prefix :]
    return tokens.reshape(len(tokens), *point.grid, -1), features[:, : point.prefix]


@no_type_check
def _one_if_equal(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else size
