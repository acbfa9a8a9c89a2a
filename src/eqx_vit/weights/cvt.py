"""CvT's names in the official code (microsoft/CvT) and transformers."""

from eqx_vit.models.cvt import CvTConfig
from eqx_vit.weights.rules import Constant, Rule, affine, batch_norm, inside, rearranged, same, stack


def _official(config: CvTConfig) -> list[Rule | Constant]:
    block = [
        *affine("norm1", "norm1"),
        *_projection("query_projection", "attn.conv_proj_q.conv", "attn.conv_proj_q.bn", "attn.proj_q"),
        *_projection("key_projection", "attn.conv_proj_k.conv", "attn.conv_proj_k.bn", "attn.proj_k"),
        *_projection("value_projection", "attn.conv_proj_v.conv", "attn.conv_proj_v.bn", "attn.proj_v"),
        *affine("attention.projection", "attn.proj"),
        *affine("norm2", "norm2"),
        *affine("mlp.expand", "mlp.fc1"),
        *affine("mlp.contract", "mlp.fc2"),
    ]
    stage = [
        *affine("token_embedding", "patch_embed.proj"),
        *affine("norm", "patch_embed.norm"),
        _class_token(),
    ]
    return [
        *_stages(config, "stage{}.", stage, "blocks.{}.", block),
        *affine("norm", "norm"),
        *affine("head", "head"),
    ]


def _hf(config: CvTConfig) -> list[Rule | Constant]:
    block = [*affine("norm1", "layernorm_before")]
    for name in ("query", "key", "value"):
        conv = f"attention.attention.convolution_projection_{name}.convolution_projection"
        linear = f"attention.attention.projection_{name}"
        block += _projection(f"{name}_projection", f"{conv}.convolution", f"{conv}.normalization", linear)
    block += [
        *affine("attention.projection", "attention.output.dense"),
        *affine("norm2", "layernorm_after"),
        *affine("mlp.expand", "intermediate.dense"),
        *affine("mlp.contract", "output.dense"),
    ]
    stage = [
        *affine("token_embedding", "embedding.convolution_embeddings.projection"),
        *affine("norm", "embedding.convolution_embeddings.normalization"),
        _class_token(),
    ]
    return [
        *_stages(config, "cvt.encoder.stages.{}.", stage, "layers.{}.", block),
        *affine("norm", "layernorm"),
        *affine("head", "classifier"),
    ]


def _projection(ours: str, conv: str, norm: str, linear: str) -> list[Rule | Constant]:
    rules = [same("conv.weight", f"{conv}.weight"), *batch_norm("norm", norm), *affine("linear", linear)]
    return inside(f"attention.{ours}.", "", rules)


def _class_token() -> Rule:
    return rearranged("class_token", "cls_token", "one tokens dim -> (one tokens) dim", {"one": 1})


def _stages(
    config: CvTConfig, prefix: str, stage: list[Rule | Constant], block_prefix: str, block: list[Rule | Constant]
) -> list[Rule | Constant]:
    """The rules of every stage: those of its own arrays, and those of its blocks."""
    rules: list[Rule | Constant] = []
    for index, sizes in enumerate(config.stages):
        prefixes = [block_prefix.format(number) for number in range(sizes.depth)]
        rules += inside(f"stages.{index}.", prefix.format(index), [*stage, *stack("blocks", prefixes, block)])
    return rules


NAMES = {"official": _official, "hf": _hf}
