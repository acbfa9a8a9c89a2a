"""CvT's names in the official code (microsoft/CvT) and transformers."""

from eqx_vit.layers.config import check
from eqx_vit.models.cvt import CvTConfig
from eqx_vit.weights.checkpoints import Checkpoints
from eqx_vit.weights.rules import Constant, Rule, batch_norm, copy, stack, token, weight_and_bias, with_prefix


def _official(config: CvTConfig) -> list[Rule | Constant]:
    block = [
        *weight_and_bias("norm1", "norm1"),
        *_projection("query_projection", "attn.conv_proj_q.conv", "attn.conv_proj_q.bn", "attn.proj_q"),
        *_projection("key_projection", "attn.conv_proj_k.conv", "attn.conv_proj_k.bn", "attn.proj_k"),
        *_projection("value_projection", "attn.conv_proj_v.conv", "attn.conv_proj_v.bn", "attn.proj_v"),
        *weight_and_bias("attention.projection.linear", "attn.proj"),
        *weight_and_bias("norm2", "norm2"),
        *weight_and_bias("mlp.fc1", "mlp.fc1"),
        *weight_and_bias("mlp.fc2", "mlp.fc2"),
    ]
    stage = [
        *weight_and_bias("token_embedding", "patch_embed.proj"),
        *weight_and_bias("norm", "patch_embed.norm"),
        token("class_token", "cls_token"),
    ]
    return [
        *_stages(config, "stage{}.", stage, "blocks.{}.", block),
        *weight_and_bias("norm", "norm"),
        *weight_and_bias("head", "head"),
    ]


def _hf(config: CvTConfig) -> list[Rule | Constant]:
    block = [*weight_and_bias("norm1", "layernorm_before")]
    for name in ("query", "key", "value"):
        conv = f"attention.attention.convolution_projection_{name}.convolution_projection"
        linear = f"attention.attention.projection_{name}"
        block += _projection(f"{name}_projection", f"{conv}.convolution", f"{conv}.normalization", linear)
    block += [
        *weight_and_bias("attention.projection.linear", "attention.output.dense"),
        *weight_and_bias("norm2", "layernorm_after"),
        *weight_and_bias("mlp.fc1", "intermediate.dense"),
        *weight_and_bias("mlp.fc2", "output.dense"),
    ]
    stage = [
        *weight_and_bias("token_embedding", "embedding.convolution_embeddings.projection"),
        *weight_and_bias("norm", "embedding.convolution_embeddings.normalization"),
        token("class_token", "cls_token"),
    ]
    return [
        *_stages(config, "cvt.encoder.stages.{}.", stage, "layers.{}.", block),
        *weight_and_bias("norm", "layernorm"),
        *weight_and_bias("head", "classifier"),
    ]


def _projection(ours: str, conv: str, norm: str, linear: str) -> list[Rule | Constant]:
    rules = [copy("conv.weight", f"{conv}.weight"), *batch_norm("norm", norm), *weight_and_bias("linear", linear)]
    return with_prefix(f"attention.{ours}.", "", rules)


def _stages(
    config: CvTConfig, prefix: str, stage: list[Rule | Constant], block_prefix: str, block: list[Rule | Constant]
) -> list[Rule | Constant]:
    """The rules of every stage: those of its own arrays, and those of its blocks."""
    rules: list[Rule | Constant] = []
    for index, sizes in enumerate(config.stages):
        prefixes = [block_prefix.format(number) for number in range(sizes.depth)]
        rules += with_prefix(f"stages.{index}.", prefix.format(index), [*stage, *stack("blocks", prefixes, block)])
    return rules


def _describe(config: CvTConfig) -> dict[str, object]:
    """transformers' `CvtConfig`."""
    check(not config.quick_gelu, "transformers' CvT computes with the exact GELU: this model has quick_gelu=True")
    stages = config.stages
    kernels = [stage.projection_kernel for stage in stages]
    padding = [kernel // 2 for kernel in kernels]
    return {
        "model_type": "cvt",
        "architectures": ["CvtForImageClassification"],
        "embed_dim": [stage.dim for stage in stages],
        "depth": [stage.depth for stage in stages],
        "num_heads": [stage.heads for stage in stages],
        "mlp_ratio": [float(stage.mlp_mult) for stage in stages],
        "patch_sizes": [stage.kernel for stage in stages],
        "patch_stride": [stage.stride for stage in stages],
        "patch_padding": [stage.padding for stage in stages],
        "kernel_qkv": kernels,
        "padding_q": padding,
        "padding_kv": padding,
        "stride_q": [1] * len(stages),
        "stride_kv": [stage.key_value_stride for stage in stages],
        "qkv_bias": [config.qkv_bias] * len(stages),
        "cls_token": [stage.class_token for stage in stages],
        "drop_rate": [config.dropout] * len(stages),
        "attention_drop_rate": [config.attention_dropout] * len(stages),
        "drop_path_rate": [stage.drop_path for stage in stages],
    }


CHECKPOINTS = Checkpoints(names={"official": _official, "hf": _hf}, describe=_describe)
