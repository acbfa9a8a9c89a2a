"""LeViT's names in the official code (facebookresearch/LeViT), timm and transformers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eqx_vit.layers.config import check
from eqx_vit.models.levit import LeViTConfig, StageSizes, distances
from eqx_vit.weights.checkpoints import Checkpoints
from eqx_vit.weights.rules import (
    Constant,
    KeyRenames,
    Rule,
    batch_norm,
    copy,
    relayout,
    stack,
    weight_and_bias,
    with_prefix,
)


@dataclass(frozen=True)
class _Names:
    """What one source calls the parts; the prefixes are functions of the stage, and of the block in it."""

    stem: tuple[str, ...]
    stem_conv: str
    linear: str
    norm: str
    attention: Callable[[int, int], str]
    mlp: Callable[[int, int], str]
    downsample: Callable[[int], str]
    downsample_mlp: Callable[[int], str]
    qkv: str
    projection: str
    query: str
    key_value: str
    fc1: str
    fc2: str
    heads: tuple[str, str]
    head_linear: str
    saves_index: bool = False  # the official code keeps its index tables among the weights


def _official(config: LeViTConfig) -> list[Rule | Constant]:
    depths = [sizes.depth for sizes in config.stage_sizes]
    # Blocks are numbered flat: attention and MLP in turn, then the downsampling attention, its MLP, the next stage ...
    start = [2 * (sum(depths[:stage]) + stage) for stage in range(config.stages)]
    names = _Names(
        stem=tuple(f"patch_embed.{2 * index}" for index in range(4)),
        stem_conv="c",
        linear="c",
        norm="bn",
        attention=lambda stage, block: f"blocks.{start[stage] + 2 * block}.m.",
        mlp=lambda stage, block: f"blocks.{start[stage] + 2 * block + 1}.m.",
        downsample=lambda stage: f"blocks.{start[stage + 1] - 2}.",
        downsample_mlp=lambda stage: f"blocks.{start[stage + 1] - 1}.m.",
        qkv="qkv",
        projection="proj.1",
        query="q.1",
        key_value="kv",
        fc1="0",
        fc2="2",
        heads=("head", "head_dist"),
        head_linear="l",
        saves_index=True,
    )
    return _rules(config, names)


def _timm(config: LeViTConfig) -> list[Rule | Constant]:
    _check_downsampling("timm's LeViT", config)
    key_dims = sorted({stage.key_dim for stage in config.stage_sizes})
    check(len(key_dims) == 1, f"timm's LeViT has one dim_key in all stages, this one {key_dims}: use another layout")
    names = _Names(
        stem=tuple(f"stem.conv{index + 1}" for index in range(4)),
        stem_conv="linear",
        linear="linear",
        norm="bn",
        attention=lambda stage, block: f"stages.{stage}.blocks.{block}.attn.",
        mlp=lambda stage, block: f"stages.{stage}.blocks.{block}.mlp.",
        downsample=lambda stage: f"stages.{stage + 1}.downsample.attn_downsample.",
        downsample_mlp=lambda stage: f"stages.{stage + 1}.downsample.mlp.",
        qkv="qkv",
        projection="proj.ln",
        query="q.ln",
        key_value="kv",
        fc1="ln1",
        fc2="ln2",
        heads=("head", "head_dist"),
        head_linear="linear",
    )
    return _rules(config, names)


def _hf(config: LeViTConfig) -> list[Rule | Constant]:
    _check_downsampling("transformers' LeViT", config)
    check(config.stages == 3, f"transformers' LeViT has 3 stages, this one {config.stages}")
    check(
        all(stage.value_dim % stage.key_dim == 0 for stage in config.stage_sizes),
        "transformers' LeViT needs dim_value to be multiples of dim_key, given "
        f"{config.dim_value} and {config.dim_key}",
    )
    depths = [sizes.depth for sizes in config.stage_sizes]
    layer = "levit.encoder.stages.{}.layers.{}."
    names = _Names(
        stem=tuple(f"levit.patch_embeddings.embedding_layer_{index + 1}" for index in range(4)),
        stem_conv="convolution",
        linear="linear",
        norm="batch_norm",
        attention=lambda stage, block: layer.format(stage, 2 * block) + "module.",
        mlp=lambda stage, block: layer.format(stage, 2 * block + 1) + "module.",
        downsample=lambda stage: layer.format(stage, 2 * depths[stage]),
        downsample_mlp=lambda stage: layer.format(stage, 2 * depths[stage] + 1) + "module.",
        qkv="queries_keys_values",
        projection="projection",
        query="queries",
        key_value="keys_values",
        fc1="linear_up",
        fc2="linear_down",
        heads=("classifier", "classifier_distill"),
        head_linear="linear",
    )
    return _rules(config, names)


def _check_downsampling(code: str, config: LeViTConfig) -> None:
    """Both ports derive the downsampling attentions from the first stage's key size, and have MLPs of 2 * dim there."""
    stages = config.stage_sizes[:-1]
    key_dim = config.stage_sizes[0].key_dim
    expected = [(stage.dim // key_dim, key_dim, 4 * key_dim, 2) for stage in stages]
    found = [
        (stage.downsample_heads, stage.downsample_key_dim, stage.downsample_value_dim, stage.downsample_mlp_mult)
        for stage in stages
    ]
    check(
        found == expected,
        f"{code} has downsampling blocks of (heads, dim_key, dim_value, mlp_mult) {expected}, this one of {found}",
    )


def _rules(config: LeViTConfig, names: _Names) -> list[Rule | Constant]:
    rules: list[Rule | Constant] = []
    for index, name in enumerate(names.stem):
        rules += [
            copy(f"stem.{index}.conv.weight", f"{name}.{names.stem_conv}.weight"),
            *batch_norm(f"stem.{index}.norm", f"{name}.{names.norm}"),
        ]
    for stage, sizes in enumerate(config.stage_sizes):
        attention = [names.attention(stage, block) for block in range(sizes.depth)]
        mlp = [names.mlp(stage, block) for block in range(sizes.depth)]
        rules += stack(f"stages.{stage}", attention, _attention(sizes, names))
        rules += stack(f"stages.{stage}", mlp, _mlp(names))
    for stage, sizes in enumerate(config.stage_sizes[:-1]):
        rules += with_prefix(f"downsamples.{stage}.", names.downsample(stage), _attention_downsample(sizes, names))
        rules += with_prefix(f"downsamples.{stage}.", names.downsample_mlp(stage), _mlp(names))
    for ours, theirs in zip(("head", "head_dist"), names.heads, strict=True):
        rules += [
            *batch_norm(f"{ours}.norm", f"{theirs}.{names.norm}"),
            *weight_and_bias(f"{ours}.linear", f"{theirs}.{names.head_linear}"),
        ]
    return rules


def _attention(sizes: StageSizes, names: _Names) -> list[Rule | Constant]:
    order = _head_major(sizes.heads, sizes.key_dim, sizes.key_dim, sizes.value_dim)
    return [
        *_linear_norm("attention.qkv", names.qkv, names, order),
        copy("attention.position_bias", "attention_biases"),
        *_linear_norm("attention.projection", names.projection, names),
        *_index(sizes.grid, 1, names),
    ]


def _attention_downsample(sizes: StageSizes, names: _Names) -> list[Rule | Constant]:
    order = _head_major(sizes.downsample_heads, sizes.downsample_key_dim, sizes.downsample_value_dim)
    return [
        *_linear_norm("attention.key_value", names.key_value, names, order),
        *_linear_norm("attention.query", names.query, names),
        copy("attention.position_bias", "attention_biases"),
        *_linear_norm("attention.projection", names.projection, names),
        *_index(sizes.grid, 2, names),
    ]


def _mlp(names: _Names) -> list[Rule | Constant]:
    return [
        *_linear_norm("mlp.fc1", names.fc1, names),
        *_linear_norm("mlp.fc2", names.fc2, names),
    ]


def _linear_norm(ours: str, theirs: str, names: _Names, order: list[int] | None = None) -> list[Rule | Constant]:
    return [
        relayout(f"{ours}.linear.weight", f"{theirs}.{names.linear}.weight", order=order),
        *batch_norm(f"{ours}.norm", f"{theirs}.{names.norm}", order),
    ]


def _head_major(heads: int, *sizes: int) -> list[int]:
    """The rows of a projection stored head by head (each with its q, k, v), in our order: q, k, v, then heads."""
    rows = np.arange(heads * sum(sizes)).reshape(heads, -1)
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    return [int(row) for part in parts for row in part.ravel()]


def _index(grid: tuple[int, int], stride: int, names: _Names) -> list[Rule | Constant]:
    table = distances(grid, stride).astype(np.int64)
    return [Constant("attention_bias_idxs", table)] if names.saves_index else []


# The ports once saved the official code's index tables too.
_TABLES: KeyRenames = [(r".*\.attention_bias_idxs", None)]


def _describe(config: LeViTConfig) -> dict[str, object]:
    """transformers' `LevitConfig`."""
    stages = config.stage_sizes
    teacher = "WithTeacher" if config.num_distill_classes else ""
    return {
        "model_type": "levit",
        "architectures": [f"LevitForImageClassification{teacher}"],
        "image_size": config.image_size,
        "hidden_sizes": [stage.dim for stage in stages],
        "depths": [stage.depth for stage in stages],
        "num_attention_heads": [stage.heads for stage in stages],
        "key_dim": [stage.key_dim for stage in stages],
        "attention_ratio": [stage.value_dim // stage.key_dim for stage in stages],
        "mlp_ratio": [stage.mlp_mult for stage in stages],
        # No drop_path_rate: transformers 5 refuses to open a LeViT whose rate is not a whole number.
    }


CHECKPOINTS = Checkpoints(
    names={"official": _official, "timm": _timm, "hf": _hf},
    renames={"timm": _TABLES, "hf": _TABLES},
    describe=_describe,
)
