"""The architectures: one file each, and the one table that the rest of the library reads."""

from typing import Any, NamedTuple

from eqx_vit.models import (
    cait,
    cross_vit,
    crossformer,
    cvt,
    deepvit,
    levit,
    nest,
    parallel_vit,
    patch_merger,
    pit,
    region_vit,
    scalable_vit,
    simple_vit,
    t2t,
    twins_svt,
    vit,
    vit_small_datasets,
)
from eqx_vit.models.source import Source


class Architecture(NamedTuple):
    """What the library knows of one architecture."""

    model: Any  # the class
    config: Any  # the class of its configurations
    presets: dict[str, Any]
    weights: dict[str, Source]


MODELS: dict[str, Architecture] = {
    "vit": Architecture(vit.ViT, vit.ViTConfig, vit.PRESETS, vit.WEIGHTS),
    "simple_vit": Architecture(
        simple_vit.SimpleViT, simple_vit.SimpleViTConfig, simple_vit.PRESETS, simple_vit.WEIGHTS
    ),
    "cait": Architecture(cait.CaiT, cait.CaiTConfig, cait.PRESETS, cait.WEIGHTS),
    "crossformer": Architecture(
        crossformer.CrossFormer, crossformer.CrossFormerConfig, crossformer.PRESETS, crossformer.WEIGHTS
    ),
    "cross_vit": Architecture(cross_vit.CrossViT, cross_vit.CrossViTConfig, cross_vit.PRESETS, cross_vit.WEIGHTS),
    "cvt": Architecture(cvt.CvT, cvt.CvTConfig, cvt.PRESETS, cvt.WEIGHTS),
    "deepvit": Architecture(deepvit.DeepViT, deepvit.DeepViTConfig, deepvit.PRESETS, deepvit.WEIGHTS),
    "levit": Architecture(levit.LeViT, levit.LeViTConfig, levit.PRESETS, levit.WEIGHTS),
    "nest": Architecture(nest.NesT, nest.NesTConfig, nest.PRESETS, nest.WEIGHTS),
    "parallel_vit": Architecture(
        parallel_vit.ParallelViT, parallel_vit.ParallelViTConfig, parallel_vit.PRESETS, parallel_vit.WEIGHTS
    ),
    "parallel_vit_hmlp": Architecture(
        parallel_vit.ParallelViTHMLP,
        parallel_vit.ParallelViTHMLPConfig,
        parallel_vit.HMLP_PRESETS,
        parallel_vit.HMLP_WEIGHTS,
    ),
    "patch_merger": Architecture(
        patch_merger.PatchMergerViT, patch_merger.PatchMergerViTConfig, patch_merger.PRESETS, patch_merger.WEIGHTS
    ),
    "pit": Architecture(pit.PiT, pit.PiTConfig, pit.PRESETS, pit.WEIGHTS),
    "scalable_vit": Architecture(
        scalable_vit.ScalableViT, scalable_vit.ScalableViTConfig, scalable_vit.PRESETS, scalable_vit.WEIGHTS
    ),
    "t2t": Architecture(t2t.T2TViT, t2t.T2TViTConfig, t2t.PRESETS, t2t.WEIGHTS),
    "twins_svt": Architecture(twins_svt.TwinsSVT, twins_svt.TwinsSVTConfig, twins_svt.PRESETS, twins_svt.WEIGHTS),
    "vit_small_datasets": Architecture(
        vit_small_datasets.SmallDatasetViT,
        vit_small_datasets.SmallDatasetViTConfig,
        vit_small_datasets.PRESETS,
        vit_small_datasets.WEIGHTS,
    ),
    "region_vit": Architecture(
        region_vit.RegionViT, region_vit.RegionViTConfig, region_vit.PRESETS, region_vit.WEIGHTS
    ),
}
