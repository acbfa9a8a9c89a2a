"""What comes out of the last norm of a model of tokens, each part by its name."""

import jax
from equinox.nn import State
from jaxtyping import PRNGKeyArray

from eqx_vit.forward import Images, run_batch
from eqx_vit.layers.config import no_type_check
from eqx_vit.points import TokenFeatures
from eqx_vit.registry import AnyModel


@no_type_check
def forward_features(model: AnyModel, state: State, images: Images, key: PRNGKeyArray | None = None) -> TokenFeatures:
    """Class token, registers and patches after the last norm, and the pooled features, of a batch: of ViT and DINOv3.

    `class_token` is (batch, dim), None where the model has none; `register_tokens` (batch, registers, dim);
    `patch_tokens` (batch, rows * columns, dim), row by row; `pooled` (batch, width) is what the head reads, and what
    the model gives with `num_classes=0`: the class token of DINOv2, DINOv3 (`pool="cls"`) and CLIP, the mean of the
    patches, or what a learned query reads (SigLIP). Where the norm follows the pool, tokens come out without it.

    DINOv2's official code calls them `x_norm_clstoken`, `x_norm_regtokens` and `x_norm_patchtokens`; transformers has
    `last_hidden_state`, all tokens in this order, and `pooler_output`.

    **Arguments:** `state`, `images`, `key`: as `eqx_vit.forward` takes them.

    **Raises:** `ValueError` for a model of another kind, and whatever `forward` raises.
    """
    return run_batch(model, _name_features, state, images, key)[0]


@no_type_check
def _name_features(model: AnyModel, image: jax.Array, *rest: State, key: PRNGKeyArray | None) -> TokenFeatures:
    return model.name_features(model.features(image, *rest, key=key))
