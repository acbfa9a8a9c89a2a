"""PatchMergerViT's names: timm's ViT with the merger beside its blocks, and vit-pytorch's `vit_with_patch_merger`."""

from collections.abc import Callable

from eqx_vit.layers.config import check, pair
from eqx_vit.models.patch_merger import PatchMergerViTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, inside, patch_embedding, rearranged, same, stack

_TOKEN = "one tokens dim -> (one tokens) dim"


def _timm(config: PatchMergerViTConfig) -> list[Rule | Constant]:
    check(not config.patch_norm, "timm's ViT has no norms around its patch embedding: use the vit_pytorch layout")
    block = [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    return [
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        rearranged("position_embedding", "pos_embed", _TOKEN, {"one": 1}),
        *_blocks(config, "blocks.{}.".format, block),
        *_merger("patch_merger."),
        *affine("norm", "norm"),
        *affine("head", "head"),
    ]


def _vit_pytorch(config: PatchMergerViTConfig) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "0.norm"),
        *affine("attention.qkv", "0.to_qkv"),
        *affine("attention.projection", "0.to_out.0"),
        *affine("norm2", "1.net.0"),
        *affine("mlp.expand", "1.net.1"),
        *affine("mlp.contract", "1.net.4"),
    ]
    return [
        *affine("pixel_norm", "to_patch_embedding.1"),
        *affine("patch_embedding.linear", "to_patch_embedding.2"),
        *affine("patch_norm", "to_patch_embedding.3"),
        # Its table has room for a class token that it does not have, in the last row.
        rearranged("position_embedding", "pos_embedding", _TOKEN, {"one": 1}, spare=1),
        *_blocks(config, "transformer.layers.{}.".format, block),
        *_merger("transformer.patch_merger."),
        *affine("norm", "transformer.norm"),
        *affine("head", "mlp_head.1"),
    ]


def _blocks(
    config: PatchMergerViTConfig, prefix: Callable[[int], str], block: list[Rule | Constant]
) -> list[Rule | Constant]:
    """The blocks before and after the merger, which both sources number through."""
    prefixes = [prefix(index) for index in range(config.depth)]
    before, after = prefixes[: config.merge_layer], prefixes[config.merge_layer :]
    return [*stack("blocks", before, block), *stack("merged_blocks", after, block)]


def _merger(theirs: str) -> list[Rule | Constant]:
    return inside("patch_merger.", theirs, [same("queries", "queries"), *affine("norm", "norm")])


NAMES = {"timm": _timm, "vit_pytorch": _vit_pytorch}
