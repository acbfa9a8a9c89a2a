"""A model for low latency: its blocks apart."""

from typing import TypeVar

from eqx_vit.arguments import check_argument
from eqx_vit.layers.config import no_type_check
from eqx_vit.layers.unstacked import restack, unstack
from eqx_vit.model import ImageModel
from eqx_vit.registry import AnyModel

Model = TypeVar("Model", bound=AnyModel)


@no_type_check
def unstacked(model: Model) -> Model:
    """The same model with separate blocks in place of stacks, for small batches: it gives the same numbers.

    A loop over a stack copies each block's weights out of it before it multiplies by them, which is felt when a batch
    has few tokens to share that copy. In exchange a program over separate blocks takes longer to compile, the more so
    the deeper the model. It is for inference: optimisers and sharding want the depth as an axis, so train the stacked
    one. Everything else takes either: the state stays as it is, `observe` and all that is built on it give the same
    names and shapes, `save` writes the same file (`load` gives the stacked form). `model.blocks[i]` is a block of both.

    The arrays are copied; where the model is not needed any more, `model = eqx_vit.unstacked(model)` lets it go.

    **Raises:** `ValueError` for what is not a model.
    """
    check_argument("unstacked", "model", model, ImageModel)
    return unstack(model)


@no_type_check
def stacked(model: Model) -> Model:
    """The inverse of `unstacked`; any other model comes back as it is.

    **Raises:** `ValueError` for what is not a model.
    """
    check_argument("stacked", "model", model, ImageModel)
    return restack(model)
