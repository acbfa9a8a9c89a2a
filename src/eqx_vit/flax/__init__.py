"""The Flax-shaped door: each architecture as a linen-like description with `init` and `apply` over plain dicts.

    from eqx_vit.flax import CaiT

    v = CaiT(image_size=256, patch_size=32, num_classes=1000, dim=1024, depth=12, heads=16, mlp_dim=2048, dropout=0.1)
    variables = v.init({"params": key1, "dropout": key2}, images)
    logits = v.apply(variables, images, rngs={"dropout": key3})

No flax is needed; where it is installed, the variables work with `TrainState`, `flax.serialization` and
`flax.traverse_util`, and `v.as_linen()` is a true linen module.
"""

import eqx_vit
from eqx_vit.flax.module import Bound as Bound
from eqx_vit.flax.module import Module as Module
from eqx_vit.flax.parts import SPT as SPT
from eqx_vit.flax.parts import PatchMerger as PatchMerger


class ViT(Module, eqx_vit.ViTConfig):
    """`eqx_vit.ViT` with `init` and `apply`."""


class SimpleViT(Module, eqx_vit.SimpleViTConfig):
    """`eqx_vit.SimpleViT` with `init` and `apply`."""


class CaiT(Module, eqx_vit.CaiTConfig):
    """`eqx_vit.CaiT` with `init` and `apply`."""


class CrossFormer(Module, eqx_vit.CrossFormerConfig):
    """`eqx_vit.CrossFormer` with `init` and `apply`."""


class CrossViT(Module, eqx_vit.CrossViTConfig):
    """`eqx_vit.CrossViT` with `init` and `apply`."""


class CvT(Module, eqx_vit.CvTConfig):
    """`eqx_vit.CvT` with `init` and `apply`."""


class DeepViT(Module, eqx_vit.DeepViTConfig):
    """`eqx_vit.DeepViT` with `init` and `apply`."""


class LeViT(Module, eqx_vit.LeViTConfig):
    """`eqx_vit.LeViT` with `init` and `apply`."""


class NesT(Module, eqx_vit.NesTConfig):
    """`eqx_vit.NesT` with `init` and `apply`."""


class ParallelViT(Module, eqx_vit.ParallelViTConfig):
    """`eqx_vit.ParallelViT` with `init` and `apply`."""


class ParallelViTHMLP(Module, eqx_vit.ParallelViTHMLPConfig):
    """`eqx_vit.ParallelViTHMLP` with `init` and `apply`."""


class PatchMergerViT(Module, eqx_vit.PatchMergerViTConfig):
    """`eqx_vit.PatchMergerViT` with `init` and `apply`."""


class PiT(Module, eqx_vit.PiTConfig):
    """`eqx_vit.PiT` with `init` and `apply`."""


class ScalableViT(Module, eqx_vit.ScalableViTConfig):
    """`eqx_vit.ScalableViT` with `init` and `apply`."""


class T2TViT(Module, eqx_vit.T2TViTConfig):
    """`eqx_vit.T2TViT` with `init` and `apply`."""


class TwinsSVT(Module, eqx_vit.TwinsSVTConfig):
    """`eqx_vit.TwinsSVT` with `init` and `apply`."""


class SmallDatasetViT(Module, eqx_vit.SmallDatasetViTConfig):
    """`eqx_vit.SmallDatasetViT` with `init` and `apply`."""


class RegionViT(Module, eqx_vit.RegionViTConfig):
    """`eqx_vit.RegionViT` with `init` and `apply`."""
