"""PatchMergerViT's names: timm's ViT with the merger beside its blocks, and vit-pytorch's `vit_with_patch_merger`."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from eqx_vit.layers.config import check, pair
from eqx_vit.models.patch_merger import PatchMergerViTConfig
from eqx_vit.weights.checkpoints import Checkpoints, check_held
from eqx_vit.weights.rules import (
    Constant,
    Join,
    Rule,
    copy,
    patch_embedding,
    stack,
    timm_block,
    token,
    weight_and_bias,
    with_prefix,
)

_WITHOUT_LAST = Join(
    load=lambda parts: parts[0][:, :-1],
    save=lambda array: [np.pad(array, ((0, 0), (0, 1), (0, 0)))],
)


def _timm(config: PatchMergerViTConfig) -> list[Rule | Constant]:
    check(not config.patch_norm, "timm's ViT has no norms around its patch embedding: use the vit_pytorch layout")
    check_held("timm's ViT", config, {"project_out": True})
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        token("position_embedding", "pos_embed"),
        *_blocks(config, "blocks.{}.".format, timm_block()),
        *_merger("patch_merger."),
        *weight_and_bias("norm", "norm"),
        *weight_and_bias("head", "head"),
    ]


def _vit_pytorch(config: PatchMergerViTConfig) -> list[Rule | Constant]:
    one_head = config.heads == 1 and config.dim_head in (None, config.dim)
    held: dict[str, object] = {
        "qkv_bias": False,
        "patch_norm": True,
        "patch_merge_norm": True,
        "project_out": not one_head,
    }
    check_held("vit-pytorch's ViT with a PatchMerger", config, held)
    block = [
        *weight_and_bias("norm1", "0.norm"),
        *weight_and_bias("attention.qkv", "0.to_qkv"),
        *weight_and_bias("attention.projection.linear", "0.to_out.0"),
        *weight_and_bias("norm2", "1.net.0"),
        *weight_and_bias("mlp.fc1", "1.net.1"),
        *weight_and_bias("mlp.fc2", "1.net.4"),
    ]
    return [
        *weight_and_bias("patch_embedding.pixel_norm", "to_patch_embedding.1"),
        *weight_and_bias("patch_embedding.linear", "to_patch_embedding.2"),
        *weight_and_bias("patch_embedding.norm", "to_patch_embedding.3"),
        # Its table has room for a class token that it does not have, in the last row.
        replace(token("position_embedding", "pos_embedding"), join=_WITHOUT_LAST),
        *_blocks(config, "transformer.layers.{}.".format, block),
        *_merger("transformer.patch_merger."),
        *weight_and_bias("norm", "transformer.norm"),
        *weight_and_bias("head", "mlp_head.1"),
    ]


def _blocks(
    config: PatchMergerViTConfig, prefix: Callable[[int], str], block: list[Rule | Constant]
) -> list[Rule | Constant]:
    """The blocks before and after the merger, which both sources number through."""
    prefixes = [prefix(index) for index in range(config.depth)]
    before, after = prefixes[: config.merge_layer], prefixes[config.merge_layer :]
    return [*stack("blocks", before, block), *stack("merged_blocks", after, block)]


def _merger(theirs: str) -> list[Rule | Constant]:
    return with_prefix("patch_merger.", theirs, [copy("queries", "queries"), *weight_and_bias("norm", "norm")])


CHECKPOINTS = Checkpoints(names={"timm": _timm, "vit_pytorch": _vit_pytorch})
