"""Vision transformers in JAX and Equinox, faithful to their papers' official code, with shapes checked at run time.

model, state = eqx_vit.create("vit_tiny_patch16_224", key=jax.random.key(0), num_classes=10)
logits, state = eqx_vit.forward(model, state, images, key)
"""

from jaxtyping import install_import_hook as _install_import_hook

# Every argument and result of the package is checked by beartype, for every user; JAXTYPING_DISABLE=1 turns it off.
_install_import_hook("eqx_vit", "beartype.beartype")

from equinox.nn import inference_mode as inference_mode

from eqx_vit.create import create as create
from eqx_vit.create import list_models as list_models
from eqx_vit.models import MODELS as MODELS
from eqx_vit.models.crossformer import CrossFormer as CrossFormer
from eqx_vit.models.crossformer import CrossFormerConfig as CrossFormerConfig
from eqx_vit.models.levit import LeViT as LeViT
from eqx_vit.models.levit import LeViTConfig as LeViTConfig
from eqx_vit.models.vit import ViT as ViT
from eqx_vit.models.vit import ViTConfig as ViTConfig
from eqx_vit.surface import cast as cast
from eqx_vit.surface import count_params as count_params
from eqx_vit.surface import decay_mask as decay_mask
from eqx_vit.surface import forward as forward
from eqx_vit.surface import replace_head as replace_head
from eqx_vit.surface import resize as resize
from eqx_vit.surface import trainable as trainable
from eqx_vit.surface import transform as transform
