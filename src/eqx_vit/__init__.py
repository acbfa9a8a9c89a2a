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
from eqx_vit.create import load as load
from eqx_vit.create import save as save
from eqx_vit.models import MODELS as MODELS
from eqx_vit.models.cait import CaiT as CaiT
from eqx_vit.models.cait import CaiTConfig as CaiTConfig
from eqx_vit.models.cross_vit import CrossViT as CrossViT
from eqx_vit.models.cross_vit import CrossViTConfig as CrossViTConfig
from eqx_vit.models.crossformer import CrossFormer as CrossFormer
from eqx_vit.models.crossformer import CrossFormerConfig as CrossFormerConfig
from eqx_vit.models.cvt import CvT as CvT
from eqx_vit.models.cvt import CvTConfig as CvTConfig
from eqx_vit.models.deepvit import DeepViT as DeepViT
from eqx_vit.models.deepvit import DeepViTConfig as DeepViTConfig
from eqx_vit.models.levit import LeViT as LeViT
from eqx_vit.models.levit import LeViTConfig as LeViTConfig
from eqx_vit.models.nest import NesT as NesT
from eqx_vit.models.nest import NesTConfig as NesTConfig
from eqx_vit.models.parallel_vit import ParallelViT as ParallelViT
from eqx_vit.models.parallel_vit import ParallelViTConfig as ParallelViTConfig
from eqx_vit.models.parallel_vit import ParallelViTHMLP as ParallelViTHMLP
from eqx_vit.models.parallel_vit import ParallelViTHMLPConfig as ParallelViTHMLPConfig
from eqx_vit.models.patch_merger import PatchMerger as PatchMerger
from eqx_vit.models.patch_merger import PatchMergerViT as PatchMergerViT
from eqx_vit.models.patch_merger import PatchMergerViTConfig as PatchMergerViTConfig
from eqx_vit.models.pit import PiT as PiT
from eqx_vit.models.pit import PiTConfig as PiTConfig
from eqx_vit.models.region_vit import RegionViT as RegionViT
from eqx_vit.models.region_vit import RegionViTConfig as RegionViTConfig
from eqx_vit.models.scalable_vit import ScalableViT as ScalableViT
from eqx_vit.models.scalable_vit import ScalableViTConfig as ScalableViTConfig
from eqx_vit.models.simple_vit import SimpleViT as SimpleViT
from eqx_vit.models.simple_vit import SimpleViTConfig as SimpleViTConfig
from eqx_vit.models.source import Source as Source
from eqx_vit.models.t2t import T2TViT as T2TViT
from eqx_vit.models.t2t import T2TViTConfig as T2TViTConfig
from eqx_vit.models.twins_svt import TwinsSVT as TwinsSVT
from eqx_vit.models.twins_svt import TwinsSVTConfig as TwinsSVTConfig
from eqx_vit.models.vit import ViT as ViT
from eqx_vit.models.vit import ViTConfig as ViTConfig
from eqx_vit.models.vit_small_datasets import LSA as LSA
from eqx_vit.models.vit_small_datasets import SPT as SPT
from eqx_vit.models.vit_small_datasets import SmallDatasetViT as SmallDatasetViT
from eqx_vit.models.vit_small_datasets import SmallDatasetViTConfig as SmallDatasetViTConfig
from eqx_vit.surface import cast as cast
from eqx_vit.surface import count_params as count_params
from eqx_vit.surface import decay_mask as decay_mask
from eqx_vit.surface import forward as forward
from eqx_vit.surface import replace_head as replace_head
from eqx_vit.surface import resize as resize
from eqx_vit.surface import trainable as trainable
from eqx_vit.surface import transform as transform
