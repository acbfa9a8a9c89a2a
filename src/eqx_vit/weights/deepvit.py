"""DeepViT's names in the official code (zhoudaquan/dvit_repo)."""

from eqx_vit.layers.config import pair
from eqx_vit.models.deepvit import DeepViTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, batch_norm, patch_embedding, rearranged, same, stack

_TOKEN = "one tokens dim -> (one tokens) dim"


def _official(config: DeepViTConfig) -> list[Rule | Constant]:
    prefixes = [f"blocks.{index}." for index in range(config.depth)]
    plain = config.depth - config.mixing_depth
    height, width = pair(config.patch_size)
    patch_size = (height // 2, width // 2) if config.convolutional_stem else (height, width)
    block = [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    mix = [
        rearranged(
            "attention.mix.weight",
            "attn.reatten_matrix.weight",
            "out heads height width -> out (heads height width)",
            {"height": 1, "width": 1},
        ),
        same("attention.mix.bias", "attn.reatten_matrix.bias"),
        *batch_norm("attention.mix_norm", "attn.var_norm"),
    ]
    return [
        *(_stem() if config.convolutional_stem else []),
        *patch_embedding("patch_embedding", "patch_embed.proj", patch_size),
        rearranged("class_token", "cls_token", _TOKEN, {"one": 1}),
        rearranged("position_embedding", "pos_embed", _TOKEN, {"one": 1}),
        *stack("blocks", prefixes[:plain], block),
        *stack("re_attention_blocks", prefixes[plain:], [*block, *mix]),
        *affine("norm", "norm"),
        *affine("head", "head"),
    ]


def _stem() -> list[Rule | Constant]:
    return [
        same("stem.conv1.weight", "patch_embed.conv1.weight"),
        *batch_norm("stem.norm1", "patch_embed.bn1"),
        same("stem.conv2.weight", "patch_embed.conv2.weight"),
        *batch_norm("stem.norm2", "patch_embed.bn2"),
    ]


NAMES = {"official": _official}
