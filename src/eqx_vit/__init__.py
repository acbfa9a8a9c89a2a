"""Vision transformers in JAX and Equinox, faithful to their papers' official code, with shapes checked at run time.

model, state = eqx_vit.create("vit_tiny_patch16_224", key=jax.random.key(0), num_classes=10)
logits, state = eqx_vit.forward(model, state, images, key)
"""

import importlib as _importlib
import typing as _typing
from types import ModuleType as _ModuleType

from jaxtyping import install_import_hook as _install_import_hook

# Every argument and result of the package is checked by beartype, for every user; JAXTYPING_DISABLE=1 turns it off.
_install_import_hook("eqx_vit", "beartype.beartype")

from equinox.nn import inference_mode as inference_mode

from eqx_vit import layers as layers
from eqx_vit.create import create as create, create_abstract as create_abstract
from eqx_vit.exchange import replace as replace
from eqx_vit.forward import forward as forward
from eqx_vit.functional import transform as transform
from eqx_vit.inspection import (
    attention_maps as attention_maps,
    attention_rollout as attention_rollout,
    feature_info as feature_info,
    features_to_rgb as features_to_rgb,
    forward_features as forward_features,
    grad_cam as grad_cam,
    intermediates as intermediates,
    observable as observable,
    observe as observe,
    resize_maps as resize_maps,
)
from eqx_vit.latency import compiled as compiled, stacked as stacked, unstacked as unstacked
from eqx_vit.model import (
    ImageModel as ImageModel,
    ImageModelConfig as ImageModelConfig,
    StatefulImageModel as StatefulImageModel,
    StatelessImageModel as StatelessImageModel,
)
from eqx_vit.models.cait import CaiT as CaiT, CaiTConfig as CaiTConfig
from eqx_vit.models.cross_vit import CrossViT as CrossViT, CrossViTConfig as CrossViTConfig
from eqx_vit.models.crossformer import CrossFormer as CrossFormer, CrossFormerConfig as CrossFormerConfig
from eqx_vit.models.cvt import CvT as CvT, CvTConfig as CvTConfig
from eqx_vit.models.deepvit import DeepViT as DeepViT, DeepViTConfig as DeepViTConfig
from eqx_vit.models.dinov3 import DINOv3 as DINOv3, DINOv3Config as DINOv3Config
from eqx_vit.models.levit import LeViT as LeViT, LeViTConfig as LeViTConfig
from eqx_vit.models.nest import NesT as NesT, NesTConfig as NesTConfig
from eqx_vit.models.parallel_vit import (
    ParallelViT as ParallelViT,
    ParallelViTConfig as ParallelViTConfig,
    ParallelViTHMLP as ParallelViTHMLP,
    ParallelViTHMLPConfig as ParallelViTHMLPConfig,
)
from eqx_vit.models.patch_merger import (
    PatchMerger as PatchMerger,
    PatchMergerViT as PatchMergerViT,
    PatchMergerViTConfig as PatchMergerViTConfig,
)
from eqx_vit.models.pit import PiT as PiT, PiTConfig as PiTConfig
from eqx_vit.models.region_vit import RegionViT as RegionViT, RegionViTConfig as RegionViTConfig
from eqx_vit.models.scalable_vit import ScalableViT as ScalableViT, ScalableViTConfig as ScalableViTConfig
from eqx_vit.models.simple_vit import SimpleViT as SimpleViT, SimpleViTConfig as SimpleViTConfig
from eqx_vit.models.source import Source as Source
from eqx_vit.models.t2t import T2TViT as T2TViT, T2TViTConfig as T2TViTConfig
from eqx_vit.models.twins_svt import TwinsSVT as TwinsSVT, TwinsSVTConfig as TwinsSVTConfig
from eqx_vit.models.vit import ViT as ViT, ViTConfig as ViTConfig
from eqx_vit.models.vit_small_datasets import (
    LSA as LSA,
    SPT as SPT,
    SmallDatasetViT as SmallDatasetViT,
    SmallDatasetViTConfig as SmallDatasetViTConfig,
)
from eqx_vit.optimisers import (
    layer_labels as layer_labels,
    layer_numbers as layer_numbers,
    muon_dimension_numbers as muon_dimension_numbers,
    per_layer as per_layer,
    scale_by_layer as scale_by_layer,
)
from eqx_vit.parameters import (
    cast as cast,
    count_params as count_params,
    decay_mask as decay_mask,
    trainable as trainable,
)
from eqx_vit.points import (
    AttentionPoint as AttentionPoint,
    FeaturePoint as FeaturePoint,
    TokenFeatures as TokenFeatures,
)
from eqx_vit.registry import (
    MODELS as MODELS,
    Architecture as Architecture,
    list_models as list_models,
    register as register,
)
from eqx_vit.serialization import load as load, save as save
from eqx_vit.sharding import (
    local_places as local_places,
    make_mesh as make_mesh,
    parameter_shardings as parameter_shardings,
    shard as shard,
    shard_batch as shard_batch,
)
from eqx_vit.surgery import replace_head as replace_head, resize as resize

if _typing.TYPE_CHECKING:  # where a `__getattr__` would stand for every misspelt name
    from eqx_vit import export as export, flax as flax, testing as testing, weights as weights
else:
    _ON_FIRST_USE = (
        "export",
        "flax",
        "testing",
        "weights",
    )  # most programs need none of them, and importing them takes time

    def __getattr__(name: str) -> _ModuleType:
        if name in _ON_FIRST_USE:
            return _importlib.import_module(f"eqx_vit.{name}")
        raise AttributeError(f"module 'eqx_vit' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ON_FIRST_USE})
