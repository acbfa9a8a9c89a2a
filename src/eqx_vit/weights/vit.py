"""ViT's names in timm, DeiT III's official code, transformers and google-research's Flax code."""

from eqx_vit.layers.config import pair
from eqx_vit.models.vit import ViTConfig
from eqx_vit.weights import linen
from eqx_vit.weights.rules import Constant, Rule, Spellings, affine, inside, patch_embedding, rearranged, same, stack

_TOKEN = "one tokens dim -> (one tokens) dim"


def _timm(config: ViTConfig) -> list[Rule | Constant]:
    return _torch(config, "ls1.gamma", "ls2.gamma")


def _official(config: ViTConfig) -> list[Rule | Constant]:
    """facebookresearch/deit."""
    return _torch(config, "gamma_1", "gamma_2")


def _torch(config: ViTConfig, scale1: str, scale2: str) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "norm1"),
        *affine("attention.qkv", "attn.qkv"),
        *affine("attention.query_norm", "attn.q_norm"),
        *affine("attention.key_norm", "attn.k_norm"),
        *affine("attention.projection", "attn.proj"),
        same("scale1.scale", scale1),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
        same("scale2.scale", scale2),
    ]
    return [
        _token("class_token", "cls_token"),
        _token("distillation_token", "dist_token"),
        _token("register_tokens", "reg_token"),
        _token("position_embedding", "pos_embed"),
        *patch_embedding("patch_embedding", "patch_embed.proj", pair(config.patch_size)),
        *affine("norm_pre", "norm_pre"),
        *stack("blocks", [f"blocks.{index}." for index in range(config.depth)], block),
        *affine("norm", "fc_norm" if config.norm_after_pool else "norm"),
        *affine("pre_logits", "pre_logits.fc"),
        *affine("head", "head"),
        *affine("head_dist", "head_dist"),
    ]


def _hf(config: ViTConfig) -> list[Rule | Constant]:
    """transformers 5, and (DeiT) its older names for the second token and head."""
    body = "deit" if config.distillation else "vit"
    qkv = [f"attention.{name}_proj" for name in "qkv"]
    block = [
        *affine("norm1", "layernorm_before"),
        rearranged(
            "attention.qkv.weight", [f"{name}.weight" for name in qkv], "three out dim -> (three out) dim", _QKV
        ),
        rearranged("attention.qkv.bias", [f"{name}.bias" for name in qkv], "three out -> (three out)", _QKV),
        *affine("attention.projection", "attention.o_proj"),
        *affine("norm2", "layernorm_after"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    return [
        *inside(
            "",
            f"{body}.",
            [
                _token("class_token", "embeddings.cls_token"),
                _token("distillation_token", "embeddings.distillation_token"),
                _token("position_embedding", "embeddings.position_embeddings"),
                *patch_embedding("patch_embedding", "embeddings.patch_embeddings.projection", pair(config.patch_size)),
                *stack("blocks", [f"layers.{index}." for index in range(config.depth)], block),
                *affine("norm", "layernorm"),
            ],
        ),
        *affine("head", "cls_classifier" if config.distillation else "classifier"),
        *affine("head_dist", "distillation_classifier"),
    ]


def _flax(config: ViTConfig) -> list[Rule | Constant]:
    block = linen.block(config.heads)
    return [
        _token("class_token", "cls"),
        _token("position_embedding", "Transformer/posembed_input/pos_embedding"),
        *linen.patch_embedding("patch_embedding", "embedding", pair(config.patch_size)),
        *stack("blocks", [f"Transformer/encoderblock_{index}/" for index in range(config.depth)], block),
        *linen.layer_norm("norm", "Transformer/encoder_norm"),
        *linen.dense("pre_logits", "pre_logits"),
        *linen.dense("head", "head"),
    ]


_QKV = {"three": 3}


def _token(ours: str, theirs: str) -> Rule:
    return rearranged(ours, theirs, _TOKEN, {"one": 1})


NAMES = {"timm": _timm, "official": _official, "hf": _hf, "flax": _flax}

# The files on the Hugging Face hub are older than transformers 5, and have the output of a pooler that nobody reads.
_HF: Spellings = [
    (r"^(vit|deit)\.encoder\.layer\.", r"\1.layers."),
    (r"\.attention\.attention\.(q)uery\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(k)ey\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(v)alue\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"(vit|deit)\.pooler\.dense\.(weight|bias)", None),
]
_GAMMA: Spellings = [(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma")]

SPELLINGS = {"timm": _GAMMA, "hf": _HF, "flax": linen.SPELLINGS}
